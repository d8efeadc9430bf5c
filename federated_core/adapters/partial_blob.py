"""A download that survives a restart: a sparse file of content and a bitmap of the chunks that are in it.

The bitmap on disk never claims a chunk that is not: content is synced before the bitmap is written. The bitmap is
overwritten in place, because bits are only ever set: any mixture of an old and a new bitmap is a true one.
"""

import contextlib
import hashlib
import os
import struct
from pathlib import Path

from federated_core.adapters.atomic_file import sync_folder, write_atomically
from federated_core.errors import AdapterError, RemoteProtocolError

CONTENT_SUFFIX = ".content"
BITMAP_SUFFIX = ".bitmap"
_HEADER = struct.Struct("<QQ")  # Size and chunk size in bytes; the bitmap follows.
_SYNC_EVERY_COUNT = 16  # Chunks that a power cut may cost: at 60 KiB each, about 1 MB to fetch again.
_READ_BYTES = 65536


def chunk_count_of(size_bytes: int, chunk_bytes: int) -> int:
    """Count the chunks of a blob: all full but the last."""
    return -(-size_bytes // chunk_bytes)


class PartialBlob:
    """A blob that arrives in chunks, in any order, any of them more than once."""

    def __init__(
        self, content: Path, bitmap: Path, digest: str, size_bytes: int, chunk_bytes: int, destination: Path
    ) -> None:
        """Hold a download whose files exist: made by `begin` and `resume`, asked for by `BlobStore.open_partial`."""
        self.digest = digest
        self.size_bytes = size_bytes
        self.chunk_bytes = chunk_bytes
        self.chunk_count = chunk_count_of(size_bytes, chunk_bytes)
        self._content_path = content
        self._bitmap_path = bitmap
        self._destination = destination
        self._bits = bytearray(-(-self.chunk_count // 8))
        self._unsynced_count = 0

    @classmethod
    def begin(
        cls, content: Path, bitmap: Path, digest: str, size_bytes: int, chunk_bytes: int, destination: Path
    ) -> "PartialBlob":
        """Make the two files; the content takes disk only as it arrives."""
        partial = cls(content, bitmap, digest, size_bytes, chunk_bytes, destination)
        write_atomically(bitmap, _HEADER.pack(size_bytes, chunk_bytes) + bytes(partial._bits))
        try:
            with content.open("wb") as file:
                file.truncate(size_bytes)
            sync_folder(content.parent)
        except OSError as error:
            raise AdapterError(f"cannot begin blob {digest}: {error.strerror or error}") from error
        return partial

    @classmethod
    def resume(
        cls, content: Path, bitmap: Path, digest: str, size_bytes: int, chunk_bytes: int, destination: Path
    ) -> "PartialBlob":
        """Read the bitmap of a download that began before; `AdapterError` if it is of another size."""
        partial = cls(content, bitmap, digest, size_bytes, chunk_bytes, destination)
        try:
            stored = bitmap.read_bytes()
            found_bytes = content.stat().st_size
        except OSError as error:
            raise AdapterError(f"cannot resume blob {digest}: {error.strerror or error}") from error
        header, bits = stored[: _HEADER.size], stored[_HEADER.size :]
        if (header, len(bits), found_bytes) != (
            _HEADER.pack(size_bytes, chunk_bytes),
            len(partial._bits),
            size_bytes,
        ):
            raise AdapterError(f"cannot resume blob {digest}: it began with another size or chunk size")
        partial._bits[:] = bits
        return partial

    @property
    def bitmap(self) -> bytes:
        """The chunks that are here: bit ``index % 8`` (least significant first) of byte ``index // 8``."""
        return bytes(self._bits)

    def missing(self) -> tuple[int, ...]:
        """List the chunks that are not here yet, in order."""
        return tuple(index for index in range(self.chunk_count) if not self._bits[index // 8] >> index % 8 & 1)

    def write_chunk(self, index: int, data: bytes) -> None:
        """Store one chunk; a repeated one is written again, which mends a corrupted one."""
        if not 0 <= index < self.chunk_count:
            raise RemoteProtocolError(f"chunk index: expected 0 to {self.chunk_count - 1}, got {index}")
        expected_bytes = min(self.chunk_bytes, self.size_bytes - index * self.chunk_bytes)
        if len(data) != expected_bytes:
            raise RemoteProtocolError(f"chunk {index}: expected {expected_bytes} bytes, got {len(data)}")
        try:
            with self._content_path.open("r+b") as file:
                file.seek(index * self.chunk_bytes)
                file.write(data)
                file.flush()
                self._bits[index // 8] |= 1 << index % 8
                self._unsynced_count += 1
                if self._unsynced_count >= _SYNC_EVERY_COUNT:
                    os.fdatasync(file.fileno())
                    self._save_bitmap()
        except OSError as error:
            raise AdapterError(f"cannot store chunk {index} of {self.digest}: {error.strerror or error}") from error

    def sync(self) -> None:
        """Make every chunk so far survive a power cut."""
        try:
            with self._content_path.open("r+b") as file:
                os.fdatasync(file.fileno())
            self._save_bitmap()
        except OSError as error:
            raise AdapterError(f"cannot store blob {self.digest}: {error.strerror or error}") from error

    def finish(self) -> Path:
        """Check the whole against its digest and move it into the store; on a mismatch the download is dropped."""
        if missing := self.missing():
            raise RemoteProtocolError(f"blob {self.digest}: {len(missing)} of {self.chunk_count} chunks are missing")
        try:
            found = hashlib.sha256()
            with self._content_path.open("r+b") as file:
                while block := file.read(_READ_BYTES):
                    found.update(block)
                os.fsync(file.fileno())
            if found.hexdigest() != self.digest:
                self._drop()
                raise RemoteProtocolError(f"blob: expected digest {self.digest}, got {found.hexdigest()}")
            self._content_path.replace(self._destination)
            sync_folder(self._destination.parent)
            self._drop()
        except OSError as error:
            raise AdapterError(f"cannot finish blob {self.digest}: {error.strerror or error}") from error
        return self._destination

    def _save_bitmap(self) -> None:
        with self._bitmap_path.open("r+b") as file:
            file.seek(_HEADER.size)
            file.write(self._bits)
            file.flush()
            os.fdatasync(file.fileno())
        self._unsynced_count = 0

    def _drop(self) -> None:
        for path in (self._content_path, self._bitmap_path):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
