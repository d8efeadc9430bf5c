"""MACHINE: one device's conversation about rounds.

::

    Resting --BecameEligible--> CheckedIn --Assigned--> Fetching --Fetched--> Training --Trained--> Reporting
       ^                            |                      |                     |                      |
       '--Rejected, AnswerOverdue---'                      |                     |                      |
       '--BecameIneligible, Cancelled, FetchFailed, TrainingFailed, DeadlinePassed (give it back)       |
       '--Acknowledged, Cancelled-----------------------------------------------------------------------'

A loss of eligibility gives the assignment back; in `Reporting` it changes nothing, since what is left is to send a few
kilobytes. Any number of redelivered messages leaves the same state.
"""

import msgspec

from federated_core.protocol.messages import (
    AbandonReason,
    Acknowledgement,
    Assignment,
    Cancellation,
    Rejection,
    Report,
    RetryWindow,
)

PACING_AFTER_SILENCE = RetryWindow(2.0, 10.0)
PACING_AFTER_FAILURE = RetryWindow(5.0, 20.0)
PACING_AFTER_START = RetryWindow(0.0, 1.0)


# --- States


class Resting(msgspec.Struct, frozen=True, tag=True):
    """Nothing to do until the pacing window has passed and the device is eligible."""


class CheckedIn(msgspec.Struct, frozen=True, tag=True):
    """Offered; waiting for an assignment or a rejection."""

    check_in_id: bytes


class Fetching(msgspec.Struct, frozen=True, tag=True):
    """Selected; fetching what the assignment needs."""

    assignment: Assignment


class Training(msgspec.Struct, frozen=True, tag=True):
    """The trainer works on the assignment."""

    assignment: Assignment


class Reporting(msgspec.Struct, frozen=True, tag=True):
    """The report lies in the outbox and is sent until it is acknowledged."""

    report: Report


SessionState = Resting | CheckedIn | Fetching | Training | Reporting
STATES: msgspec.msgpack.Decoder[SessionState] = msgspec.msgpack.Decoder(SessionState)


# --- Events (assignments, rejections, acknowledgements and cancellations come as the messages that they are)


class Restarted(msgspec.Struct, frozen=True):
    """The process began; the state is the journaled one."""


class LinkRestored(msgspec.Struct, frozen=True):
    """The broker is reachable again; what was said before may be lost."""


class PacingElapsed(msgspec.Struct, frozen=True):
    """The time to wait before the next check-in is over."""


class BecameEligible(msgspec.Struct, frozen=True):
    """The device may train now; ``check_in_id`` is fresh randomness for a check-in."""

    check_in_id: bytes


class BecameIneligible(msgspec.Struct, frozen=True):
    """The device must not train now."""


class AnswerOverdue(msgspec.Struct, frozen=True):
    """A check-in or a report got no answer in time."""


class Fetched(msgspec.Struct, frozen=True):
    """All artifacts are on disk, each with the right digest."""


class FetchFailed(msgspec.Struct, frozen=True):
    """An artifact cannot be had, or is not to be trusted."""

    why: AbandonReason


class Trained(msgspec.Struct, frozen=True):
    """The trainer is done, and its sealed update lies in the outbox."""

    report: Report


class TrainingFailed(msgspec.Struct, frozen=True):
    """The trainer could not do it."""

    why: AbandonReason


class DeadlinePassed(msgspec.Struct, frozen=True):
    """The round's deadline is over."""


SessionEvent = (
    Restarted
    | LinkRestored
    | PacingElapsed
    | BecameEligible
    | BecameIneligible
    | AnswerOverdue
    | Assignment
    | Rejection
    | Fetched
    | FetchFailed
    | Trained
    | TrainingFailed
    | DeadlinePassed
    | Acknowledgement
    | Cancellation
)


# --- Actions


class AwaitPacing(msgspec.Struct, frozen=True):
    """Give `PacingElapsed` after a time drawn uniformly from the window."""

    window: RetryWindow


class JudgeEligibility(msgspec.Struct, frozen=True):
    """Give `BecameEligible` or `BecameIneligible`."""


class SendCheckIn(msgspec.Struct, frozen=True):
    """Offer the device; give `AnswerOverdue` if nobody answers."""

    check_in_id: bytes


