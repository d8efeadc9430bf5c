"""Updates as they come in: whole, damaged, foreign, silent; and what the gate says of each."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from cloud_aggregator.update_intake import FETCH_TIMER, UpdateIntake
from federated_core.adapters.blob_store import BlobStore
from federated_core.adapters.inbox import Inbox, TimerFired
from federated_core.errors import RemoteProtocolError
from federated_core.learning.blob import encode_blob
from federated_core.learning.entropy import encode_symbols
from federated_core.learning.update_codec import _UPDATE, encode_update
from federated_core.protocol import keys
from federated_core.protocol.messages import BlobReference, Report
from federated_core.protocol.transfer import SILENCES_MAX, AskFor
from federated_core.protocol.wire import CHUNK_BYTES, ChunkFrame, chunk_payload, decode_frame
from tests.aggregator.round_examples import HEAD, report_of
from tests.protocol.signed_messages import SEALING_KEY

LAYOUT_DIGEST = hashlib.sha256(b"layout").digest()
DELTA = np.array([0.125, -0.125, 0.125, -0.125], np.float32)
LARGE = np.random.default_rng(0).bytes(2 * CHUNK_BYTES + 100)  # Three chunks.


def sealed_update(device: str = "a", delta: np.ndarray[tuple[int], np.dtype[np.float32]] = DELTA) -> bytes:
    blob = encode_update(delta, layout_digest=LAYOUT_DIGEST, base_digest=HEAD.base, noise_key=bytes(16))
    context = keys.update_context("fleet", device, HEAD.task, HEAD.number, HEAD.base)
    return keys.seal(SEALING_KEY.public, blob, context)


def reference(data: bytes) -> BlobReference:
    return BlobReference(hashlib.sha256(data).digest(), len(data))


def frames(data: bytes) -> list[ChunkFrame]:
    payloads = [
        chunk_payload(reference(data).digest, index, data[start : start + CHUNK_BYTES])
        for index, start in enumerate(range(0, len(data), CHUNK_BYTES))
    ]
    return [frame for frame in map(decode_frame, payloads) if isinstance(frame, ChunkFrame)]


class Side:
    """An intake with its disk and its timers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inbox: Inbox[TimerFired] = Inbox()
        self.blobs = BlobStore(folder)
        self.intake = UpdateIntake("fleet", self.blobs, self.inbox, SEALING_KEY, quiet_s=0.0)

    def restarted(self) -> "Side":
        return Side(self.folder)

    def timer(self) -> str | None:
        news = self.inbox.next(timeout_s=0.0)
        return None if news is None else news.name

    def judge(self, device: str, data: bytes) -> str:
        report: Report = report_of(device)
        announced = Report(
            report.task, report.round, "train", report.base, 40, report.metrics, reference(data), 0.25, 1.5
        )
        return self.intake.judge(device, announced, HEAD, len(DELTA), LAYOUT_DIGEST)


@pytest.fixture
def side(tmp_path: Path) -> Side:
    return Side(tmp_path)


def test_an_update_that_arrives_whole_is_opened_and_accepted(side: Side) -> None:
    data = sealed_update()
    assert not side.intake.expect("a", reference(data))
    assert side.intake.take("a", frames(data)[0])
    assert side.judge("a", data) == "accepted"
    update = side.intake.read("a", reference(data).digest, HEAD, len(DELTA), LAYOUT_DIGEST)
    # Every value is an rms of 0.125 away from 0 in steps of 4 rms: a quarter of a level, up or down to -1, 0 or 1.
    assert update.step == 0.5
    assert set(update.symbols.tolist()) <= {-1, 0, 1}


def test_chunks_arrive_in_any_order_and_more_than_once(side: Side) -> None:
    first, second, third = frames(LARGE)
    side.intake.expect("a", reference(LARGE))
    assert [side.intake.take("a", frame) for frame in (third, first, first, second)] == [False, False, False, True]
    assert side.blobs.get(reference(LARGE).digest.hex()) == LARGE
    assert not side.intake.take("a", second)  # It is whole already.


def test_an_update_that_is_on_disk_already_is_whole_at_once(side: Side) -> None:
    side.blobs.put(LARGE)
    assert side.intake.expect("a", reference(LARGE))


def test_a_report_that_comes_again_forgets_no_chunk(side: Side) -> None:
    first, second, third = frames(LARGE)
    side.intake.expect("a", reference(LARGE))
    side.intake.take("a", first)
    side.intake.take("a", second)
    assert not side.intake.expect("a", reference(LARGE))
    assert side.intake.take("a", third)


def test_nobody_writes_into_the_update_of_another(side: Side) -> None:
    side.intake.expect("a", reference(LARGE))
    for frame in frames(LARGE):
        assert not side.intake.take("b", frame)
    side.intake.expect("b", reference(sealed_update("b")))
    for frame in frames(LARGE):
        assert not side.intake.take("b", frame)
    assert not side.blobs.has(reference(LARGE).digest.hex())


