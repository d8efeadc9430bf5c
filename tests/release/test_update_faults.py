"""SIGKILL, power cut and full disk at every durable operation of an update, in every state of its machine.

The cases are not written down: the machine's own states say what must have been hit, and the disk counts operations.
"""

import shutil
import typing
from pathlib import Path

import pytest

from edge_agent import update
from edge_agent.local_model import LocalModel
from federated_core.engines.numpy_engine import NumpyEngine
from tests.release.faulty_disk import FaultyDisk, FaultyJournal, Killed
from tests.release.lone_device import LoneDevice, TinyAggregator, add_examples, larger_wins, predictions
from tests.release.tiny_releases import FAMILY, RIGHT, SURER, WRONG, TinyRelease, tiny_release

RIGHT_ANSWERS = [0, 1, 1]
STATES = {state.__name__ for state in typing.get_args(update.UpdateState)}
FIRST = tiny_release(1, RIGHT)
GOOD, BAD = tiny_release(2, SURER), tiny_release(2, WRONG)
STATES_OF_GOOD = STATES - {"RollingBack"}
STATES_OF_BAD = STATES - {"Committing"}


@pytest.fixture
def prepared(folder: Path) -> Path:
    """Return the folder of a device that runs the first release."""
    home = folder / "home"
    add_examples(home, *larger_wins())
    device = LoneDevice(home, TinyAggregator(FIRST)).start().settle()
    device.journal.close()
    return home


class Run:
    """An update on a copy of the prepared device, on a disk that fails."""

    def __init__(self, prepared: Path, release: TinyRelease, name: str, kill_at: int | None) -> None:
        self.home = prepared.parent / name
        shutil.copytree(prepared, self.home)
        self.aggregator = TinyAggregator(FIRST, release)
        self.states_seen: set[str] = set()
        self.operation_count = 0
        self.was_killed = False
        with pytest.MonkeyPatch.context() as monkeypatch:
            self.disk = FaultyDisk(self.home, monkeypatch)
            self.disk.kill_at = kill_at
            journal = FaultyJournal(self.home / "journal.db", self.disk)
            try:
                self.device = LoneDevice(self.home, self.aggregator, journal=journal)
                self.disk.note = lambda: self.states_seen.add(type(self.device.state).__name__)
                self.device.start().settle()
            except Killed:
                self.was_killed = True
            self.operation_count = self.disk.operation_count
        journal.close()

    def survivors(self, mode: str) -> Path:
        """Return the folder as it is found after the end of the process, or of the power."""
        if mode == "killed":
            return self.home
        rebuilt = self.home.with_name(f"{self.home.name}-rebuilt")
        self.disk.cut_power(rebuilt)
        return rebuilt

    def discard(self) -> None:
        """Remove what the run left."""
        self.disk.close()
        for path in self.home.parent.glob(f"{self.home.name}*"):
            shutil.rmtree(path)


def check_outcome(home: Path, device: LoneDevice, release: TinyRelease) -> None:
    """What must hold in the end, whatever happened: a working model, the right report, nothing left over."""
    status = device.aggregator.last
    assert status is not None
    assert status.concluded is not None
    expected = (2, "committed") if release is GOOD else (1, "failed")
    assert (status.running, status.concluded.outcome, status.concluded.number) == (*expected, 2)
    assert predictions(home) == RIGHT_ANSWERS
    assert device.state == update.Idle(status.concluded)
    leftovers = [*home.rglob("*.tmp"), *(home / "downloads").glob("*/*"), *home.glob("releases/*/scratch")]
    assert leftovers == []
    assert len(list((home / "releases" / FAMILY / "content").iterdir())) == status.running


