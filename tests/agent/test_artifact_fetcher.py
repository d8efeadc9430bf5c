"""Fetching an assignment's artifacts: in order, out of order, before they are expected."""

import hashlib
from pathlib import Path

import pytest

from edge_agent.artifact_fetcher import EARLY_BYTES_MAX, ArtifactFetcher
from federated_core.adapters.blob_store import BlobStore
from federated_core.adapters.inbox import Inbox
from federated_core.protocol import messages, wire

DATA = bytes(range(256)) * 300  # Two chunks.


@pytest.fixture
def asked() -> list[messages.ChunkRequest]:
    return []


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path)


@pytest.fixture
def fetcher(store: BlobStore, asked: list[messages.ChunkRequest]) -> ArtifactFetcher:
    inbox: Inbox[object] = Inbox()
    return ArtifactFetcher(store, inbox, asked.append)


def artifact(data: bytes, *, multicast: bool) -> messages.Artifact:
    return messages.Artifact("delta", messages.BlobReference(hashlib.sha256(data).digest(), len(data)), multicast)


def frames(data: bytes) -> list[wire.ChunkFrame]:
    digest = hashlib.sha256(data).digest()
    pieces = [data[start : start + wire.CHUNK_BYTES] for start in range(0, len(data), wire.CHUNK_BYTES)]
    found = [wire.decode_frame(wire.chunk_payload(digest, index, piece)) for index, piece in enumerate(pieces)]
    return [frame for frame in found if isinstance(frame, wire.ChunkFrame)]


def test_what_is_multicast_is_not_asked_for_at_once(
    fetcher: ArtifactFetcher, asked: list[messages.ChunkRequest]
) -> None:
    assert fetcher.begin((artifact(DATA, multicast=True),)) is None
    assert not asked
    first, second = frames(DATA)
    assert fetcher.take(second) is None
    assert fetcher.take(first) == "whole"


def test_a_multicast_that_overtakes_its_assignment_is_not_fetched_again(
    fetcher: ArtifactFetcher, store: BlobStore, asked: list[messages.ChunkRequest]
) -> None:
    for frame in frames(DATA):
        assert fetcher.take(frame) is None
    assert fetcher.begin((artifact(DATA, multicast=True),)) == "whole"
    assert not asked
    assert store.get(hashlib.sha256(DATA).hexdigest()) == DATA


def test_chunks_that_nobody_wants_do_not_pile_up(fetcher: ArtifactFetcher, asked: list[messages.ChunkRequest]) -> None:
    wanted = DATA[: wire.CHUNK_BYTES]
    fetcher.take(frames(wanted)[0])
    for filler in range(EARLY_BYTES_MAX // wire.CHUNK_BYTES + 1):
        fetcher.take(frames(bytes([filler]) * wire.CHUNK_BYTES)[0])
    assert fetcher.begin((artifact(wanted, multicast=True),)) is None, "the oldest was forgotten"
    fetcher.note_silence()
    assert [request.indices for request in asked] == [(0,)]


def test_a_damaged_blob_is_given_up(fetcher: ArtifactFetcher) -> None:
    first, second = frames(DATA)
    fetcher.begin((artifact(DATA, multicast=False),))
    fetcher.take(first)
    forged = wire.decode_frame(wire.chunk_payload(hashlib.sha256(DATA).digest(), 1, bytes(len(second.data))))
    assert isinstance(forged, wire.ChunkFrame)
    assert fetcher.take(forged) == "failed"
