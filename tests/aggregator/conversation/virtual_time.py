"""Virtual time: everything that happens is a call that is due at a moment, in one thread and one order."""

import heapq
import itertools
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from federated_core.adapters.inbox import Inbox, TimerFired

N = TypeVar("N")


class World:
    """The clock, the dice, and what is due; calls that are due at the same moment keep their order."""

    def __init__(self, seed: int = 0) -> None:
        self.now_s = 0.0
        self.rng = np.random.default_rng(seed)
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        """Let ``call`` happen after ``delay_s`` seconds."""
        heapq.heappush(self._due, (self.now_s + delay_s, next(self._serial), call))

    def run(self, duration_s: float) -> None:
        """Let everything happen that is due within ``duration_s`` seconds."""
        end_s = self.now_s + duration_s
        while self._due and self._due[0][0] <= end_s:
            self._happen()
        self.now_s = end_s

    def run_until(self, is_reached: Callable[[], bool], limit_s: float = 3600.0) -> None:
        """Let things happen until ``is_reached``; it is a failure if that takes longer than ``limit_s``."""
        end_s = self.now_s + limit_s
        while not is_reached():
            assert self._due, f"nothing is due any more after {self.now_s:.1f} s"
            assert self._due[0][0] <= end_s, f"not reached within {limit_s:.0f} s"
            self._happen()

    def _happen(self) -> None:
        self.now_s, _, call = heapq.heappop(self._due)
        call()


class SimulatedInbox(Inbox[N]):
    """An inbox whose news are handled as soon as they are due, by whoever was connected last."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self._handle: Callable[[N | TimerFired], None] | None = None
        self._timers: dict[str, int] = {}
        self._timer_serial = itertools.count()

    def connect(self, handle: Callable[[N | TimerFired], None]) -> None:
        """Hand all news to ``handle`` from now on."""
        self._handle = handle

    def close(self) -> None:
        """Forget all timers, and let no more news through: the process is gone."""
        self._handle = None
        self._timers.clear()

    @property
    def timers(self) -> frozenset[str]:
        """What is set and not due yet."""
        return frozenset(self._timers)

    def put(self, news: N) -> None:
        """Let ``news`` be handled now, after what is under way."""
        self._world.after(0.0, lambda: self._deliver(news))

    def set_timer(self, name: str, after_s: float) -> None:
        """Give ``TimerFired(name)`` after ``after_s`` seconds; replaces a timer of the same name."""
        serial = next(self._timer_serial)
        self._timers[name] = serial
        self._world.after(after_s, lambda: self._ring(name, serial))

    def cancel_timer(self, name: str) -> None:
        """Forget a timer; one that was never set is no error."""
        self._timers.pop(name, None)

    def next(self, timeout_s: float | None = None) -> N | TimerFired | None:
        """Nobody takes news from here: the world hands it out."""
        raise AssertionError("a simulated inbox has no loop of its own")

    def _ring(self, name: str, serial: int) -> None:
        if self._timers.get(name) == serial:
            del self._timers[name]
            self._deliver(TimerFired(name))

    def _deliver(self, news: N | TimerFired) -> None:
        if self._handle is not None:
            self._handle(news)


class SeededChance:
    """The device's source of chance, drawn from the world's dice."""

    def __init__(self, world: World) -> None:
        self._rng = world.rng

    def uniform(self, low: float, high: float) -> float:
        """Draw from an interval."""
        return float(self._rng.uniform(low, high))

    def token_bytes(self, count: int) -> bytes:
        """Draw bytes."""
        return self._rng.bytes(count)
