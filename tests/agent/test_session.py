"""The session machine: every pair of state and event, and long histories in which nobody may get stuck."""

from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import session
from edge_agent.session import (
    PACING_AFTER_FAILURE,
    PACING_AFTER_SILENCE,
    PACING_AFTER_START,
    AnswerOverdue,
    AwaitPacing,
    BecameEligible,
    BecameIneligible,
    CheckedIn,
    DeadlinePassed,
    EmptyOutbox,
    Fetch,
    Fetched,
    FetchFailed,
    Fetching,
    JudgeEligibility,
    LinkRestored,
    PacingElapsed,
    Reporting,
    Restarted,
    Resting,
    SendAbandonment,
    SendCheckIn,
    SendReport,
    StartTraining,
    StopWork,
    Trained,
    Training,
    TrainingFailed,
    step,
)
from federated_core.protocol.messages import (
    AbandonReason,
    Acknowledgement,
    Assignment,
    Cancellation,
    CheckpointReference,
    Metrics,
    Plan,
    Rejection,
    Report,
    RetryWindow,
    Verdict,
)

ID, OTHER_ID = b"check-in", b"another."
WINDOW = RetryWindow(5.0, 30.0)


def assignment_of(check_in_id: bytes, round_number: int = 4) -> Assignment:
    base = CheckpointReference(3, bytes(32))
    return Assignment(check_in_id, "task", round_number, Plan("train"), base, bytes(32), bytes(64), (), 600.0)


def report_of(round_number: int = 4) -> Report:
    return Report("task", round_number, "train", bytes(32), 40, Metrics(10, 7, 3.5))


WORK, REPORT = assignment_of(ID), report_of()

STATES: tuple[session.SessionState, ...] = (
    Resting(),
    CheckedIn(ID),
    Fetching(WORK),
    Training(WORK),
    Reporting(REPORT),
)
EVENTS: tuple[session.SessionEvent, ...] = (
    Restarted(),
    LinkRestored(),
    PacingElapsed(),
    BecameEligible(ID),
    BecameIneligible(),
    AnswerOverdue(),
    WORK,
    Rejection(ID, "not-selected", WINDOW),
    Fetched(),
    FetchFailed("fetch-failed"),
    Trained(REPORT),
    TrainingFailed("training-failed"),
    DeadlinePassed(),
    Acknowledgement("task", 4, "accepted", WINDOW),
    Cancellation("task", 4, WINDOW),
)


def given_back(why: AbandonReason) -> session.Transition:
    return Resting(), (StopWork(), SendAbandonment("task", 4, why), AwaitPacing(PACING_AFTER_FAILURE))


# The whole diagram. What is not in this table changes nothing.
TABLE: dict[tuple[type, type], session.Transition] = {
    (Resting, Restarted): (Resting(), (AwaitPacing(PACING_AFTER_START),)),
    (CheckedIn, Restarted): (Resting(), (AwaitPacing(PACING_AFTER_START),)),
    (Fetching, Restarted): (Fetching(WORK), (Fetch(WORK),)),
    (Training, Restarted): (Fetching(WORK), (Fetch(WORK),)),
    (Reporting, Restarted): (Reporting(REPORT), (SendReport(REPORT),)),
    (CheckedIn, LinkRestored): (CheckedIn(ID), (SendCheckIn(ID),)),
    (Fetching, LinkRestored): (Fetching(WORK), (Fetch(WORK),)),
    (Reporting, LinkRestored): (Reporting(REPORT), (SendReport(REPORT),)),
    (Resting, PacingElapsed): (Resting(), (JudgeEligibility(),)),
    (Resting, BecameEligible): (CheckedIn(ID), (SendCheckIn(ID),)),
    (Resting, BecameIneligible): (Resting(), (AwaitPacing(PACING_AFTER_FAILURE),)),
    (Fetching, BecameIneligible): given_back("became-ineligible"),
    (Training, BecameIneligible): given_back("became-ineligible"),
    (CheckedIn, AnswerOverdue): (Resting(), (AwaitPacing(PACING_AFTER_SILENCE),)),
    (Reporting, AnswerOverdue): (Reporting(REPORT), (SendReport(REPORT),)),
    (CheckedIn, Assignment): (Fetching(WORK), (Fetch(WORK),)),
    (CheckedIn, Rejection): (Resting(), (AwaitPacing(WINDOW),)),
    (Fetching, Fetched): (Training(WORK), (StartTraining(WORK),)),
    (Fetching, FetchFailed): given_back("fetch-failed"),
    (Training, Trained): (Reporting(REPORT), (StopWork(), SendReport(REPORT))),
    (Training, TrainingFailed): given_back("training-failed"),
    (Fetching, DeadlinePassed): given_back("deadline"),
    (Training, DeadlinePassed): given_back("deadline"),
    (Reporting, Acknowledgement): (Resting(), (EmptyOutbox("task", 4), AwaitPacing(WINDOW))),
    (Fetching, Cancellation): (Resting(), (StopWork(), AwaitPacing(WINDOW))),
    (Training, Cancellation): (Resting(), (StopWork(), AwaitPacing(WINDOW))),
    (Reporting, Cancellation): (Resting(), (EmptyOutbox("task", 4), AwaitPacing(WINDOW))),
}

every_pair = pytest.mark.parametrize(
    ("state", "event"),
    [(state, event) for state in STATES for event in EVENTS],
    ids=lambda value: type(value).__name__,
)