class Fetch(msgspec.Struct, frozen=True):
    """Fetch what the assignment needs; give `Fetched` or `FetchFailed`, and `DeadlinePassed` when it is time."""

    assignment: Assignment


class StartTraining(msgspec.Struct, frozen=True):
    """Start the trainer; give `Trained` or `TrainingFailed`."""

    assignment: Assignment


class StopWork(msgspec.Struct, frozen=True):
    """Stop fetching and training, and forget the deadline."""


class SendAbandonment(msgspec.Struct, frozen=True):
    """Give the assignment back, so that nobody waits for it."""

    task: str
    round: int
    why: AbandonReason


class SendReport(msgspec.Struct, frozen=True):
    """Send the report and its update from the outbox; give `AnswerOverdue` if nobody answers."""

    report: Report


class EmptyOutbox(msgspec.Struct, frozen=True):
    """The aggregator has decided about this report: forget its update."""

    task: str
    round: int


SessionAction = (
    AwaitPacing
    | JudgeEligibility
    | SendCheckIn
    | Fetch
    | StartTraining
    | StopWork
    | SendAbandonment
    | SendReport
    | EmptyOutbox
)
Transition = tuple[SessionState, tuple[SessionAction, ...]]


def step(state: SessionState, event: SessionEvent) -> Transition:
    """Advance ``state`` by one ``event``; an event out of season changes nothing."""
    match state, event:
        case Resting() | CheckedIn(), Restarted():
            return Resting(), (AwaitPacing(PACING_AFTER_START),)
        case Fetching(assignment), Restarted():
            return state, (Fetch(assignment),)
        case Training(assignment), Restarted():
            return Fetching(assignment), (Fetch(assignment),)  # Whatever is on disk already is not fetched again.
        case Reporting(report), Restarted() | LinkRestored() | AnswerOverdue():
            return state, (SendReport(report),)

        case CheckedIn(check_in_id), LinkRestored():
            return state, (SendCheckIn(check_in_id),)
        case Fetching(assignment), LinkRestored():
            return state, (Fetch(assignment),)

        case Resting(), PacingElapsed():
            return state, (JudgeEligibility(),)
        case Resting(), BecameIneligible():
            return state, (AwaitPacing(PACING_AFTER_FAILURE),)
        case Resting(), BecameEligible(check_in_id):
            return CheckedIn(check_in_id), (SendCheckIn(check_in_id),)

        case CheckedIn(check_in_id), Assignment() if event.check_in_id == check_in_id:
            return Fetching(event), (Fetch(event),)
        case CheckedIn(check_in_id), Rejection() if event.check_in_id == check_in_id:
            return Resting(), (AwaitPacing(event.retry),)
        case CheckedIn(), AnswerOverdue():
            return Resting(), (AwaitPacing(PACING_AFTER_SILENCE),)

        case Fetching(assignment), Fetched():
            return Training(assignment), (StartTraining(assignment),)
        case Fetching(assignment), FetchFailed(why):
            return _give_back(assignment, why)
        case Training(), Trained(report):
            return Reporting(report), (StopWork(), SendReport(report))
        case Training(assignment), TrainingFailed(why):
            return _give_back(assignment, why)
        case Fetching(assignment) | Training(assignment), BecameIneligible():
            return _give_back(assignment, "became-ineligible")
        case Fetching(assignment) | Training(assignment), DeadlinePassed():
            return _give_back(assignment, "deadline")
        case Fetching(assignment) | Training(assignment), Cancellation() if _is_for(event, assignment):
            return Resting(), (StopWork(), AwaitPacing(event.retry))

        case Reporting(report), Acknowledgement() | Cancellation() if _is_for(event, report):
            return Resting(), (EmptyOutbox(report.task, report.round), AwaitPacing(event.retry))
        case _:
            return state, ()


def _is_for(answer: Acknowledgement | Cancellation, work: Assignment | Report) -> bool:
    return (answer.task, answer.round) == (work.task, work.round)


def _give_back(assignment: Assignment, why: AbandonReason) -> Transition:
    return Resting(), (
        StopWork(),
        SendAbandonment(assignment.task, assignment.round, why),
        AwaitPacing(PACING_AFTER_FAILURE),
    )
