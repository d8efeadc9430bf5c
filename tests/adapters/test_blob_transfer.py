"""Downloads between the wire and the store: what a crash leaves of a lie."""

import hashlib
from pathlib import Path

from federated_core.adapters.blob_store import BlobStore
from federated_core.adapters.blob_transfer import BlobReceiver
from federated_core.protocol.messages import BlobReference
from federated_core.protocol.transfer import Chunk
from federated_core.protocol.wire import CHUNK_BYTES

DATA = bytes(CHUNK_BYTES + 10)
REFERENCE = BlobReference(hashlib.sha256(DATA).digest(), len(DATA))


def test_a_whole_download_with_another_digest_begins_anew_after_a_crash(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    partial = store.open_partial(REFERENCE.digest.hex(), len(DATA), CHUNK_BYTES)
    for index, data in enumerate((b"x" * CHUNK_BYTES, b"x" * 10)):
        partial.write_chunk(index, data)
    partial.sync()  # The process ended here, before it could compare the digest.
    missing = BlobReceiver(BlobStore(tmp_path)).expect([REFERENCE])
    assert missing == (Chunk(REFERENCE.digest, 0), Chunk(REFERENCE.digest, 1))
