"""A peer under measurement is counted whole, held to its limit, and gone afterwards."""

import os
import sys
from pathlib import Path

import pytest

from scripts.process_groups import MIB, MemoryLimitExceededError, ProcessGroups

pytestmark = pytest.mark.process

RUNAWAY = """
import os, sys
child = os.fork()
if child == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
else:
    os.waitpid(child, 0)
block = bytearray(b"x") * int(sys.argv[1])
open(sys.argv[2], "a").write(f"{os.getpid()}\\n")
sys.stdin = open(sys.argv[3])
"""
START_TIMEOUT_S = 20.0


def start_runaway(groups: ProcessGroups, folder: Path, block_bytes: int) -> list[int]:
    """Start a process and one that left its session and lost its parent; return their ids once they hold memory.

    Both then wait for ever to open a pipe that nobody writes to.
    """
    told, gate = folder / "told", folder / "gate"
    os.mkfifo(told)
    os.mkfifo(gate)
    groups.start(
        "device",
        [sys.executable, "-c", RUNAWAY, str(block_bytes), told, gate],
        cwd=folder,
        environment=dict(os.environ),
        log=folder / "log",
    )
    ids: list[int] = []
    while len(ids) < 2:
        ids += map(int, told.read_text().split())
    return ids


def is_alive(process_id: int) -> bool:
    """Whether the process still runs; a zombie does not."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def groups() -> ProcessGroups:
    return ProcessGroups(limit_bytes=400 * MIB, process_address_space_bytes=1024 * MIB, interval_s=0.02)


def test_a_child_that_left_its_session_is_counted_and_stopped(groups: ProcessGroups, tmp_path: Path) -> None:
    with groups:
        ids = start_runaway(groups, tmp_path, 50 * MIB)
        assert sorted(groups.members()["device"]) == sorted(ids)
        assert groups.resident_bytes()["device"] >= 100 * MIB
    assert [each for each in ids if is_alive(each)] == []


def test_processes_are_stopped_when_the_measurement_fails(groups: ProcessGroups, tmp_path: Path) -> None:
    ids: list[int] = []

    def fail_halfway() -> None:
        with groups:
            ids.extend(start_runaway(groups, tmp_path, MIB))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_halfway()
    assert len(ids) == 2
    assert [each for each in ids if is_alive(each)] == []


def test_a_group_beyond_the_memory_limit_is_killed_and_reported(groups: ProcessGroups, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    greedy: list[str | Path] = [
        sys.executable,
        "-c",
        "import sys; block = bytearray(b'x') * (500 << 20); open(sys.argv[1])",
        gate,
    ]
    with groups:
        groups.start("device", greedy, cwd=tmp_path, environment=dict(os.environ), log=tmp_path / "log")
        assert groups.limit_passed.wait(START_TIMEOUT_S)
    with pytest.raises(MemoryLimitExceededError, match="expected at most 400 MiB, got"):
        groups.check()
