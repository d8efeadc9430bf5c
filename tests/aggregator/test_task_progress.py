"""The task machine: how long a task trains, when it waits, what an operator may do to it."""

from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_aggregator import task_progress
from cloud_aggregator.task_progress import (
    ABANDONED_MAX,
    AbortAsked,
    AbortRound,
    Evaluating,
    Finished,
    FlushCheckpoint,
    OpenRound,
    PauseAsked,
    Paused,
    ResumeAsked,
    RoundAbandoned,
    RoundCompleted,
    TaskSettings,
    Training,
    open_next,
    step,
)
from federated_core.protocol.messages import Plan

SETTINGS = TaskSettings(
    Plan("train", learning_rate=0.8),
    rounds_max=6,
    patience_rounds=2,
    accuracy_gain_min=0.01,
    learning_rate_decay=0.5,
)
TRAINING = Training(round_number=3, trained_count=2, best_accuracy=0.5)
EVALUATING = Evaluating(7, "round limit of 6 reached")
STATES: tuple[task_progress.TaskState, ...] = (
    TRAINING,
    EVALUATING,
    Paused(TRAINING),
    Paused(EVALUATING),
    Finished("why"),
)
EVENTS: tuple[task_progress.TaskEvent, ...] = (
    RoundCompleted(0.6),
    RoundAbandoned(),
    PauseAsked(),
    ResumeAsked(),
    AbortAsked(),
)

AFTER_ROUND = Training(round_number=4, trained_count=3, best_accuracy=0.6)
AFTER_ABANDONED = msgspec.structs.replace(TRAINING, round_number=4, abandoned_count=1)
EVALUATION_AGAIN = Evaluating(8, EVALUATING.why, abandoned_count=1)
ABORTED = (Finished("aborted by the operator"), (AbortRound(),))
# 0.8 * 0.5 ** 3 = 0.1, and 0.8 * 0.5 ** 2 = 0.2 for a round that is tried again, one second later.
TABLE: dict[tuple[task_progress.TaskState, type], task_progress.Transition] = {
    (TRAINING, RoundCompleted): (AFTER_ROUND, (OpenRound(4, "train", 0.1),)),
    (TRAINING, RoundAbandoned): (AFTER_ABANDONED, (OpenRound(4, "train", 0.2, after_s=1.0),)),
    (TRAINING, PauseAsked): (Paused(TRAINING), ()),
    (TRAINING, AbortAsked): ABORTED,
    (EVALUATING, RoundCompleted): (Finished(EVALUATING.why), ()),
    (EVALUATING, RoundAbandoned): (EVALUATION_AGAIN, (OpenRound(8, "evaluate", 0.0, after_s=1.0),)),
    (EVALUATING, PauseAsked): (Paused(EVALUATING), ()),
    (EVALUATING, AbortAsked): ABORTED,
    (Paused(TRAINING), RoundCompleted): (Paused(AFTER_ROUND), ()),
    (Paused(TRAINING), RoundAbandoned): (Paused(AFTER_ABANDONED), ()),
    (Paused(TRAINING), ResumeAsked): (TRAINING, (OpenRound(3, "train", 0.2),)),
    (Paused(TRAINING), AbortAsked): ABORTED,
    (Paused(EVALUATING), RoundCompleted): (Finished(EVALUATING.why), ()),
    (Paused(EVALUATING), RoundAbandoned): (Paused(EVALUATION_AGAIN), ()),
    (Paused(EVALUATING), ResumeAsked): (EVALUATING, (OpenRound(7, "evaluate", 0.0),)),
    (Paused(EVALUATING), AbortAsked): ABORTED,
}

every_pair = pytest.mark.parametrize(
    ("state", "event"),
    [(state, event) for state in STATES for event in EVENTS],
    ids=lambda value: type(value).__name__,
)


def test_the_tables_hold_every_state_and_every_event() -> None:
    assert {type(state) for state in STATES} == set(get_args(task_progress.TaskState))
    assert {type(event) for event in EVENTS} == set(get_args(task_progress.TaskEvent))


@every_pair
def test_a_pair_does_what_the_diagram_says_and_an_event_out_of_season_nothing(
    state: task_progress.TaskState, event: task_progress.TaskEvent
) -> None:
    assert step(state, event, SETTINGS) == TABLE.get((state, type(event)), (state, ()))


@pytest.mark.parametrize("state", STATES, ids=lambda state: type(state).__name__)
def test_a_state_survives_the_database(state: task_progress.TaskState) -> None:
    decoder: msgspec.msgpack.Decoder[task_progress.TaskState] = msgspec.msgpack.Decoder(task_progress.TaskState)
    assert decoder.decode(msgspec.msgpack.encode(state)) == state


