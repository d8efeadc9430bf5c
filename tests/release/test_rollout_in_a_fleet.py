"""Releases in a whole fleet: canaries, thresholds, ways back, latecomers, restarts, a broker that repeats itself."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from cloud_aggregator.adapters.keyring import MODEL_KEY_NAME
from cloud_aggregator.adapters.release_records import ReleaseRecords
from cloud_aggregator.adapters.release_schema import DeviceReleaseRow
from cloud_aggregator.service import KEYS_NAME
from federated_core.adapters.link import MessageArrived
from federated_core.errors import LocalMisuseError
from federated_core.protocol import messages, topics, wire
from tests.release.lone_device import larger_wins, predictions
from tests.release.small_fleet import POLICY, SmallFleet
from tests.release.tiny_releases import FLEET, RIGHT, SURER, TASK

EASY, FAINT = larger_wins(), larger_wins(scale=0.01)  # The scores of one device are a hundred times the other's.
TILTED = np.array([1, 0, 0, 1, 0.2, 0], np.float32)  # Wrong by its bias wherever scores are small.


def fleet_of(folder: Path, count: int, *, faint: frozenset[int] = frozenset(), **policy: object) -> SmallFleet:
    """Return ``count`` devices that run release 1; those in ``faint`` have faint examples."""
    examples = [FAINT if index in faint else EASY for index in range(count)]
    fleet = SmallFleet(folder, examples, msgspec.structs.replace(POLICY, **policy)).connect()
    fleet.publish(RIGHT)
    assert fleet.service.promote(TASK, fraction=1.0) == 1
    fleet.settle(60.0)
    assert set(fleet.running.values()) == {1}
    return fleet


def test_a_good_release_goes_to_its_canary_first_and_then_to_all(folder: Path) -> None:
    fleet = fleet_of(folder, 8)
    version = fleet.publish(SURER)
    assert fleet.service.promote(TASK) == 2
    fleet.settle(30.0)
    assert sorted(fleet.running.values()) == [1] * 6 + [2] * 2  # A quarter of eight.
    assert fleet.release(2)["phase"] == "soaking"
    fleet.settle(120.0)
    assert set(fleet.running.values()) == {2}
    status = fleet.release(2)
    assert (status["phase"], status["version"], status["all_committed_count"]) == ("completed", version, 8)
    assert {one["number"] for one in fleet.service.release_status()["devices"]} == {2}


def test_a_release_that_is_bad_for_30_percent_is_halted_and_rolled_back_at_the_canary(folder: Path) -> None:
    faint = frozenset(index for index in range(30) if index % 10 in {1, 4, 7})  # 9 of 30.
    fleet = fleet_of(folder, 30, faint=faint, canary_ratio=0.4)
    fleet.publish(TILTED)
    number = fleet.service.promote(TASK)
    canary = {one.device for one in fleet_members(fleet, number)}
    assert len(canary) == 12
    assert 2 <= sum(int(name[1:]) in faint for name in canary) <= 6
    highest: dict[str, int] = {}
    for _ in range(200):
        fleet.settle(5.0)
        for name, running in fleet.running.items():
            highest[name] = max(highest.get(name, 0), running)
    halted = fleet.release(number)
    assert halted["phase"] == "halted"
    assert str(halted["why"]).startswith("failed on ")
    assert {name for name, most in highest.items() if most >= number} <= canary
    way_back = fleet.release(number + 1)
    assert (way_back["kind"], way_back["restricted_to"], way_back["phase"]) == ("rollback", number, "completed")
    assert number not in fleet.running.values()
    assert {running for name, running in fleet.running.items() if name not in canary} == {1}
    for member in fleet.members.values():
        assert predictions(member.folder) == [0, 1, 1]
    kinds = [event.kind for event in fleet.events]
    assert kinds.count("release-halted") == 1
    assert kinds.index("release-halted") < kinds.index("release-way-back")


def fleet_members(fleet: SmallFleet, number: int) -> list[DeviceReleaseRow]:
    """Return the rows of a release's members."""
    with fleet.database.transaction() as tx:
        return ReleaseRecords(tx).members(number)


def test_an_operators_rollback_takes_everyone_back_without_a_download(folder: Path) -> None:
    fleet = fleet_of(folder, 4)
    fleet.publish(SURER)
    fleet.service.promote(TASK, fraction=1.0)
    fleet.settle(60.0)
    seen = len(fleet.broker.seen)
    number = fleet.service.rollback()
    fleet.settle(60.0)
    assert set(fleet.running.values()) == {number}
    chunks = [one for one in fleet.broker.seen[seen:] if isinstance(wire.decode_frame(one[1]), wire.ChunkFrame)]
    assert chunks == []
    assert fleet.release(number)["version"] == fleet.release(1)["version"]
    with pytest.raises(LocalMisuseError, match="itself a rollback"):
        fleet.service.rollback()
    assert fleet.service.rollback(to=2) == number + 1


def test_a_device_that_was_away_for_long_converges_to_the_newest_and_not_through_each(folder: Path) -> None:
    fleet = fleet_of(folder, 3)
    away = fleet.members["d01"]
    away.is_away = True
    for scale in (2, 3, 4):
        fleet.publish(RIGHT * scale)
        fleet.service.promote(TASK, fraction=1.0)
        fleet.settle(60.0)
    away.is_away = False
    away.device.desk.note_link()
    fleet.settle(60.0)
    newest = fleet.running["d00"]
    assert fleet.running == {"d00": newest, "d01": newest, "d02": newest}
    assert away.device.journal.counters().get("releases_refused", 0) == 0


