"""How busy others keep the processor, how much memory and disk is free; from procfs below an injectable root."""

import os
import time
from collections.abc import Callable
from pathlib import Path


class LoadMeter:
    """Cores used by others between two looks: nice time and our own process tree do not count."""

    def __init__(
        self, root: Path = Path("/"), busy_cores_max: float = 0.25, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._root = root
        self._busy_cores_max = busy_cores_max
        self._last: tuple[float, float] | None = None
        self._idle_since_s: float | None = None
        self._ticks_per_s = os.sysconf("SC_CLK_TCK")

    def look(self, trainer_pid: int | None = None) -> tuple[float | None, float]:
        """Return (busy cores since the last look or None at the first, seconds that others have been idle)."""
        now_s, used_s = self._clock(), self._used_by_others_s(trainer_pid)
        last, self._last = self._last, (now_s, used_s)
        if last is None or now_s <= last[0]:
            return None, 0.0
        busy_cores = max(0.0, used_s - last[1]) / (now_s - last[0])  # Counters may step back; load may not.
        if busy_cores > self._busy_cores_max:
            self._idle_since_s = None
        elif self._idle_since_s is None:
            self._idle_since_s = last[0]
        return busy_cores, 0.0 if self._idle_since_s is None else now_s - self._idle_since_s

    def _used_by_others_s(self, trainer_pid: int | None) -> float:
        user, _nice, system, _idle, _iowait, irq, softirq, steal = self._total_ticks()
        used_ticks = user + system + irq + softirq + steal - self._trainer_system_ticks(trainer_pid)
        return used_ticks / self._ticks_per_s - self._own_s()

    def _total_ticks(self) -> list[int]:
        fields = (self._root / "proc/stat").read_text().split("\n", 1)[0].split()
        return [int(field) for field in fields[1:9]]

    def _trainer_system_ticks(self, pid: int | None) -> int:
        """Kernel time of the living trainer; its user time is in the nice column, which does not count."""
        if pid is None:
            return 0
        try:
            stat = (self._root / "proc" / str(pid) / "stat").read_text()
        except OSError:
            return 0  # It ended; its time is with the daemon's children now.
        return int(stat.rpartition(")")[2].split()[12])  # The name may hold spaces and ")".

    def _own_s(self) -> float:
        times = os.times()
        return times.user + times.system + times.children_system


def memory_available_bytes(root: Path = Path("/")) -> int:
    """Return memory that can be had without swapping, also within a container's limit."""
    available = 0
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    limit, used = (_read_number(root / "sys/fs/cgroup" / name) for name in ("memory.max", "memory.current"))
    return available if limit is None or used is None else min(available, max(0, limit - used))


def disk_free_bytes(folder: Path) -> int:
    """Return what an ordinary user may still write below ``folder``."""
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize


def _read_number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
