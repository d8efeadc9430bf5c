"""The one queue of a loop: news from other threads, and timers that become news when they are due."""

import heapq
import itertools
import queue
import time
from typing import Generic, TypeVar

import msgspec

N = TypeVar("N")


class TimerFired(msgspec.Struct, frozen=True):
    """A timer that was set is due."""

    name: str


class Inbox(Generic[N]):
    """News in order of arrival; only the owner's thread sets timers and takes news."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[N] = queue.SimpleQueue()
        self._due: list[tuple[float, int, str]] = []
        self._current: dict[str, int] = {}
        self._serial = itertools.count()

    def put(self, news: N) -> None:
        """Add news; safe from any thread, never blocks."""
        self._queue.put(news)

    def set_timer(self, name: str, after_s: float) -> None:
        """Give ``TimerFired(name)`` after ``after_s`` seconds; replaces a timer of the same name."""
        serial = next(self._serial)
        self._current[name] = serial
        heapq.heappush(self._due, (time.monotonic() + after_s, serial, name))

    def cancel_timer(self, name: str) -> None:
        """Forget a timer; one that was never set is no error."""
        self._current.pop(name, None)

    def next(self, timeout_s: float | None = None) -> N | TimerFired | None:
        """Wait for news or a due timer; None after ``timeout_s`` seconds without either."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._drop_cancelled()
            now = time.monotonic()
            if self._due and self._due[0][0] <= now:
                _, _, name = heapq.heappop(self._due)
                del self._current[name]
                return TimerFired(name)
            ends = [end for end in (deadline, self._due[0][0] if self._due else None) if end is not None]
            try:
                return self._queue.get(timeout=max(0.0, min(ends) - now) if ends else None)
            except queue.Empty:
                if deadline is not None and time.monotonic() >= deadline:
                    return None

    def _drop_cancelled(self) -> None:
        while self._due and self._current.get(self._due[0][2]) != self._due[0][1]:
            heapq.heappop(self._due)
