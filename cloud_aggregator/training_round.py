"""MACHINE: one round, from the first check-in to a new checkpoint.

::

    Selecting --CheckedIn (all), SelectionDue--> Collecting --goal, DeadlinePassed--> Aggregating --> Completed
        |                                              |
        '-----------------Aborted----------------------'--too few reports, Aborted--> Abandoned

A device counts at most once: what is accepted is a set by device, and every report is judged against it. Devices that
check in while reports are still coming wait in ``waiting`` and are the first candidates of the next round.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from cloud_aggregator.selection import Candidate, cohort_size, select_cohort
from federated_core.protocol.messages import Metrics, Plan, Report, Verdict


class RoundSettings(msgspec.Struct, frozen=True):
    """How a round is run; times in seconds."""

    goal: Annotated[int, Meta(ge=1, le=100_000)] = 10  # Reports that complete the round.
    report_count_min: Annotated[int, Meta(ge=1, le=100_000)] = 2  # With fewer a round is abandoned at its deadline.
    overselection_ratio: Annotated[float, Meta(ge=1.0, le=10.0)] = 1.3
    selection_s: Annotated[float, Meta(gt=0.0, le=86_400.0)] = 30.0  # Longest wait for more once the minimum is there.
    reporting_s: Annotated[float, Meta(gt=0.0, le=2_592_000.0)] = 600.0  # From assignment to deadline.
    update_bytes_max: Annotated[int, Meta(ge=1024, le=268_435_456)] = 16_777_216


class RoundHead(msgspec.Struct, frozen=True):
    """What stays the same through all states of a round."""

    task: str
    number: int
    plan: Plan
    base_version: int
    base: bytes
    seed: bytes
    settings: RoundSettings


class Accepted(msgspec.Struct, frozen=True):
    """A report that counts."""

    device: str
    example_count: int
    metrics: Metrics
    update: bytes | None  # Digest of the sealed update in the blob store.
    training_loss: float | None
    training_s: float


class Refused(msgspec.Struct, frozen=True):
    """A report that does not count, and why."""

    device: str
    verdict: Verdict


class GivenBack(msgspec.Struct, frozen=True):
    """An assignment that a device gave back, and why."""

    device: str
    why: str


# --- States


class Selecting(msgspec.Struct, frozen=True, tag=True):
    """Devices check in; none is answered yet."""

    head: RoundHead
    candidates: tuple[Candidate, ...] = ()


class Collecting(msgspec.Struct, frozen=True, tag=True):
    """The cohort works; reports come in."""

    head: RoundHead
    cohort: tuple[str, ...]
    announced: tuple[tuple[str, Report], ...] = ()  # Reports whose update is not complete yet.
    accepted: tuple[Accepted, ...] = ()
    refused: tuple[Refused, ...] = ()
    given_back: tuple[GivenBack, ...] = ()
    waiting: tuple[Candidate, ...] = ()


class Aggregating(msgspec.Struct, frozen=True, tag=True):
    """The accepted set is fixed; its sum is being made."""

    head: RoundHead
    cohort: tuple[str, ...]
    accepted: tuple[Accepted, ...]
    refused: tuple[Refused, ...]
    given_back: tuple[GivenBack, ...]
    waiting: tuple[Candidate, ...]


class Completed(msgspec.Struct, frozen=True, tag=True):
    """The next checkpoint exists, or the evaluation is recorded."""

    head: RoundHead
    cohort: tuple[str, ...]
    accepted: tuple[Accepted, ...]
    refused: tuple[Refused, ...]
    given_back: tuple[GivenBack, ...]


class Abandoned(msgspec.Struct, frozen=True, tag=True):
    """Nothing was made of this round, and why."""

    head: RoundHead
    why: str
    cohort: tuple[str, ...] = ()
    accepted: tuple[Accepted, ...] = ()
    refused: tuple[Refused, ...] = ()
    given_back: tuple[GivenBack, ...] = ()


RoundState = Selecting | Collecting | Aggregating | Completed | Abandoned


# --- Events


class Restarted(msgspec.Struct, frozen=True):
    """The aggregator began; the state is the journaled one."""


class CheckedIn(msgspec.Struct, frozen=True):
    """A device offers itself; ``population`` is how many devices this task may draw from."""

    candidate: Candidate
    population: int


class SelectionDue(msgspec.Struct, frozen=True):
    """The selection window is over."""


class Reported(msgspec.Struct, frozen=True):
    """A signed report arrived from the device that it names."""

    device: str
    report: Report


class UpdateJudged(msgspec.Struct, frozen=True):
    """An announced update is complete on disk and was decoded; ``accepted`` or the reason why not."""

    device: str
    verdict: Verdict


class AssignmentGivenBack(msgspec.Struct, frozen=True):
    """A device will not report."""

    device: str
    why: str


class DeadlinePassed(msgspec.Struct, frozen=True):
    """The time for reports is over."""


class Aggregated(msgspec.Struct, frozen=True):
    """The new checkpoint is on disk."""


class Aborted(msgspec.Struct, frozen=True):
    """The operator ends the round, or its aggregate cannot be made."""

    why: str


RoundEvent = (
    Restarted
    | CheckedIn
    | SelectionDue
    | Reported
    | UpdateJudged
    | AssignmentGivenBack
    | DeadlinePassed
    | Aggregated
    | Aborted
)


# --- Actions


class AwaitSelection(msgspec.Struct, frozen=True):
    """Give `SelectionDue` after a time."""

    after_s: float


class AwaitDeadline(msgspec.Struct, frozen=True):
    """Give `DeadlinePassed` after a time."""

    after_s: float


class Assign(msgspec.Struct, frozen=True):
    """Send each of these its assignment."""

    candidates: tuple[Candidate, ...]


class TurnAway(msgspec.Struct, frozen=True):
    """Tell these that they were not selected."""

    candidates: tuple[Candidate, ...]


class ExpectUpdate(msgspec.Struct, frozen=True):
    """Collect the chunks of this update; give `UpdateJudged` once it is complete."""

    device: str
    report: Report


class Acknowledge(msgspec.Struct, frozen=True):
    """Tell a device the verdict on its report."""

    device: str
    verdict: Verdict


class Cancel(msgspec.Struct, frozen=True):
    """Tell these devices that they are no longer needed, and forget what they were sending."""

    devices: tuple[str, ...]


class Aggregate(msgspec.Struct, frozen=True):
    """Make the next checkpoint from these, or record the evaluation; give `Aggregated`."""

    accepted: tuple[Accepted, ...]


class Finish(msgspec.Struct, frozen=True):
    """The round is over: decide what comes next, with these as its first candidates."""

    waiting: tuple[Candidate, ...]


RoundAction = (
    AwaitSelection | AwaitDeadline | Assign | TurnAway | ExpectUpdate | Acknowledge | Cancel | Aggregate | Finish
)
Transition = tuple[RoundState, tuple[RoundAction, ...]]


def begin(head: RoundHead) -> Transition:
    """Open a round."""
    return Selecting(head), (AwaitSelection(head.settings.selection_s),)


def step(state: RoundState, event: RoundEvent) -> Transition:
    """Advance ``state`` by one ``event``; an event out of season changes nothing."""
    match state, event:
        case Selecting(head), Restarted():
            return Selecting(head), (AwaitSelection(head.settings.selection_s),)  # Those who wait check in again.
        case Selecting(), CheckedIn(candidate, population):
            return _consider(state, candidate, population)
        case Selecting(head, candidates), SelectionDue():
            if len(candidates) < head.settings.report_count_min:
                return state, (AwaitSelection(head.settings.selection_s),)
            return _select(state, cohort_size(head.settings.goal, head.settings.overselection_ratio, len(candidates)))
        case Selecting(head, candidates), Aborted(why):
            return Abandoned(head, why), (Finish(candidates),)

        case Collecting(head), Restarted():
            return state, (
                AwaitDeadline(head.settings.reporting_s),
                *(ExpectUpdate(device, report) for device, report in state.announced),
            )
        case Collecting(), CheckedIn(candidate):
            return _answer_during_collection(state, candidate)
        case Collecting(), Reported(device, report):
            return _judge_report(state, device, report)
        case Collecting(), UpdateJudged(device, verdict):
            return _settle(state, device, verdict)
        case Collecting(), AssignmentGivenBack(device, why) if device in outstanding(state):
            given_back = (*state.given_back, GivenBack(device, why))
            return _close_if_done(_without_announced(msgspec.structs.replace(state, given_back=given_back), device), ())
        case Collecting(), DeadlinePassed():
            if len(state.accepted) >= state.head.settings.report_count_min:
                return _close(state, ())
            return _abandon(
                state, f"{len(state.accepted)} reports at the deadline, needs {state.head.settings.report_count_min}"
            )
        case Collecting(), Aborted(why):
            return _abandon(state, why)

        case Aggregating(), Restarted():
            return state, (Aggregate(state.accepted),)
        case Aggregating(), CheckedIn(candidate):
            return msgspec.structs.replace(state, waiting=_with(state.waiting, candidate)), ()
        case Aggregating(), Aborted(why):
            abandoned = Abandoned(state.head, why, state.cohort, state.accepted, state.refused, state.given_back)
            return abandoned, (Finish(state.waiting),)
        case Aggregating(), Aggregated():
            completed = Completed(state.head, state.cohort, state.accepted, state.refused, state.given_back)
            return completed, (Finish(state.waiting),)
        case ((Aggregating() | Completed()), Reported(device, _)):
            return state, (Acknowledge(device, "accepted" if _is_accepted(state.accepted, device) else "late"),)
        case Abandoned(), Reported(device, _):
            return state, (Acknowledge(device, "late"),)  # Its cancellation was lost: it must not report for ever.
        case Completed() | Abandoned(), Restarted():
            return state, (Finish(()),)
        case _:
            return state, ()


def _consider(state: Selecting, candidate: Candidate, population: int) -> Transition:
    """Close early only if everybody is there: whoever is first must have no better odds than whoever is late."""
    settings = state.head.settings
    state = Selecting(state.head, _with(state.candidates, candidate))
    if len(state.candidates) >= max(population, settings.report_count_min):
        return _select(state, cohort_size(settings.goal, settings.overselection_ratio, len(state.candidates)))
    return state, ()


def _select(state: Selecting, size: int) -> Transition:
    cohort = select_cohort(state.candidates, size, state.head.seed)
    turned_away = tuple(candidate for candidate in state.candidates if candidate not in cohort)
    # The deadline first: whatever comes of the assignments, the round ends.
    actions: tuple[RoundAction, ...] = (AwaitDeadline(state.head.settings.reporting_s), Assign(cohort))
    if turned_away:
        actions = (*actions, TurnAway(turned_away))
    return Collecting(state.head, tuple(candidate.device for candidate in cohort)), actions


def _answer_during_collection(state: Collecting, candidate: Candidate) -> Transition:
    if candidate.device in outstanding(state):
        return state, (Assign((candidate,)),)  # Its assignment was lost, or it restarted: the same one again.
    return msgspec.structs.replace(state, waiting=_with(state.waiting, candidate)), ()


def _judge_report(state: Collecting, device: str, report: Report) -> Transition:
    if _is_accepted(state.accepted, device):
        return state, (Acknowledge(device, "accepted"),)  # A redelivery: counting it twice would bias the mean.
    for refused in state.refused:
        if refused.device == device:
            return state, (Acknowledge(device, refused.verdict),)
    if device not in state.cohort:
        return state, (Acknowledge(device, "not-selected"),)
    fault = find_fault(state.head, report)
    if fault is not None:
        return _settle(_announce(state, device, report), device, fault)
    state = _announce(state, device, report)
    if report.update is None:
        return _settle(state, device, "accepted")
    return state, (ExpectUpdate(device, report),)


def find_fault(head: RoundHead, report: Report) -> Verdict | None:
    """Return what is wrong with ``report`` by itself, before its update is looked at."""
    plan = head.plan
    faults: tuple[tuple[bool, Verdict], ...] = (
        (report.base != head.base, "wrong-base"),
        (report.kind != plan.kind or (report.update is None) != (plan.kind == "evaluate"), "wrong-plan"),
        (report.example_count < plan.example_count_min, "too-few-examples"),
        (report.example_count > plan.example_count_max, "too-many-examples"),
        (report.metrics.correct_count > report.metrics.example_count, "malformed"),
        (report.metrics.example_count > plan.example_count_max, "too-many-examples"),
        (not _is_finite(report.metrics.loss_sum), "not-finite"),
        (report.training_loss is not None and not _is_finite(report.training_loss), "not-finite"),
        (report.update is not None and report.update.size_bytes > head.settings.update_bytes_max, "too-large"),
    )
    return next((verdict for is_fault, verdict in faults if is_fault), None)


def _settle(state: Collecting, device: str, verdict: Verdict) -> Transition:
    report = dict(state.announced).get(device)
    if report is None:
        return state, ()  # Decided already.
    state = _without_announced(state, device)
    if verdict == "accepted":
        digest = report.update.digest if report.update is not None else None
        accepted = Accepted(
            device, report.example_count, report.metrics, digest, report.training_loss, report.training_s
        )
        state = msgspec.structs.replace(state, accepted=(*state.accepted, accepted))
    else:
        state = msgspec.structs.replace(state, refused=(*state.refused, Refused(device, verdict)))
    return _close_if_done(state, (Acknowledge(device, verdict),))


def _close_if_done(state: Collecting, actions: tuple[RoundAction, ...]) -> Transition:
    settings = state.head.settings
    if len(state.accepted) >= settings.goal:
        return _close(state, actions)
    if outstanding(state):
        return state, actions
    if len(state.accepted) >= settings.report_count_min:
        return _close(state, actions)
    abandoned, more = _abandon(
        state, f"{len(state.accepted)} reports from the whole cohort, needs {settings.report_count_min}"
    )
    return abandoned, (*actions, *more)


def _close(state: Collecting, actions: tuple[RoundAction, ...]) -> Transition:
    left_out = outstanding(state)
    aggregating = Aggregating(state.head, state.cohort, state.accepted, state.refused, state.given_back, state.waiting)
    cancel: tuple[RoundAction, ...] = (Cancel(left_out),) if left_out else ()
    return aggregating, (*actions, *cancel, Aggregate(state.accepted))


def _abandon(state: Collecting, why: str) -> Transition:
    abandoned = Abandoned(state.head, why, state.cohort, state.accepted, state.refused, state.given_back)
    left_out = outstanding(state)
    cancel: tuple[RoundAction, ...] = (Cancel(left_out),) if left_out else ()
    return abandoned, (*cancel, Finish(state.waiting))


def outstanding(state: Collecting) -> tuple[str, ...]:
    """Return the devices of the cohort whose report is still awaited."""
    settled = {accepted.device for accepted in state.accepted}
    settled |= {refused.device for refused in state.refused}
    settled |= {given_back.device for given_back in state.given_back}
    return tuple(device for device in state.cohort if device not in settled)


def _announce(state: Collecting, device: str, report: Report) -> Collecting:
    others = tuple(entry for entry in state.announced if entry[0] != device)
    return msgspec.structs.replace(state, announced=(*others, (device, report)))


def _without_announced(state: Collecting, device: str) -> Collecting:
    return msgspec.structs.replace(state, announced=tuple(entry for entry in state.announced if entry[0] != device))


def _with(candidates: tuple[Candidate, ...], candidate: Candidate) -> tuple[Candidate, ...]:
    """A device that checks in again under a new id replaces its older offer."""
    return (*(other for other in candidates if other.device != candidate.device), candidate)


def _is_accepted(accepted: tuple[Accepted, ...], device: str) -> bool:
    return any(entry.device == device for entry in accepted)


def _is_finite(value: float) -> bool:
    return value - value == 0.0
