"""Load as recorded files of procfs tell it: others' work counts, the trainer's and its daemon's does not."""

import os
from pathlib import Path

import pytest

from edge_agent.adapters.sensors import Sensors
from edge_agent.adapters.system_load import LoadMeter, disk_free_bytes, memory_available_bytes
from edge_agent.eligibility import Policy

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
OWN_S = 0.5  # More than this process computes during one of these tests.
PID = 4242


class Board:
    """A root with a procfs whose counters a test moves, and a clock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now_s = 1000.0
        self.ticks = dict.fromkeys(("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"), 10_000)
        self.meter = LoadMeter(root, busy_cores_max=0.25, clock=lambda: self.now_s)
        (root / "proc").mkdir()
        self.write()

    def write(self) -> None:
        columns = " ".join(str(count) for count in self.ticks.values())
        (self.root / "proc/stat").write_text(f"cpu  {columns} 0 0\ncpu0 {columns} 0 0\nintr 1\n")

    def trainer(self, user_s: float, system_s: float) -> None:
        """Write the trainer's file; its name is as awkward as names may be."""
        (self.root / f"proc/{PID}").mkdir(exist_ok=True)
        times = f"{round(user_s * TICKS_PER_S)} {round(system_s * TICKS_PER_S)}"
        (self.root / f"proc/{PID}/stat").write_text(
            f"{PID} (py) R 1 (x) S 1 1 1 0 -1 4194304 900 0 0 0 {times} 0 0 39 19"
        )

    def pass_time(self, elapsed_s: float, **used_s: float) -> None:
        """Let the counters of some columns grow by seconds of one core."""
        self.now_s += elapsed_s
        for column, seconds in used_s.items():
            self.ticks[column] += round(seconds * TICKS_PER_S)
        self.write()

    def busy_cores(self, trainer_pid: int | None = None) -> float:
        busy_cores, _ = self.meter.look(trainer_pid)
        assert busy_cores is not None
        return busy_cores


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def near(cores: float, elapsed_s: float = 100.0) -> object:
    return pytest.approx(cores, abs=OWN_S / elapsed_s)


def test_the_first_look_has_nothing_to_compare_with(board: Board) -> None:
    assert board.meter.look() == (None, 0.0)


def test_two_looks_at_the_same_instant_tell_nothing(board: Board) -> None:
    board.meter.look()
    assert board.meter.look() == (None, 0.0)


@pytest.mark.parametrize("column", ["user", "system", "irq", "softirq", "steal"])
def test_work_of_others_counts(board: Board, column: str) -> None:
    board.meter.look()
    board.pass_time(100.0, **{column: 150.0})
    assert board.busy_cores() == near(1.5)


@pytest.mark.parametrize("column", ["nice", "idle", "iowait"])
def test_polite_work_and_waiting_do_not_count(board: Board, column: str) -> None:
    board.meter.look()
    board.pass_time(100.0, **{column: 150.0})
    assert board.busy_cores() == near(0.0)


def test_a_wait_counter_that_steps_back_is_no_load(board: Board) -> None:
    board.meter.look()
    board.pass_time(100.0, iowait=-40.0, user=10.0)
    assert board.busy_cores() == near(0.1)
    board.pass_time(100.0, user=-5.0)
    assert board.busy_cores() == 0.0


def test_the_kernel_time_of_our_own_trainer_does_not_count(board: Board) -> None:
    board.trainer(user_s=0.0, system_s=3.0)
    board.meter.look(PID)
    board.trainer(user_s=90.0, system_s=23.0)  # Its user time is in the nice column.
    board.pass_time(100.0, nice=90.0, system=20.0, user=30.0)
    assert board.busy_cores(PID) == near(0.3)


def test_a_trainer_that_has_gone_is_no_error(board: Board) -> None:
    board.meter.look(PID)
    board.pass_time(100.0, user=10.0)
    assert board.busy_cores(PID) == near(0.1)


def test_idle_time_counts_from_the_last_look_at_which_others_were_busy(board: Board) -> None:
    board.meter.look()
    board.pass_time(10.0, user=20.0)
    assert board.meter.look() == (near(2.0, 10.0), 0.0)
    board.pass_time(30.0)
    assert board.meter.look()[1] == 30.0
    board.pass_time(30.0, user=3.0)  # 0.1 cores: within what an idle device may use.
    assert board.meter.look()[1] == 60.0
    board.pass_time(30.0, user=30.0)
    assert board.meter.look()[1] == 0.0


def test_memory_is_what_the_kernel_says_can_be_had(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 600 kB\n")
    assert memory_available_bytes(tmp_path) == 600 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("102400\n")
    (group / "memory.max").write_text("max\n")
    assert memory_available_bytes(tmp_path) == 600 * 1024
    (group / "memory.max").write_text("202400\n")
    assert memory_available_bytes(tmp_path) == 100_000
    (group / "memory.max").write_text("50000\n")
    assert memory_available_bytes(tmp_path) == 0


def test_all_sensors_are_read_below_one_root(board: Board) -> None:
    (board.root / "proc/meminfo").write_text("MemAvailable: 600 kB\n")
    conditions = Sensors(board.root, Policy(), board.root).look()
    assert (conditions.has_external_power, conditions.busy_cores, conditions.idle_s) == (None, None, 0.0)
    assert conditions.memory_available_bytes == 600 * 1024
    assert conditions.disk_free_bytes == pytest.approx(disk_free_bytes(board.root), rel=0.2)