def test_a_device_that_joins_late_belongs_to_the_last_stage(folder: Path) -> None:
    fleet = fleet_of(folder, 4)
    fleet.publish(SURER)
    canary_release = fleet.service.promote(TASK)
    fleet.settle(10.0)
    late = fleet.add_member("d99", *EASY)
    late.device.start()
    fleet.settle(10.0)
    assert fleet.release(canary_release)["phase"] == "soaking"
    assert fleet.running["d99"] == 1  # Not the canary's business.
    fleet.settle(120.0)
    assert fleet.running["d99"] == canary_release


def test_a_silent_canary_is_timed_out_halted_and_taken_back(folder: Path) -> None:
    fleet = fleet_of(folder, 8, canary_ratio=0.5, canary_timeout_s=900.0)
    fleet.publish(SURER)
    number = fleet.service.promote(TASK)
    for member in fleet_members(fleet, number)[:2]:
        fleet.members[member.device].is_away = True
    fleet.settle(600.0)
    assert fleet.release(number)["phase"] == "canary"
    fleet.settle(600.0)
    assert fleet.release(number)["why"] == "failed on 2 of 4 devices"
    assert number not in fleet.running.values()
    assert fleet.release(number)["all_failed_count"] == 2


def test_everything_goes_on_after_the_aggregator_was_killed_at_any_moment(folder: Path) -> None:
    fleet = fleet_of(folder, 6, canary_ratio=0.5)
    fleet.publish(SURER)
    number = fleet.service.promote(TASK)
    for _ in range(15):
        fleet.settle(3.0)
        fleet.restart()
    fleet.settle(7_200.0)
    assert set(fleet.running.values()) == {number}
    assert fleet.release(number)["phase"] == "completed"


def test_halt_and_everyone_now(folder: Path) -> None:
    fleet = fleet_of(folder, 8)
    fleet.publish(SURER)
    number = fleet.service.promote(TASK)
    fleet.settle(10.0)
    fleet.service.halt_release(number)
    fleet.settle(300.0)
    assert sorted(fleet.running.values()) == [1] * 6 + [number] * 2  # What committed stays.
    again = fleet.service.promote(TASK)
    fleet.service.advance_release(again)
    fleet.settle(20.0)
    assert set(fleet.running.values()) == {again}
    with pytest.raises(LocalMisuseError, match="no release 99"):
        fleet.service.halt_release(99)


def test_a_newer_promotion_takes_the_place_of_a_canary_under_way(folder: Path) -> None:
    fleet = fleet_of(folder, 8)
    fleet.publish(SURER)
    older = fleet.service.promote(TASK)
    fleet.settle(10.0)
    newer = fleet.service.promote(TASK)
    fleet.settle(300.0)
    assert fleet.release(older)["phase"] == "superseded"
    assert set(fleet.running.values()) == {newer}


def test_a_broker_that_repeats_every_message_it_ever_saw_changes_nothing(folder: Path) -> None:
    fleet = fleet_of(folder, 4)
    fleet.publish(SURER)
    fleet.service.promote(TASK, fraction=1.0)
    fleet.settle(60.0)
    rows = [vars(one).copy() for one in fleet_members(fleet, 2)]
    for topic, payload in list(fleet.broker.seen):
        if isinstance(topics.parse(topic), topics.DeviceUp):
            fleet.coordinator.handle(MessageArrived(topic, payload))
        for member in fleet.members.values():
            member.receive(topic, payload)
    fleet.settle(600.0)
    assert set(fleet.running.values()) == {2}
    concluded = [(row["device"], row["state"], row["concluded_at"]) for row in rows]
    assert [
        (one["device"], one["state"], one["concluded_at"]) for one in map(vars, fleet_members(fleet, 2))
    ] == concluded
    assert fleet.release(2)["phase"] == "completed"


def test_an_offer_that_a_broker_moves_to_another_device_is_no_longer_signed(folder: Path) -> None:
    fleet = fleet_of(folder, 2)
    down = topics.device_down(FLEET, "d00")
    offers = [payload for topic, payload in fleet.broker.seen if topic == down]
    with pytest.raises(Exception, match="signature"):
        fleet.members["d01"].receive(fleet.members["d01"].down, offers[0])


def test_without_the_model_key_nothing_is_promoted(folder: Path) -> None:
    fleet = fleet_of(folder, 2)
    assert fleet.service.can_sign()
    key_path = folder / KEYS_NAME / MODEL_KEY_NAME
    elsewhere = key_path.rename(folder / "usb-stick")
    assert not fleet.service.can_sign()
    with pytest.raises(LocalMisuseError, match="no key here"):
        fleet.service.promote(TASK)
    assert fleet.service.promote(TASK, model_key=elsewhere) == 2
    elsewhere.write_bytes(b"x" * 32)
    with pytest.raises(LocalMisuseError, match="not signed by this fleet's model key"):
        fleet.service.promote(TASK, model_key=elsewhere)


def test_what_a_device_says_of_releases_that_were_never_its_own_is_not_believed(folder: Path) -> None:
    fleet = fleet_of(folder, 4)
    fleet.publish(SURER)
    number = fleet.service.promote(TASK)
    liar = next(name for name in fleet.members if name not in {one.device for one in fleet_members(fleet, number)})
    before = fleet.release(number)
    lie = messages.ReleaseStatus(
        b"12345678", (messages.FamilyStatus("tiny", 7, bytes(32), messages.ReleaseConclusion(number, "failed")),)
    )
    member = fleet.members[liar]
    fleet.coordinator.handle(MessageArrived(member.up, wire.sign_message(member.key, member.up, lie)))
    assert fleet.release(number)["failed_count"] == before["failed_count"]
