"""What a device says of its releases: signed, repeated until it is acknowledged, and again every few hours."""

from collections.abc import Callable, Mapping
from typing import Any

from edge_agent import update
from edge_agent.adapters.chance import Chance
from edge_agent.adapters.installer import Pointer
from edge_agent.adapters.journal import HELD, Journal
from federated_core.adapters.inbox import Inbox
from federated_core.protocol import messages

TIMERS = "update/"
SILENCE_S = 30.0  # Before a status is repeated, and before a failed download is asked for again; doubled each time.
_SILENCE_MAX_S = 3_600.0
_LISTED_MAX = 16  # Families and held checkpoints that a status may list.


class ReleaseReporter:
    """Sends `ReleaseStatus`; its timers are ``status`` (soon), ``answer`` (overdue) and ``heartbeat`` (in hours)."""

    def __init__(
        self,
        *,
        journal: Journal,
        inbox: Inbox[Any],
        chance: Chance,
        interval_s: float,
        states: Callable[[], Mapping[str, tuple[Pointer | None, update.UpdateState]]],
        send: Callable[[messages.ReleaseStatus], None],
    ) -> None:
        """Say what ``states`` tells of each family: what is installed, and where its machine is."""
        self._journal = journal
        self._inbox = inbox
        self._chance = chance
        self._interval_s = interval_s
        self._states = states
        self._send = send
        self._status_id = b""  # Of the status that waits for its acknowledgement.
        self._silence_count = 0
        self._failure_count = 0
        self._moved_tasks: set[str] = set()
        self._refused: messages.ReleaseConclusion | None = None

    def say(self) -> None:
        """Say what runs, now."""
        self._inbox.cancel_timer(TIMERS + "status")
        self._status_id = self._chance.token_bytes(8)
        held = [self._journal.load(key, HELD) for key in self._journal.keys("held/")]
        status = messages.ReleaseStatus(
            self._status_id,
            tuple(_describe(family, *state) for family, state in self._states().items())[:_LISTED_MAX],
            tuple(one for one in held if one is not None and one.task not in self._moved_tasks)[:_LISTED_MAX],
            self._refused,
        )
        self._inbox.set_timer(TIMERS + "answer", min(_SILENCE_MAX_S, SILENCE_S * 2.0**self._silence_count))
        self._send(status)

    def say_within(self, spread_s: float) -> None:
        """Say what runs at a random moment of the next ``spread_s`` seconds; once, however often this is asked."""
        self._inbox.set_timer(TIMERS + "status", self._chance.uniform(0.0, spread_s))

    def repeat(self) -> None:
        """Nobody answered: say it again, and wait twice as long."""
        self._silence_count += 1
        self.say()

    def acknowledge(self, status_id: bytes) -> None:
        """The aggregator has it on disk; an answer to an earlier status changes nothing."""
        if status_id == self._status_id:
            self._status_id, self._silence_count, self._refused = b"", 0, None
            self._inbox.cancel_timer(TIMERS + "answer")
            self._inbox.set_timer(TIMERS + "heartbeat", self._interval_s)

    def conclude(self) -> None:
        """A release was concluded: what failed before it counts no more."""
        self._failure_count = 0
        self.say()

    def refuse(self, refused: messages.ReleaseConclusion) -> None:
        """Tell of an offer that is not to be trusted."""
        self._refused = refused
        self.say()

    def ask_later(self) -> None:
        """Say what runs after a while that grows: the answer will be a fresh offer."""
        self._failure_count += 1
        wait_s = min(_SILENCE_MAX_S, SILENCE_S * 2.0 ** (self._failure_count - 2))
        self._inbox.set_timer(TIMERS + "status", wait_s * self._chance.uniform(0.5, 1.0))

    def distrust_held(self, task: str) -> None:
        """Say no more that a task's checkpoint is held: training moves it, and offers shall not build on it."""
        self._moved_tasks.add(task)


def _describe(family: str, pointer: Pointer | None, state: update.UpdateState) -> messages.FamilyStatus:
    concluded = None if isinstance(state, update.RollingBack) else state.concluded
    if pointer is None:
        return messages.FamilyStatus(family, concluded=concluded)
    return messages.FamilyStatus(family, pointer.release.number, pointer.release.checkpoint, concluded)
