"""What the pages and the JSON API show, as frozen values. Times are seconds since 1970, durations seconds."""

from typing import Any, Generic, Literal, TypeVar

import msgspec

T = TypeVar("T")

Presence = Literal["working", "recent", "quiet", "away", "new"]
"""In an open round; or heard of within an hour, within a day, longer ago, never."""

Outcome = Literal["accepted", "training", "refused", "given-back", "cancelled"]
"""Of a device in a round: its report counts, is awaited, does not count, will not come, was no longer needed."""

TokenState = Literal["open", "used up", "expired", "revoked"]
Severity = Literal["serious", "notable"]


class Page(msgspec.Struct, Generic[T], frozen=True):
    """A part of a list; ``number`` counts from 1."""

    items: tuple[T, ...]
    number: int
    size: int
    total: int

    @property
    def count(self) -> int:
        """How many pages there are, at least one."""
        return max(1, -(-self.total // self.size))


class DeviceSummary(msgspec.Struct, frozen=True):
    """A device in the list of the fleet."""

    name: str
    presence: Presence
    enrolled_at: float
    last_seen_at: float | None
    engine: str
    agent_version: str
    running: str  # Such as "gestures 3"; empty if it never said that it runs a release.


class DeviceDetail(msgspec.Struct, frozen=True):
    """One device."""

    summary: DeviceSummary
    token: str
    verify_key: str
    also_enrolled_as: tuple[str, ...]
    open_rounds: tuple["RoundReference", ...]
    last_given_back: "Happening | None"
    running: tuple["RunningRelease", ...]


class RoundReference(msgspec.Struct, frozen=True):
    """Which round."""

    task: str
    number: int


class Happening(msgspec.Struct, frozen=True):
    """An event as it was recorded."""

    number: int
    at: float
    kind: str
    task: str | None
    round: int | None
    device: str | None
    detail: dict[str, Any]


class RoundSummary(msgspec.Struct, frozen=True):
    """A round in the list of rounds, and a point of the charts."""

    task: str
    number: int
    kind: str
    phase: str
    base_version: int
    opened_at: float
    closed_at: float | None
    assignment_count: int
    report_count: int
    example_count: int
    accuracy: float | None
    loss: float | None
    bytes_up: int
    bytes_down: int
    bytes_keyframe: int
    bytes_bundle: int

    @property
    def seconds(self) -> float | None:
        """How long it took; None while it is open."""
        return None if self.closed_at is None else self.closed_at - self.opened_at


class Spread(msgspec.Struct, frozen=True):
    """Accuracy of the base checkpoint over the devices that reported, each on its own holdout."""

    device_count: int
    low: float
    quarter: float
    median: float
    three_quarters: float
    high: float


class RoundPoint(msgspec.Struct, frozen=True):
    """A round of a series, with the spread of its accuracy."""

    round: RoundSummary
    spread: Spread | None


class DeviceInRound(msgspec.Struct, frozen=True):
    """What one device of a cohort made of its assignment."""

    device: str
    outcome: Outcome
    why: str | None
    example_count: int | None
    accuracy: float | None
    training_s: float | None


class RoundDetail(msgspec.Struct, frozen=True):
    """One round: ``invited`` is the sum of the five outcomes; ``late`` are cancelled ones that reported anyway."""

    summary: RoundSummary
    goal: int
    why: str | None
    invited: int
    accepted: int
    training: int
    refused: dict[str, int]
    given_back: dict[str, int]
    cancelled: int
    late: int
    spread: Spread | None


class TaskSummary(msgspec.Struct, frozen=True):
    """A task: where it stands."""

    name: str
    state: Literal["training", "evaluating", "paused", "finished"]
    why: str | None
    created_at: float
    round_count: int
    rounds_max: int
    version: int
    accuracy: float | None
    parameter_count: int | None
    bundle: str
    model: str


class CheckpointSummary(msgspec.Struct, frozen=True):
    """A version of a task's parameters, the round that made it, and how it did on the devices' holdouts."""

    task: str
    version: int
    digest: str
    is_keyframe: bool
    created_at: float
    made_by_round: int | None
    report_count: int | None
    example_count: int | None
    accuracy: float | None


class RunningRelease(msgspec.Struct, frozen=True):
    """What a device last said, signed, that it runs of a family of models; number 0 is nothing yet."""

    family: str
    number: int
    reported_at: float


class RunningCount(msgspec.Struct, frozen=True):
    """How many devices run a release."""

    family: str
    number: int
    device_count: int


class ReleaseSummary(msgspec.Struct, frozen=True):
    """A release and how far it is; the counts are over all of its stages."""

    number: int
    family: str
    task: str
    version: int
    kind: str
    phase: str
    why: str | None
    actor: str
    created_at: float
    expires_at: float
    closed_at: float | None
    replaces: int | None
    restricted_to: int | None
    checkpoint: str
    bundle: str
    states: dict[str, int]
    running_count: int

    @property
    def is_open(self) -> bool:
        """Whether devices are still offered it."""
        return self.closed_at is None

    @property
    def member_count(self) -> int:
        """How many devices it was meant for so far."""
        return sum(self.states.values())


class DeviceInRelease(msgspec.Struct, frozen=True):
    """What one device did with a release; ``detail`` is in the device's own words."""

    device: str
    stage: str
    state: str
    reason: str | None
    detail: str | None
    offered_at: float | None
    concluded_at: float | None


class TokenSummary(msgspec.Struct, frozen=True):
    """An enrollment token; its secret is not shown again."""

    name: str
    state: TokenState
    uses: int
    uses_max: int
    created_at: float
    expires_at: float


class Concern(msgspec.Struct, frozen=True):
    """Something that needs the operator's attention, and where to look."""

    severity: Severity
    text: str
    href: str


class Overview(msgspec.Struct, frozen=True):
    """The whole fleet at a glance."""

    device_count: int
    presence: dict[Presence, int]
    tasks: tuple[TaskSummary, ...]
    open_rounds: tuple[RoundDetail, ...]
    concerns: tuple[Concern, ...]


class Figures(msgspec.Struct, frozen=True):
    """Counts for the monitoring of the aggregator itself."""

    presence: dict[Presence, int]
    rounds: dict[tuple[str, str], int]
    accuracy: dict[str, float]
    counters: dict[str, int]
    bytes: dict[str, int]
    open_command_count: int
    newest_event: int
