"""Releases on one device: what is installed, what is refused, and that what runs is touched by nothing but a commit."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent import update
from edge_agent.adapters.installer import Installer
from edge_agent.config import ReleaseSettings
from edge_agent.local_model import LocalModel
from federated_core.engines.numpy_engine import NumpyEngine
from federated_core.errors import LocalMisuseError
from federated_core.protocol import messages
from federated_core.protocol.keys import SigningKey
from federated_core.protocol.wire import ChunkFrame
from federated_core.release.manifest import key_id
from tests.release.lone_device import LoneDevice, TinyAggregator, add_examples, larger_wins, predictions
from tests.release.tiny_releases import (
    FAMILY,
    ISSUED_AT,
    OVERFLOWING,
    RIGHT,
    SURER,
    WRONG,
    TinyRelease,
    reference,
    tiny_release,
)

RIGHT_ANSWERS, WRONG_ANSWERS = [0, 1, 1], [1, 0, 0]
FIRST = tiny_release(1, RIGHT)


def device_that_runs(folder: Path, release: TinyRelease = FIRST) -> LoneDevice:
    """Return a device with examples that committed ``release``."""
    add_examples(folder, *larger_wins())
    device = LoneDevice(folder, TinyAggregator(release)).start().settle()
    assert device.aggregator.last is not None
    assert device.aggregator.last.running == release.manifest.number
    return device


def offer(device: LoneDevice, release: TinyRelease) -> messages.FamilyStatus:
    """Let the aggregator have ``release`` too, and return what the device says when it is quiet again."""
    device.aggregator.releases.append(release)
    device.desk.receive(messages.ReleaseAnnouncement(release.manifest.number, 4.0))
    device.settle(device.inbox.now_s + 5_000.0)
    assert device.aggregator.last is not None
    return device.aggregator.last


def test_a_device_without_anything_installs_the_first_release_and_says_so(folder: Path) -> None:
    with pytest.raises(LocalMisuseError, match="installed are none"):
        LocalModel(folder)
    device = device_that_runs(folder)
    assert predictions(folder) == RIGHT_ANSWERS
    assert device.aggregator.last == messages.FamilyStatus(
        FAMILY, 1, FIRST.manifest.checkpoint.digest, messages.ReleaseConclusion(1, "committed")
    )


def test_a_newer_release_is_announced_fetched_tried_and_committed(folder: Path) -> None:
    device = device_that_runs(folder)
    assert offer(device, tiny_release(2, SURER)).running == 2
    assert predictions(folder) == RIGHT_ANSWERS
    pointer = Installer(folder / "releases").read_pointer(FAMILY)
    assert pointer is not None
    assert (pointer.release.number, pointer.previous and pointer.previous.number) == (2, 1)


def test_a_rollback_is_a_new_number_and_fetches_nothing(folder: Path) -> None:
    device = device_that_runs(folder)
    offer(device, tiny_release(2, SURER))
    device.sent.clear()
    assert offer(device, tiny_release(3, RIGHT, version=1)).running == 3
    assert not [message for message in device.sent if isinstance(message, messages.ChunkRequest)]


def test_no_more_than_what_runs_and_its_predecessor_is_kept(folder: Path) -> None:
    device = device_that_runs(folder)
    for number in range(2, 6):
        offer(device, tiny_release(number, RIGHT * number))
    assert len(list((folder / "releases" / FAMILY / "content").iterdir())) == 2
    assert not list((folder / "downloads").glob("*/*"))


# --- Refused before anything is fetched


STRANGER = SigningKey(b"s" * 32)


def forged(release: TinyRelease, **changes: object) -> TinyRelease:
    """Return ``release`` with another envelope."""
    signed = msgspec.structs.replace(release.signed, **changes)
    return TinyRelease(release.manifest, signed, release.fetch, release.blobs)


def refused_releases() -> dict[str, tuple[TinyRelease, messages.ReleaseReason]]:
    """Each kind of release that no device must take, and the word for it."""
    good = tiny_release(2, SURER)
    body = good.signed.body
    return {
        "wrong key": (tiny_release(2, SURER, key=STRANGER), "wrong-key"),
        "wrong key that names ours": (
            forged(tiny_release(2, SURER, key=STRANGER), key_id=good.signed.key_id),
            "bad-signature",
        ),
        "flipped byte": (forged(good, body=body[:40] + bytes([body[40] ^ 1]) + body[41:]), "bad-signature"),
        "truncated": (forged(good, body=body[:-1]), "bad-signature"),
        "expired": (tiny_release(2, SURER, expires_at=ISSUED_AT + 30), "expired"),
        "wrong fleet": (tiny_release(2, SURER, fleet="other"), "wrong-fleet"),
        "wrong family": (tiny_release(2, SURER, family="speech"), "wrong-family"),
        "oversized": (
            tiny_release(2, SURER, checkpoint=messages.BlobReference(b"c" * 32, 2 * 2**20)),
            "oversized",
        ),
    }


@pytest.mark.parametrize("kind", refused_releases())
def test_a_release_that_is_not_to_be_trusted_is_refused_by_its_own_word(folder: Path, kind: str) -> None:
    add_examples(folder, *larger_wins())
    settings = ReleaseSettings(families=(FAMILY,), size_max_mib=1)
    device = LoneDevice(folder, TinyAggregator(FIRST), settings=settings).start().settle()
    release, word = refused_releases()[kind]
    device.trial.pieces.clear()
    device.sent.clear()
    status = offer(device, release)
    refusals = [one.refused for one in device.aggregator.statuses if one.refused is not None]
    assert [(one.number, one.outcome, one.reason) for one in refusals[:1]] == [(2, "refused", word)]
    assert (status.running, predictions(folder)) == (1, RIGHT_ANSWERS)
    assert not device.trial.pieces
    assert not [message for message in device.sent if isinstance(message, messages.ChunkRequest)]
    assert device.journal.counters()["releases_refused"] >= 1


@pytest.mark.parametrize("number", [1, 2])
def test_a_replayed_offer_changes_nothing(folder: Path, number: int) -> None:
    device = device_that_runs(folder)
    second = tiny_release(2, SURER)
    offer(device, second)
    device.trial.pieces.clear()
    before = device.state
    for _ in range(3):
        device.desk.receive({1: FIRST, 2: second}[number].offer)
    device.settle(device.inbox.now_s + 5_000.0)
    assert (device.state, device.trial.pieces) == (before, [])
    assert predictions(folder) == RIGHT_ANSWERS
    assert device.journal.counters()["releases_refused"] == 3


def test_a_device_that_lost_its_journal_still_refuses_what_is_older_than_what_runs(folder: Path) -> None:
    device = device_that_runs(folder)
    offer(device, tiny_release(3, SURER))
    device.journal.close()
    for path in folder.glob("journal.db*"):
        path.unlink()
    again = LoneDevice(folder, TinyAggregator())
    again.desk.start()
    again.desk.receive(tiny_release(2, WRONG).offer)
    again.settle(1_000.0)
    assert not again.trial.pieces
    assert predictions(folder) == RIGHT_ANSWERS
    assert LocalModel(folder, engine=NumpyEngine()).release.number == 3


def test_a_clock_that_was_set_back_does_not_revive_an_expired_release(folder: Path) -> None:
    device = device_that_runs(folder)
    later = ISSUED_AT + 40_000
    offer(device, tiny_release(2, SURER, issued_at=later, expires_at=later + 10))  # Proof that it is later.
    device.wall_s = 0.0
    status = offer(device, tiny_release(3, WRONG, expires_at=later - 1))
    assert status.running == 2
    assert [one.refused.reason for one in device.aggregator.statuses if one.refused] == ["expired"]


def test_a_release_cannot_hide_behind_an_announcement(folder: Path) -> None:
    device = device_that_runs(folder)
    said = len(device.aggregator.statuses)
    for _ in range(50):
        device.desk.receive(messages.ReleaseAnnouncement(9, 4.0))  # Replayed: one status, not fifty.
    device.settle(device.inbox.now_s + 10.0)
    assert len(device.aggregator.statuses) == said + 1


# --- Refused by its content


def changed_blob(release: TinyRelease, kind: str, data: bytes) -> TinyRelease:
    """Return ``release`` with a fetch plan that leads to other bytes for one artifact."""
    fetch = tuple(
        msgspec.structs.replace(one, blob=reference(data)) if one.kind == kind else one for one in release.fetch
    )
    return TinyRelease(release.manifest, release.signed, fetch, {**release.blobs, reference(data).digest: data})


def test_a_keyframe_that_leads_elsewhere_is_refused(folder: Path) -> None:
    device = device_that_runs(folder)
    other = tiny_release(2, WRONG)
    keyframe = next(other.blobs[one.blob.digest] for one in other.fetch if one.kind == "keyframe")
    status = offer(device, changed_blob(tiny_release(2, SURER), "keyframe", keyframe))
    assert status.concluded is not None
    assert (status.running, status.concluded.outcome, status.concluded.reason) == (1, "failed", "digest-mismatch")
    assert predictions(folder) == RIGHT_ANSWERS


def test_a_blob_that_a_broker_tampered_with_is_not_installed_and_asked_for_again(folder: Path) -> None:
    device = device_that_runs(folder)
    release = tiny_release(2, SURER)
    lies = TinyRelease(
        release.manifest, release.signed, release.fetch, {key: data[:-1] + b"!" for key, data in release.blobs.items()}
    )
    device.aggregator.releases.append(lies)
    device.desk.receive(messages.ReleaseAnnouncement(2, 0.0))
    device.settle(device.inbox.now_s + 60.0)
    assert (device.trial.pieces[-1].manifest.number, predictions(folder)) == (1, RIGHT_ANSWERS)
    assert isinstance(device.state, update.Idle | update.Downloading)
    device.aggregator.releases[-1] = release
    device.settle(device.inbox.now_s + 5_000.0)
    assert device.aggregator.last is not None
    assert device.aggregator.last.running == 2


def test_a_bundle_of_another_family_is_refused(folder: Path) -> None:
    device = device_that_runs(folder)
    status = offer(device, tiny_release(2, SURER, family="speech"))
    assert status.family == "speech"
    assert status.concluded is not None
    assert (status.running, status.concluded.reason) == (0, "wrong-family")
    assert predictions(folder) == RIGHT_ANSWERS


def test_bytes_that_are_no_bundle_do_not_load(folder: Path) -> None:
    device = device_that_runs(folder)
    status = offer(device, tiny_release(2, SURER, bundle=b"not a bundle at all"))
    assert status.concluded is not None
    assert (status.running, status.concluded.reason) == (1, "does-not-load")


def test_a_bundle_that_rotted_in_the_agents_own_store_is_fetched_again(folder: Path) -> None:
    device = LoneDevice(folder, TinyAggregator())
    bundle = FIRST.manifest.bundle.digest.hex()
    device.blobs.put(FIRST.blobs[FIRST.manifest.bundle.digest])
    device.blobs.path(bundle).write_bytes(b"rot")
    device.start()
    assert offer(device, FIRST).running == 1


def test_a_bundle_that_training_fetched_already_is_not_fetched_again(folder: Path) -> None:
    device = LoneDevice(folder, TinyAggregator())
    device.blobs.put(FIRST.blobs[FIRST.manifest.bundle.digest])
    device.start()
    assert offer(device, FIRST).running == 1
    asked = {message.digest for message in device.sent if isinstance(message, messages.ChunkRequest)}
    assert asked == {one.blob.digest for one in FIRST.fetch if one.kind == "keyframe"}


# --- Rolled back by its trial


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize(
    ("vector", "reason"), [(WRONG, "less-accurate"), (OVERFLOWING, "not-finite")], ids=["less accurate", "overflow"]
)
def test_a_release_that_fails_its_trial_is_rolled_back_and_never_tried_again(
    folder: Path, vector: NDArray[np.float32], reason: str
) -> None:
    device = device_that_runs(folder)
    status = offer(device, tiny_release(2, vector))
    assert status.concluded is not None
    assert (status.running, status.concluded.outcome, status.concluded.reason) == (1, "failed", reason)
    assert predictions(folder) == RIGHT_ANSWERS
    tried = len(device.trial.pieces)
    device.desk.receive(device.aggregator.releases[-1].offer)
    device.settle(device.inbox.now_s + 100_000.0)
    assert len(device.trial.pieces) == tried
    assert len(list((folder / "releases" / FAMILY / "content").iterdir())) == 1


def test_a_release_may_lose_what_its_manifest_allows(folder: Path) -> None:
    device = device_that_runs(folder)
    assert offer(device, tiny_release(2, WRONG, accuracy_drop_max=1.0)).running == 2
    assert predictions(folder) == WRONG_ANSWERS


def test_a_device_without_examples_tries_zeros_and_takes_what_is_finite(folder: Path) -> None:
    device = LoneDevice(folder, TinyAggregator(FIRST)).start().settle()
    assert offer(device, tiny_release(2, WRONG)).running == 2


def test_a_trial_that_dies_three_times_is_given_up(folder: Path) -> None:
    device = device_that_runs(folder)
    device.trial.behaviour = "dies"
    status = offer(device, tiny_release(2, SURER))
    assert status.concluded is not None
    assert (status.running, status.concluded.reason) == (1, "crashed")
    assert predictions(folder) == RIGHT_ANSWERS


def test_a_trial_that_hangs_is_ended_and_given_up(folder: Path) -> None:
    device = device_that_runs(folder)
    device.trial.behaviour = "hangs"
    status = offer(device, tiny_release(2, SURER))
    assert status.concluded is not None
    assert (status.running, status.concluded.reason) == (1, "timed-out")
    assert device.trial.pid is None


def test_a_status_is_repeated_until_it_is_acknowledged(folder: Path) -> None:
    device = device_that_runs(folder)
    device.aggregator.is_deaf = True
    device.sent.clear()
    device.desk.note_link()
    device.settle(device.inbox.now_s + 200.0)
    assert 3 <= len(device.sent) <= 5  # After 30, 60 and 120 s.
    device.aggregator.is_deaf = False
    device.settle(device.inbox.now_s + 2_000.0)
    said = len(device.sent)
    device.settle(device.inbox.now_s + 10_000.0)
    assert len(device.sent) == said


def test_an_announcement_between_a_status_and_its_acknowledgement_is_not_forgotten(folder: Path) -> None:
    device = device_that_runs(folder)
    device.desk.note_link()  # The acknowledgement waits in the inbox.
    device.aggregator.releases.append(tiny_release(2, SURER))
    device.inbox.news.insert(0, messages.ReleaseAnnouncement(2, 4.0))
    device.settle(device.inbox.now_s + 60.0)
    assert device.aggregator.last is not None
    assert device.aggregator.last.running == 2


def test_chunks_that_nobody_waits_for_are_ignored(folder: Path) -> None:
    device = device_that_runs(folder)
    device.desk.take(ChunkFrame(bytes(8), 0, 0, b"x"))
    assert predictions(folder) == RIGHT_ANSWERS


def test_damaged_bytes_of_what_runs_make_the_device_go_back_to_what_ran_before(folder: Path) -> None:
    device = device_that_runs(folder)
    offer(device, tiny_release(2, SURER))
    pointer = Installer(folder / "releases").read_pointer(FAMILY)
    assert pointer is not None
    checkpoint = Installer(folder / "releases").content_path(FAMILY, pointer.release.content) / "checkpoint"
    checkpoint.write_bytes(b"rot" + checkpoint.read_bytes()[3:])
    again = LoneDevice(folder, device.aggregator).start().settle()
    assert again.aggregator.last is not None
    assert again.aggregator.last.running == 1
    assert predictions(folder) == RIGHT_ANSWERS


@pytest.mark.parametrize("damage", [b"", b"\xc1\xc1"])
def test_a_pointer_that_was_lost_is_put_back_from_the_journal(folder: Path, damage: bytes) -> None:
    device = device_that_runs(folder)
    device.journal.close()
    path = Installer(folder / "releases").pointer_path(FAMILY)
    path.write_bytes(damage) if damage else path.unlink()
    LoneDevice(folder, device.aggregator).start()
    assert predictions(folder) == RIGHT_ANSWERS
    assert LocalModel(folder, engine=NumpyEngine()).release.number == 1


def test_the_key_names_itself_by_its_first_bytes() -> None:
    assert key_id(STRANGER.public) == STRANGER.public[:8]
