"""MACHINE: a task from first round to last: train until the federated evaluation stops improving, then evaluate.

::

    Training --RoundCompleted (round limit, or no gain for `patience_rounds`)--> Evaluating --RoundCompleted--> Finished
        |  ^--RoundCompleted, RoundAbandoned                                      |  ^--RoundAbandoned
        '-- Paused <--> (either) ------------------------------------------------ '
    any --Aborted--> Finished
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from cloud_aggregator.training_round import RoundSettings
from federated_core.protocol.messages import Plan, PlanKind

ABANDONED_MAX = 20


class TaskSettings(msgspec.Struct, frozen=True):
    """A task as an operator writes it down."""

    plan: Plan
    rounds: RoundSettings = RoundSettings()
    rounds_max: Annotated[int, Meta(ge=1, le=100_000)] = 20
    patience_rounds: Annotated[int, Meta(ge=1, le=100_000)] = 10  # Rounds without gain after which training ends.
    accuracy_gain_min: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.002
    learning_rate_decay: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0  # Factor per round.
    server_learning_rate: Annotated[float, Meta(gt=0.0, le=10.0)] = 1.0


# --- States


class Training(msgspec.Struct, frozen=True, tag=True):
    """Round ``round_number`` trains, or will."""

    round_number: int = 1
    trained_count: int = 0
    best_accuracy: float = -1.0
    stale_count: int = 0
    abandoned_count: int = 0  # In a row.


class Evaluating(msgspec.Struct, frozen=True, tag=True):
    """Training is over; round ``round_number`` evaluates the final checkpoint."""

    round_number: int
    why: str
    abandoned_count: int = 0


class Paused(msgspec.Struct, frozen=True, tag=True):
    """No new round opens; one that was open may end."""

    resume: Training | Evaluating


class Finished(msgspec.Struct, frozen=True, tag=True):
    """No round will open any more."""

    why: str


TaskState = Training | Evaluating | Paused | Finished


# --- Events


class RoundCompleted(msgspec.Struct, frozen=True):
    """A round ended well; ``accuracy`` of its *base* checkpoint on the devices' holdouts, None if none has any."""

    accuracy: float | None


class RoundAbandoned(msgspec.Struct, frozen=True):
    """A round ended with nothing."""


class PauseAsked(msgspec.Struct, frozen=True):
    """The operator pauses the task."""


class ResumeAsked(msgspec.Struct, frozen=True):
    """The operator resumes it."""


class AbortAsked(msgspec.Struct, frozen=True):
    """The operator ends it."""


TaskEvent = RoundCompleted | RoundAbandoned | PauseAsked | ResumeAsked | AbortAsked


# --- Actions


class OpenRound(msgspec.Struct, frozen=True):
    """Open a round of this kind."""

    number: int
    kind: PlanKind
    learning_rate: float
    after_s: float = 0.0


class FlushCheckpoint(msgspec.Struct, frozen=True):
    """Publish the exact parameters: what was held back by the lattice is not lost at the end."""


class AbortRound(msgspec.Struct, frozen=True):
    """End the open round, if there is one."""


TaskAction = OpenRound | FlushCheckpoint | AbortRound
Transition = tuple[TaskState, tuple[TaskAction, ...]]


def learning_rate_after(settings: TaskSettings, trained_count: int) -> float:
    """Return the devices' learning rate after ``trained_count`` rounds."""
    return settings.plan.learning_rate * settings.learning_rate_decay**trained_count


def open_next(state: TaskState, settings: TaskSettings) -> tuple[TaskAction, ...]:
    """Return what opens the round that ``state`` is in."""
    match state:
        case Training(round_number, trained_count):
            rate = learning_rate_after(settings, trained_count)
            return (OpenRound(round_number, "train", rate, _backoff_s(state.abandoned_count)),)
        case Evaluating(round_number):
            return (OpenRound(round_number, "evaluate", 0.0, _backoff_s(state.abandoned_count)),)
        case _:
            return ()


def step(state: TaskState, event: TaskEvent, settings: TaskSettings) -> Transition:
    """Advance ``state`` by one ``event``; an event out of season changes nothing."""
    match state, event:
        case Finished(), _:
            return state, ()
        case _, AbortAsked():
            return Finished("aborted by the operator"), (AbortRound(),)
        case ((Training() | Evaluating()), PauseAsked()):
            return Paused(state), ()
        case Paused(resume), ResumeAsked():
            return resume, open_next(resume, settings)
        case Paused(resume), RoundCompleted() | RoundAbandoned():
            after, actions = step(resume, event, settings)
            kept = tuple(action for action in actions if not isinstance(action, OpenRound))
            return (Paused(after) if isinstance(after, Training | Evaluating) else after), kept
        case Training(), RoundCompleted(accuracy):
            return _after_training_round(state, accuracy, settings)
        case Training(), RoundAbandoned():
            if state.abandoned_count + 1 >= ABANDONED_MAX:
                return Finished(f"{ABANDONED_MAX} rounds in a row were abandoned"), ()
            again = msgspec.structs.replace(
                state, round_number=state.round_number + 1, abandoned_count=state.abandoned_count + 1
            )
            return again, open_next(again, settings)
        case Evaluating(_, why), RoundCompleted():
            return Finished(why), ()
        case Evaluating(round_number, why, abandoned_count), RoundAbandoned():
            if abandoned_count + 1 >= ABANDONED_MAX:
                return Finished(f"{why}; its evaluation was abandoned {ABANDONED_MAX} times"), ()
            retry = Evaluating(round_number + 1, why, abandoned_count + 1)
            return retry, open_next(retry, settings)
        case _:
            return state, ()


def _after_training_round(state: Training, accuracy: float | None, settings: TaskSettings) -> Transition:
    gained = accuracy is not None and accuracy >= state.best_accuracy + settings.accuracy_gain_min
    after = Training(
        round_number=state.round_number + 1,
        trained_count=state.trained_count + 1,
        best_accuracy=max(state.best_accuracy, accuracy if accuracy is not None else -1.0),
        stale_count=0 if gained or accuracy is None else state.stale_count + 1,
    )
    why = None
    if after.trained_count >= settings.rounds_max:
        why = f"round limit of {settings.rounds_max} reached"
    elif after.stale_count >= settings.patience_rounds:
        why = f"federated evaluation did not improve for {settings.patience_rounds} rounds"
    if why is None:
        return after, open_next(after, settings)
    evaluating = Evaluating(after.round_number, why)
    return evaluating, (FlushCheckpoint(), *open_next(evaluating, settings))


def _backoff_s(abandoned_count: int) -> float:
    """Wait longer after each round that failed in a row: 1, 2, 4 ... at most 300 s."""
    return 0.0 if abandoned_count == 0 else min(300.0, 2.0 ** (abandoned_count - 1))
