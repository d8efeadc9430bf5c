"""Blobs and half-arrived blobs on a real disk, across restarts, with what a disk does to them."""

import hashlib
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federated_core.adapters.blob_store import BlobStore
from federated_core.errors import AdapterError, LocalMisuseError, RemoteProtocolError

DATA = bytes(range(250))
DIGEST = hashlib.sha256(DATA).hexdigest()
CHUNKS = [DATA[start : start + 100] for start in (0, 100, 200)]


def files(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob("*") if path.is_file())


def test_a_blob_is_found_by_its_digest(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    assert store.put(DATA) == DIGEST
    assert store.put(DATA) == DIGEST
    assert (store.get(DIGEST), store.has(DIGEST), store.digests()) == (DATA, True, (DIGEST,))
    assert store.path(DIGEST).read_bytes() == DATA
    assert store.path(DIGEST).stat().st_mode & 0o777 == 0o600
    assert BlobStore(tmp_path).get(DIGEST) == DATA
    store.delete(DIGEST)
    store.delete(DIGEST)
    assert (store.has(DIGEST), store.digests(), files(tmp_path)) == (False, (), [])


def test_a_rotten_blob_is_refused_and_removed(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    store.put(DATA)
    store.path(DIGEST).write_bytes(DATA[:-1])
    with pytest.raises(AdapterError, match="is corrupted"):
        store.get(DIGEST)
    with pytest.raises(AdapterError, match="no blob"):
        store.get(DIGEST)


def test_putting_a_rotten_blob_again_mends_it(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    store.put(DATA)
    store.path(DIGEST).write_bytes(b"rot")
    store.put(DATA)
    assert store.get(DIGEST) == DATA


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", DIGEST.upper(), DIGEST[:-1], DIGEST + "\n"])
def test_only_a_digest_names_a_file(tmp_path: Path, digest: str) -> None:
    with pytest.raises(LocalMisuseError, match="64 lower-case"):
        BlobStore(tmp_path).path(digest)


def test_too_large_and_too_full_are_said_with_figures(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="may have 200 bytes, this one has 250"):
        BlobStore(tmp_path, size_max_bytes=200).put(DATA)
    with pytest.raises(AdapterError, match="may have 200 bytes, this one has 250"):
        BlobStore(tmp_path, size_max_bytes=200).open_partial(DIGEST, 250, 100)
    full = BlobStore(tmp_path, reserve_bytes=10**18)
    with pytest.raises(AdapterError, match=r"no room: needs 0\.0 MB, has 0\.0 MB"):
        full.put(DATA)
    with pytest.raises(AdapterError, match=r"no room: needs 50\.0 MB, has 0\.0 MB"):
        full.open_partial(DIGEST, 50_000_000, 61440)
    assert files(tmp_path) == []


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from federated_core.adapters.blob_store import BlobStore\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "BlobStore(Path(sys.argv[1])).put(bytes(10000))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert "AdapterError: cannot write" in answer.stderr
    assert "File too large" in answer.stderr
    assert files(tmp_path) == []


@given(order=st.permutations([0, 1, 2, 2, 0]), restart_after=st.integers(0, 5))
def test_chunks_in_any_order_make_the_blob_also_across_a_restart(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], restart_after: int
) -> None:
    root = tmp_path_factory.mktemp("store")
    partial = BlobStore(root).open_partial(DIGEST, 250, 100)
    for count, index in enumerate(order):
        if count == restart_after:
            partial.sync()
            partial = BlobStore(root).open_partial(DIGEST, 250, 100)
            assert partial.missing() == tuple(sorted({0, 1, 2} - set(order[:count])))
        partial.write_chunk(index, CHUNKS[index])
    assert (partial.missing(), partial.bitmap, partial.chunk_count) == ((), b"\x07", 3)
    assert partial.finish().read_bytes() == DATA
    store = BlobStore(root)
    assert (store.get(DIGEST), store.partial_digests(), files(root)) == (DATA, (), [DIGEST])


def test_chunks_are_durable_without_being_asked_every_now_and_then(tmp_path: Path) -> None:
    data = bytes(1000)
    digest = hashlib.sha256(data).hexdigest()
    partial = BlobStore(tmp_path).open_partial(digest, 1000, 50)
    for index in range(17):
        partial.write_chunk(index, bytes(50))
    assert BlobStore(tmp_path).open_partial(digest, 1000, 50).missing() == (16, 17, 18, 19)


def test_a_chunk_of_the_wrong_length_or_place_is_theirs_to_mend(tmp_path: Path) -> None:
    partial = BlobStore(tmp_path).open_partial(DIGEST, 250, 100)
    with pytest.raises(RemoteProtocolError, match="expected 100 bytes, got 99"):
        partial.write_chunk(0, bytes(99))
    with pytest.raises(RemoteProtocolError, match="expected 50 bytes, got 100"):
        partial.write_chunk(2, bytes(100))
    for index in (-1, 3):
        with pytest.raises(RemoteProtocolError, match=f"expected 0 to 2, got {index}"):
            partial.write_chunk(index, bytes(100))
    with pytest.raises(RemoteProtocolError, match="3 of 3 chunks are missing"):
        partial.finish()


def test_content_that_is_not_what_was_announced_is_dropped(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    partial = store.open_partial(DIGEST, 250, 100)
    for index, chunk in enumerate(CHUNKS):
        partial.write_chunk(index, bytes(len(chunk)))
    with pytest.raises(RemoteProtocolError, match=f"expected digest {DIGEST}"):
        partial.finish()
    assert (store.has(DIGEST), files(tmp_path)) == (False, [])


def test_a_corrupted_chunk_is_mended_by_its_repetition(tmp_path: Path) -> None:
    partial = BlobStore(tmp_path).open_partial(DIGEST, 250, 100)
    for index, chunk in enumerate([bytes(100), *CHUNKS[1:]]):
        partial.write_chunk(index, chunk)
    partial.write_chunk(0, CHUNKS[0])
    assert partial.finish().read_bytes() == DATA


def test_another_size_begins_anew(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    partial = store.open_partial(DIGEST, 250, 100)
    partial.write_chunk(0, CHUNKS[0])
    partial.sync()
    assert store.open_partial(DIGEST, 250, 100).missing() == (1, 2)
    assert store.open_partial(DIGEST, 250, 125).missing() == (0, 1)
    assert store.open_partial(DIGEST, 251, 125).missing() == (0, 1, 2)
    with pytest.raises(RemoteProtocolError, match="expected a size and chunks"):
        store.open_partial(DIGEST, 250, 0)


def test_an_empty_blob_has_no_chunks(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"").hexdigest()
    assert BlobStore(tmp_path).open_partial(digest, 0, 100).finish().read_bytes() == b""


def test_open_downloads_are_bounded_until_one_is_dropped(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, open_max=1)
    store.open_partial(DIGEST, 250, 100)
    store.open_partial(DIGEST, 250, 100)
    other = "0" * 64
    with pytest.raises(AdapterError, match="1 downloads are open, at most 1"):
        store.open_partial(other, 250, 100)
    assert store.partial_digests() == (DIGEST,)
    store.drop_partial(DIGEST)
    assert store.open_partial(other, 250, 100).missing() == (0, 1, 2)


def test_leftovers_of_a_crash_are_swept_and_downloads_are_kept(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    store.put(DATA)
    store.open_partial(DIGEST, 250, 100)
    (tmp_path / "blobs" / f"{DIGEST}.0badc0de.tmp").write_bytes(b"half")
    (tmp_path / "partials" / f"{'0' * 64}.content").write_bytes(b"without its bitmap")
    (tmp_path / "partials" / f"{'1' * 64}.bitmap").write_bytes(b"without its content")
    assert BlobStore(tmp_path).partial_digests() == (DIGEST,)
    assert files(tmp_path) == sorted([DIGEST, f"{DIGEST}.bitmap", f"{DIGEST}.content"])


def test_a_folder_that_cannot_be_made_is_an_adapter_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(AdapterError, match="cannot open the blob store"):
        BlobStore(tmp_path / "file")
