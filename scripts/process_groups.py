"""Processes in named groups: what each group holds in memory, a limit over all of them, and their certain end.

A process belongs to a group by a mark in its environment, which its children inherit: a child that outlives its parent
or opens a session of its own is still counted, and still stopped.
"""

import os
import resource
import signal
import subprocess
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

MARK = "FALLOW_PROCESS_GROUP"
PAGE_BYTES = resource.getpagesize()
MIB = 2**20
PATIENCE_S = 5.0
EMPTY_LOOKS = 3  # A process in the middle of an exec shows no environment for a moment.


class MemoryLimitExceededError(RuntimeError):
    """The groups together held more memory than they were given; all of them were killed."""


class ProcessGroups:
    """Start processes in groups, sample the memory of each group, stop them all on leaving the ``with`` block."""

    def __init__(self, *, limit_bytes: int, process_address_space_bytes: int, interval_s: float = 0.15) -> None:
        self._run = uuid.uuid4().hex
        self._limit_bytes = limit_bytes
        self._address_space_bytes = process_address_space_bytes
        self._interval_s = interval_s
        self._started: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._left = threading.Event()
        self._sampler = threading.Thread(target=self._sample, name="process-groups", daemon=True)
        self._excess = ""
        self.limit_passed = threading.Event()
        self.peak_bytes: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._sampler.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._left.set()
        self._sampler.join()
        self.stop()

    def start(
        self, group: str, command: Sequence[str | Path], *, cwd: Path, environment: Mapping[str, str], log: Path
    ) -> subprocess.Popen[bytes]:
        """Start ``command`` in ``group``, in a session of its own, with its output in ``log``."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                [str(word) for word in command],
                cwd=cwd,
                env={**environment, MARK: f"{self._run}/{group}"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append((group, process))
        resource.prlimit(process.pid, resource.RLIMIT_AS, (self._address_space_bytes, self._address_space_bytes))
        return process

    def members(self) -> dict[str, list[int]]:
        """Return the ids of the live processes of each group."""
        mark = f"{MARK}={self._run}/".encode()
        found: dict[str, list[int]] = defaultdict(list)
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                environment = (folder / "environ").read_bytes()
            except OSError:  # It ended meanwhile, or is not ours to read and hence not ours.
                continue
            place = environment.find(mark)
            if place >= 0:
                group = environment[place + len(mark) :].split(b"\0", 1)[0].decode()
                found[group].append(int(folder.name))
        return found

    def resident_bytes(self) -> dict[str, int]:
        """Return what the processes of each group hold in memory now; pages that processes share count in each."""
        return {group: sum(map(_resident_bytes, ids)) for group, ids in self.members().items()}

    def ended(self) -> dict[str, int]:
        """Return the exit codes of the processes that were started and have ended, by group."""
        codes = {group: process.poll() for group, process in self._started}
        return {group: code for group, code in codes.items() if code is not None}

    def forget(self, group: str) -> None:
        """Wait for the processes of a group that were killed on purpose; the group may be started again."""
        for process in [process for name, process in self._started if name == group]:
            process.wait()
        self._started = [(name, process) for name, process in self._started if name != group]

    def check(self) -> None:
        """Raise MemoryLimitExceededError if the limit was passed."""
        if self.limit_passed.is_set():
            raise MemoryLimitExceededError(self._excess)

    def stop(self) -> None:
        """End every process of every group: ask, then insist. A second Ctrl-C does not interrupt this."""
        in_main_thread = threading.current_thread() is threading.main_thread()
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main_thread else None
        try:
            if not self._ended(signal.SIGTERM) and not self._ended(signal.SIGKILL):
                raise RuntimeError(f"processes outlived SIGKILL for {PATIENCE_S:.0f} s: {self.members()}")
            for _, process in self._started:
                process.wait()
        finally:
            if in_main_thread:
                signal.signal(signal.SIGINT, previous)

    def _ended(self, request: signal.Signals) -> bool:
        """Send ``request`` to every process, also to those born meanwhile, and say whether all ended in time."""
        deadline = time.monotonic() + PATIENCE_S
        asked: set[int] = set()
        empty_looks = 0
        while time.monotonic() < deadline:
            ids = {each for group in self.members().values() for each in group}
            empty_looks = 0 if ids else empty_looks + 1
            if empty_looks == EMPTY_LOOKS:
                return True
            for each in ids - asked:
                _send(each, request)
            asked |= ids
            time.sleep(0.05)
        return False

    def _sample(self) -> None:
        while not self._left.wait(self._interval_s):
            now = self.resident_bytes()
            for group, size_bytes in now.items():
                self.peak_bytes[group] = max(size_bytes, self.peak_bytes.get(group, 0))
            total = sum(now.values())
            if total > self._limit_bytes:
                self._excess = f"expected at most {self._limit_bytes / MIB:.0f} MiB, got {total / MIB:.0f}: {now}"
                for ids in self.members().values():
                    for each in ids:
                        _send(each, signal.SIGKILL)
                self.limit_passed.set()


def _resident_bytes(process_id: int) -> int:
    try:
        return int(Path(f"/proc/{process_id}/statm").read_text().split()[1]) * PAGE_BYTES
    except (OSError, IndexError):
        return 0


def _send(process_id: int, request: signal.Signals) -> None:
    try:
        os.kill(process_id, request)
    except ProcessLookupError:
        return