def run(*events: task_progress.TaskEvent, settings: TaskSettings = SETTINGS) -> list[task_progress.Transition]:
    """Return what each event leads to, from the first round on."""
    state: task_progress.TaskState = Training()
    transitions = []
    for event in events:
        transitions.append(step(state, event, settings))
        state = transitions[-1][0]
    return transitions


def test_the_first_round_opens_at_once() -> None:
    assert open_next(Training(), SETTINGS) == (OpenRound(1, "train", 0.8),)


def test_a_task_trains_to_its_round_limit_publishes_exactly_and_evaluates_once() -> None:
    rising = [RoundCompleted(accuracy) for accuracy in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)]
    *_, (state, actions) = run(*rising)
    assert state == Evaluating(7, "round limit of 6 reached")
    assert actions == (FlushCheckpoint(), OpenRound(7, "evaluate", 0.0))
    assert step(state, RoundCompleted(0.7), SETTINGS) == (Finished("round limit of 6 reached"), ())


def test_a_task_that_learns_no_more_ends_before_its_limit() -> None:
    # The gain of the third round is 0.005 and of the fourth 0.005 again: less than 0.01 twice.
    transitions = run(*[RoundCompleted(accuracy) for accuracy in (0.5, 0.6, 0.605, 0.605)])
    assert [type(state) for state, _ in transitions] == [Training, Training, Training, Evaluating]
    assert transitions[-1][0] == Evaluating(5, "federated evaluation did not improve for 2 rounds")


def test_one_good_round_renews_the_patience() -> None:
    *_, (state, _) = run(*[RoundCompleted(accuracy) for accuracy in (0.5, 0.5, 0.6, 0.6)])
    assert state == Training(round_number=5, trained_count=4, best_accuracy=0.6, stale_count=1)


def test_a_round_without_any_holdout_says_nothing_about_learning() -> None:
    *_, (state, _) = run(*[RoundCompleted(None)] * 5)
    assert state == Training(round_number=6, trained_count=5)


def test_rounds_that_fail_in_a_row_are_tried_less_and_less_often() -> None:
    waits_s = [actions[0].after_s for _, actions in run(*[RoundAbandoned()] * 12) if isinstance(actions[0], OpenRound)]
    assert waits_s == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]


def test_a_round_that_succeeds_ends_the_waiting() -> None:
    *_, (state, actions) = run(RoundAbandoned(), RoundAbandoned(), RoundCompleted(0.5))
    assert state == Training(round_number=4, trained_count=1, best_accuracy=0.5)
    assert actions == (OpenRound(4, "train", 0.4),)


def test_a_task_gives_up_after_twenty_rounds_in_a_row() -> None:
    transitions = run(*[RoundAbandoned()] * ABANDONED_MAX)
    assert isinstance(transitions[-2][0], Training)
    assert transitions[-1] == (Finished("20 rounds in a row were abandoned"), ())


def test_an_evaluation_gives_up_after_twenty_rounds_in_a_row_as_well() -> None:
    state: task_progress.TaskState = EVALUATING
    for _ in range(ABANDONED_MAX):
        state, _ = step(state, RoundAbandoned(), SETTINGS)
    assert state == Finished("round limit of 6 reached; its evaluation was abandoned 20 times")


def test_a_paused_task_that_comes_to_its_end_still_publishes_exactly() -> None:
    last = Paused(Training(round_number=6, trained_count=5))
    assert step(last, RoundCompleted(0.9), SETTINGS) == (Paused(EVALUATING), (FlushCheckpoint(),))


EVENT = st.one_of(
    st.builds(RoundCompleted, st.none() | st.floats(0.0, 1.0)),
    st.just(RoundAbandoned()),
    st.sampled_from([PauseAsked(), ResumeAsked()]),
)


@given(st.lists(EVENT, max_size=80))
def test_rounds_are_numbered_upwards_and_each_is_trained_at_most_once(history: list[task_progress.TaskEvent]) -> None:
    state: task_progress.TaskState = Training()
    opened = [1]
    trained_count = 0
    for event in history:
        before, (state, actions) = state, step(state, event, SETTINGS)
        if not isinstance(before, Finished):
            trained_count += isinstance(event, RoundCompleted)
        opened += [action.number for action in actions if isinstance(action, OpenRound)]
        if isinstance(before, Paused) and not isinstance(event, ResumeAsked):
            assert not any(isinstance(action, OpenRound) for action in actions)
    assert opened == sorted(opened)
    assert trained_count <= SETTINGS.rounds_max + 1  # And the evaluation.
