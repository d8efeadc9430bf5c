"""Chunks between the wire and the blob store: what is expected is written where it belongs, what is wanted is read."""

from collections.abc import Iterable

from federated_core.adapters.blob_store import BlobStore
from federated_core.adapters.partial_blob import PartialBlob
from federated_core.errors import AdapterError, RemoteProtocolError
from federated_core.protocol.messages import BlobReference
from federated_core.protocol.transfer import Chunk
from federated_core.protocol.wire import CHUNK_BYTES, DIGEST_PREFIX_BYTES, ChunkFrame


class BlobReceiver:
    """Downloads under way, each expected from one owner: nobody can write into another's blob."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._open: dict[tuple[str, bytes], tuple[bytes, PartialBlob]] = {}

    def expect(self, references: Iterable[BlobReference], owner: str = "") -> tuple[Chunk, ...]:
        """Open what is not in the store yet; return its missing chunks in order. AdapterError if there is no room."""
        missing: list[Chunk] = []
        for reference in references:
            if self._store.has(reference.digest.hex()):
                continue
            key = (owner, reference.digest[:DIGEST_PREFIX_BYTES])
            digest, partial = self._open.get(key, (b"", None))
            if partial is None or (digest, partial.size_bytes) != (reference.digest, reference.size_bytes):
                partial = self._store.open_partial(reference.digest.hex(), reference.size_bytes, CHUNK_BYTES)
            if not partial.missing():
                try:
                    partial.finish()
                    continue
                except RemoteProtocolError:  # All there before a crash, and not what was announced: begin anew.
                    partial = self._store.open_partial(reference.digest.hex(), reference.size_bytes, CHUNK_BYTES)
            self._open[key] = (reference.digest, partial)
            missing += [Chunk(reference.digest, index) for index in partial.missing()]
        return tuple(missing)

    def store(self, frame: ChunkFrame, owner: str = "") -> tuple[Chunk, bool] | None:
        """Write a chunk; return it and whether its blob is now whole, or None if nobody expects it.

        A blob that does not hash to its digest raises RemoteProtocolError and is no longer expected.
        """
        entry = self._open.get((owner, frame.digest_prefix))
        if entry is None:
            return None
        digest, partial = entry
        partial.write_chunk(frame.index, frame.data)
        is_whole = not partial.missing()
        if is_whole:
            del self._open[owner, frame.digest_prefix]
            partial.finish()
        return Chunk(digest, frame.index), is_whole

    def forget(self, owner: str = "") -> None:
        """Expect nothing from ``owner`` any more, and drop what came."""
        for key in [key for key in self._open if key[0] == owner]:
            digest, _ = self._open.pop(key)
            self._store.drop_partial(digest.hex())


def read_chunk(store: BlobStore, chunk: Chunk) -> bytes | None:
    """Return the bytes of a chunk; None if the blob is not there or is shorter."""
    try:
        with store.path(chunk.digest.hex()).open("rb") as file:
            file.seek(chunk.index * CHUNK_BYTES)
            return file.read(CHUNK_BYTES) or None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AdapterError(
            f"cannot read chunk {chunk.index} of {chunk.digest.hex()}: {error.strerror or error}"
        ) from error
