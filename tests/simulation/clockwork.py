"""Virtual time and seeded chance: what replaces clocks, timers and dice while a world runs."""

import heapq
from collections.abc import Callable
from typing import Any

import numpy as np

from federated_core.adapters.inbox import Inbox, TimerFired

EPOCH_S = 1_800_000_000.0  # What wall clocks show when a world begins.


class Schedule:
    """What will happen, by virtual time; equal times in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.event_count = 0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0

    def after(self, delay_s: float, happen: Callable[[], None]) -> None:
        """Let something happen later."""
        self._serial += 1
        heapq.heappush(self._due, (self.now_s + max(0.0, delay_s), self._serial, happen))

    def step(self, until_s: float) -> bool:
        """Let the next thing happen; False if there is none before ``until_s``."""
        if not self._due or self._due[0][0] > until_s:
            return False
        self.now_s, _, happen = heapq.heappop(self._due)
        self.event_count += 1
        happen()
        return True


class Dice:
    """Seeded draws; also what an agent takes for the operating system's randomness."""

    def __init__(self, *seed: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def uniform(self, low: float, high: float) -> float:
        """Draw from an interval."""
        return low + (high - low) * float(self._generator.random())

    def happens(self, probability: float) -> bool:
        """Draw yes or no."""
        return probability > 0.0 and float(self._generator.random()) < probability

    def below(self, bound: int) -> int:
        """Draw from 0 to ``bound - 1``."""
        return int(self._generator.random() * bound)

    def exponential(self, mean_s: float) -> float:
        """Draw a time until something that happens at any moment alike."""
        return float(self._generator.exponential(mean_s))

    def token_bytes(self, count: int) -> bytes:
        """Draw bytes."""
        return self._generator.bytes(count)


class VirtualInbox(Inbox[Any]):
    """An inbox whose timers are due in virtual time; its process takes news at once, as long as it lives."""

    def __init__(self, schedule: Schedule, handle: Callable[[Any], None]) -> None:
        super().__init__()
        self._schedule = schedule
        self._handle = handle
        self._set: dict[str, int] = {}
        self._count = 0
        self.is_open = True

    def put(self, news: Any) -> None:
        self._schedule.after(0.0, lambda: self._take(news))

    def set_timer(self, name: str, after_s: float) -> None:
        self._count += 1
        serial = self._set[name] = self._count
        self._schedule.after(after_s, lambda: self._ring(name, serial))

    def cancel_timer(self, name: str) -> None:
        self._set.pop(name, None)

    def close(self) -> None:
        """Forget everything: the process is dead."""
        self.is_open = False
        self._set.clear()

    def _ring(self, name: str, serial: int) -> None:
        if self._set.get(name) == serial:
            del self._set[name]
            self._take(TimerFired(name))

    def _take(self, news: Any) -> None:
        if self.is_open:
            self._handle(news)