def test_the_tables_hold_every_state_and_every_event() -> None:
    assert {type(state) for state in STATES} == set(get_args(session.SessionState))
    assert {type(event) for event in EVENTS} == set(get_args(session.SessionEvent))


@every_pair
def test_a_pair_does_what_the_diagram_says_and_an_event_out_of_season_nothing(
    state: session.SessionState, event: session.SessionEvent
) -> None:
    assert step(state, event) == TABLE.get((type(state), type(event)), (state, ()))


@every_pair
def test_an_event_that_comes_twice_leads_where_it_led_before(
    state: session.SessionState, event: session.SessionEvent
) -> None:
    after, _ = step(state, event)
    assert step(after, event)[0] == after


@pytest.mark.parametrize("state", STATES, ids=lambda state: type(state).__name__)
def test_a_state_survives_the_journal(state: session.SessionState) -> None:
    assert session.STATES.decode(msgspec.msgpack.encode(state)) == state


@pytest.mark.parametrize("state", STATES, ids=lambda state: type(state).__name__)
@pytest.mark.parametrize(
    "event",
    [
        assignment_of(OTHER_ID, 5),
        Rejection(OTHER_ID, "not-selected", WINDOW),
        Acknowledgement("task", 3, "accepted", WINDOW),
        Acknowledgement("another", 4, "accepted", WINDOW),
        Cancellation("task", 5, WINDOW),
        Cancellation("another", 4, WINDOW),
    ],
    ids=lambda event: type(event).__name__,
)
def test_an_answer_to_something_else_changes_nothing(state: session.SessionState, event: session.SessionEvent) -> None:
    assert step(state, event) == (state, ())


@pytest.mark.parametrize("verdict", get_args(Verdict))
def test_a_report_is_over_whatever_the_verdict(verdict: Verdict) -> None:
    decided = Acknowledgement("task", 4, verdict, WINDOW)
    assert step(Reporting(REPORT), decided) == (Resting(), (EmptyOutbox("task", 4), AwaitPacing(WINDOW)))


def test_a_report_is_sent_although_the_device_is_in_use_again() -> None:
    assert step(Reporting(REPORT), BecameIneligible()) == (Reporting(REPORT), ())


# --- Histories

# What must be on its way in a state, lest the device wait for ever.
WAKE_UP = {Resting: "pacing", CheckedIn: "answer", Fetching: "deadline", Training: "deadline", Reporting: "answer"}
SETS = {AwaitPacing: "pacing", SendCheckIn: "answer", Fetch: "deadline", SendReport: "answer"}
FIRES = {PacingElapsed: "pacing", AnswerOverdue: "answer", DeadlinePassed: "deadline"}

ROUNDS = st.integers(1, 3)
IDS = st.sampled_from([ID, OTHER_ID])
WHYS = st.sampled_from(["fetch-failed", "untrusted"])
HISTORIES = st.lists(
    st.one_of(
        st.sampled_from([Restarted(), LinkRestored(), PacingElapsed(), BecameIneligible(), AnswerOverdue()]),
        st.sampled_from([Fetched(), DeadlinePassed()]),
        st.builds(BecameEligible, IDS),
        st.builds(assignment_of, IDS, ROUNDS),
        st.builds(lambda one: Rejection(one, "not-selected", WINDOW), IDS),
        st.builds(FetchFailed, WHYS),
        st.builds(TrainingFailed, WHYS),
        st.builds(lambda number: Trained(report_of(number)), ROUNDS),
        st.builds(lambda number: Acknowledgement("task", number, "accepted", WINDOW), ROUNDS),
        st.builds(lambda number: Cancellation("task", number, WINDOW), ROUNDS),
    ),
    max_size=60,
)


@given(HISTORIES)
def test_after_any_history_something_will_wake_the_device(history: list[session.SessionEvent]) -> None:
    state, actions = step(Resting(), Restarted())
    pending = {SETS[type(action)] for action in actions if type(action) in SETS}
    for event in history:
        timer = FIRES.get(type(event))
        if timer is not None and timer not in pending:
            continue  # A timer that is not set does not fire.
        pending.discard(timer or "")
        if isinstance(event, Restarted):
            pending.clear()
        state, actions = step(state, event)
        if any(isinstance(action, JudgeEligibility) for action in actions):
            state, actions = step(state, BecameIneligible())  # The loop always answers with one of the two.
        for action in actions:
            if isinstance(action, StopWork):
                pending.discard("deadline")
            if isinstance(action, AwaitPacing | Fetch):
                pending.discard("answer")
            pending |= {SETS[type(action)]} if type(action) in SETS else set()
        assert WAKE_UP[type(state)] in pending


@given(HISTORIES)
def test_after_any_history_the_device_keeps_to_the_rules(history: list[session.SessionEvent]) -> None:
    state: session.SessionState = Resting()
    for event in history:
        before, (state, actions) = state, step(state, event)
        if isinstance(event, BecameIneligible):
            assert not isinstance(state, Fetching | Training)
        if isinstance(state, Fetching) and not isinstance(before, Fetching | Training):
            assert before == CheckedIn(state.assignment.check_in_id)  # Nobody works on what was not offered.
        if isinstance(state, Training):
            assert isinstance(before, Fetching | Training)
        for action in actions:
            match action:
                case StartTraining(assignment):
                    assert state == Training(assignment)
                case SendReport(report):
                    assert state == Reporting(report)
                case EmptyOutbox(task, number):
                    assert isinstance(before, Reporting)
                    assert (task, number) == (before.report.task, before.report.round)
                case _:
                    pass
