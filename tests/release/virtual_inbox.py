"""An inbox whose timers run on virtual time."""

from typing import Any

from federated_core.adapters.inbox import Inbox, TimerFired


class VirtualInbox(Inbox[Any]):
    """News wait in a list; a timer is due when the clock is turned that far."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.news: list[Any] = []
        self.due: dict[str, float] = {}

    def put(self, news: Any) -> None:
        """Add news."""
        self.news.append(news)

    def set_timer(self, name: str, after_s: float) -> None:
        """Remember when a timer is due."""
        self.due[name] = self.now_s + after_s

    def cancel_timer(self, name: str) -> None:
        """Forget a timer."""
        self.due.pop(name, None)

    def next_due_s(self) -> float | None:
        """Return when the next timer is due."""
        return min(self.due.values(), default=None)

    def turn_to(self, now_s: float) -> None:
        """Let time pass; timers that are due become news in the order of their times."""
        self.now_s = now_s
        for name in sorted((name for name, at in self.due.items() if at <= now_s), key=lambda name: self.due[name]):
            del self.due[name]
            self.news.append(TimerFired(name))