def test_a_chunk_that_nobody_announced_is_passed_over(side: Side) -> None:
    assert not side.intake.take("a", frames(LARGE)[0])


def test_an_update_with_another_digest_than_announced_is_refused_and_forgotten(side: Side) -> None:
    announced = reference(LARGE)
    lie = LARGE[:-1] + bytes([LARGE[-1] ^ 1])
    side.intake.expect("a", announced)
    for frame in frames(LARGE)[:2]:
        side.intake.take("a", frame)
    last = frames(lie)[2]
    forged = ChunkFrame(announced.digest[:8], 2, last.crc32, last.data)
    with pytest.raises(RemoteProtocolError, match="expected digest"):
        side.intake.take("a", forged)
    assert side.judge("a", LARGE) == "digest-mismatch"
    assert side.blobs.partial_digests() == ()


@pytest.mark.parametrize("frame", [ChunkFrame(b"", 3, 0, b"x"), ChunkFrame(b"", 0, 0, b"too short")])
def test_a_chunk_that_does_not_fit_is_refused(side: Side, frame: ChunkFrame) -> None:
    side.intake.expect("a", reference(LARGE))
    misfit = ChunkFrame(reference(LARGE).digest[:8], frame.index, frame.crc32, frame.data)
    with pytest.raises(RemoteProtocolError, match="chunk"):
        side.intake.take("a", misfit)


def test_what_is_missing_is_asked_for_until_the_device_has_been_silent_too_often(side: Side) -> None:
    side.intake.expect("a", reference(LARGE))
    side.intake.take("a", frames(LARGE)[1])
    for _ in range(SILENCES_MAX):
        assert side.timer() == FETCH_TIMER + "a"
        assert side.intake.note_silence("a") == (AskFor(reference(LARGE).digest, (0, 2)),)
    assert side.timer() == FETCH_TIMER + "a"
    assert side.intake.note_silence("a") is None
    assert side.timer() is None


def test_a_device_that_is_forgotten_leaves_no_timer_and_no_file(side: Side) -> None:
    side.intake.expect("a", reference(LARGE))
    side.intake.take("a", frames(LARGE)[0])
    side.intake.forget("a")
    assert side.timer() is None
    assert side.blobs.partial_digests() == ()
    assert not side.intake.take("a", frames(LARGE)[1])
    side.intake.forget("never-heard-of")


def test_an_upload_goes_on_after_a_restart(side: Side) -> None:
    data = np.random.default_rng(1).bytes(20 * CHUNK_BYTES)
    side.intake.expect("a", reference(data))
    for frame in frames(data)[:16]:  # So many are synced to disk together.
        side.intake.take("a", frame)
    again = side.restarted()
    assert not again.intake.expect("a", reference(data))
    assert again.intake.note_silence("a") == (AskFor(reference(data).digest, (16, 17, 18, 19)),)
    assert [again.intake.take("a", frame) for frame in frames(data)[16:]] == [False, False, False, True]


# --- The gate


@pytest.mark.parametrize(
    ("data", "verdict"),
    [
        (sealed_update("b"), "malformed"),  # Sealed for another device: stolen or misdirected.
        (b"not sealed at all" * 10, "malformed"),
        (sealed_update(delta=DELTA[:3]), "malformed"),
        (sealed_update(delta=8 * DELTA), "too-large"),
        (sealed_update()[:-1], "malformed"),
    ],
)
def test_what_cannot_be_opened_and_decoded_is_malformed(side: Side, data: bytes, verdict: str) -> None:
    side.blobs.put(data)
    assert side.judge("a", data) == verdict


@pytest.mark.parametrize("step", [np.nan, np.inf])
def test_an_update_whose_step_is_no_number_is_not_finite(side: Side, step: float) -> None:
    fields = (1, step, LAYOUT_DIGEST[:8], HEAD.base[:8])
    blob = encode_blob(_UPDATE, len(DELTA), fields, encode_symbols(np.ones(len(DELTA), np.int32)))
    context = keys.update_context("fleet", "a", HEAD.task, HEAD.number, HEAD.base)
    data = keys.seal(SEALING_KEY.public, blob, context)
    side.blobs.put(data)
    assert side.judge("a", data) == "not-finite"


def test_an_update_for_another_base_is_malformed(side: Side) -> None:
    blob = encode_update(DELTA, layout_digest=LAYOUT_DIGEST, base_digest=bytes(32), noise_key=bytes(16))
    context = keys.update_context("fleet", "a", HEAD.task, HEAD.number, HEAD.base)
    data = keys.seal(SEALING_KEY.public, blob, context)
    side.blobs.put(data)
    assert side.judge("a", data) == "malformed"


def test_an_update_that_is_not_there_matches_no_digest(side: Side) -> None:
    assert side.judge("a", sealed_update()) == "digest-mismatch"