@pytest.mark.parametrize("mode", ["killed", "power cut"])
@pytest.mark.parametrize("release", [GOOD, BAD], ids=["good", "bad"])
def test_an_update_cut_short_anywhere_ends_with_a_working_model(
    prepared: Path, mode: str, release: TinyRelease
) -> None:
    whole = Run(prepared, release, "whole", None)
    check_outcome(whole.home, whole.device, release)
    expected_states = STATES_OF_GOOD if release is GOOD else STATES_OF_BAD
    assert whole.states_seen == expected_states
    states_hit: set[str] = set()
    for kill_at in range(1, whole.operation_count + 1):
        run = Run(prepared, release, "cut", kill_at)
        assert run.was_killed
        states_hit |= run.states_seen
        home = run.survivors(mode)
        assert predictions(home) == RIGHT_ANSWERS, f"no working model after operation {kill_at}"
        again = LoneDevice(home, run.aggregator).start().settle()
        check_outcome(home, again, release)
        tried = len(again.trial.pieces)
        again.desk.receive(release.offer)  # Whatever it was, it is not tried again.
        again.settle(again.inbox.now_s + 1_000.0)
        assert len(again.trial.pieces) == tried
        again.journal.close()
        run.discard()
    assert states_hit == expected_states


@pytest.mark.parametrize("release", [GOOD, BAD], ids=["good", "bad"])
def test_a_disk_that_is_full_from_any_moment_on_leaves_what_runs_and_goes_on_when_there_is_room(
    prepared: Path, release: TinyRelease
) -> None:
    whole = Run(prepared, release, "whole", None)
    for full_at in range(1, whole.operation_count + 1, 3):
        home = prepared.parent / "full"
        shutil.copytree(prepared, home)
        with pytest.MonkeyPatch.context() as monkeypatch:
            disk = FaultyDisk(home, monkeypatch)
            journal = FaultyJournal(home / "journal.db", disk)
            device = LoneDevice(home, TinyAggregator(FIRST, release), journal=journal)

            def fill(disk: FaultyDisk = disk, full_at: int = full_at) -> None:
                disk.is_full |= disk.operation_count >= full_at

            disk.note = fill
            device.start().settle(3_000.0)
            assert predictions(home) == RIGHT_ANSWERS, f"no working model on a disk full at operation {full_at}"
            disk.note = lambda: None
            disk.is_full = False
            device.settle(60_000.0)
        status = device.aggregator.last
        assert status is not None
        assert status.concluded is not None
        assert predictions(home) == RIGHT_ANSWERS
        assert status.running == (2 if status.concluded.outcome == "committed" else 1)
        assert status.concluded.number == 2
        if status.concluded.reason is not None:
            assert status.concluded.reason in {"no-room", "less-accurate"}
        assert not list(home.rglob("*.tmp"))
        journal.close()
        disk.close()
        shutil.rmtree(home)
    whole.discard()


@pytest.mark.parametrize("behaviour", ["dies", "hangs"])
def test_a_restart_in_the_middle_of_a_trial_uses_up_an_attempt(prepared: Path, behaviour: str) -> None:
    aggregator = TinyAggregator(FIRST, GOOD)
    attempts = []
    for _ in range(6):
        device = LoneDevice(prepared, aggregator)
        device.trial.behaviour = "hangs"
        device.start().settle(60.0)  # And then somebody pulls the plug.
        if isinstance(device.state, update.Installing):
            attempts.append(device.state.attempt)
        device.journal.close()
    assert attempts == [1, 2, 3]
    assert aggregator.last is not None
    assert aggregator.last.concluded is not None
    assert (aggregator.last.running, aggregator.last.concluded.reason) == (1, "crashed")
    assert predictions(prepared) == RIGHT_ANSWERS
    assert LocalModel(prepared, engine=NumpyEngine()).release.number == 1


def test_the_simulated_power_cut_finds_a_missing_sync(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FaultyDisk(prepared, monkeypatch)
    path = prepared / "careless"
    path.write_bytes(b"not synced")
    rebuilt = prepared.parent / "rebuilt"
    disk.cut_power(rebuilt)
    assert not (rebuilt / "careless").exists()
    assert predictions(rebuilt) == RIGHT_ANSWERS
    disk.close()
