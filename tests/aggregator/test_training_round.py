"""The round machine: every pair of state and event, the verdicts, and histories in which nobody may count twice."""

from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_aggregator import training_round
from cloud_aggregator.selection import select_cohort
from cloud_aggregator.training_round import (
    Abandoned,
    Aborted,
    Accepted,
    Acknowledge,
    Aggregate,
    Aggregated,
    Aggregating,
    Assign,
    AssignmentGivenBack,
    AwaitDeadline,
    AwaitSelection,
    Cancel,
    CheckedIn,
    Collecting,
    Completed,
    DeadlinePassed,
    ExpectUpdate,
    Finish,
    GivenBack,
    Refused,
    Reported,
    Restarted,
    RoundSettings,
    Selecting,
    SelectionDue,
    TurnAway,
    UpdateJudged,
    begin,
    step,
)
from federated_core.protocol.messages import BlobReference, Metrics, Report, Verdict
from tests.aggregator.round_examples import (
    BASE,
    COHORT,
    HEAD,
    SETTINGS,
    accepted_of,
    candidate_of,
    head_of,
    report_of,
)

WAITING = (candidate_of("e"),)
A, B, C, D = (candidate_of(device) for device in COHORT)

SELECTING = Selecting(HEAD, (A, B))
# "a" counts, "b" has announced an update, "c" and "d" work, "e" waits for the next round.
COLLECTING = Collecting(HEAD, COHORT, (("b", report_of("b")),), (accepted_of("a"),), waiting=WAITING)
ACCEPTED = (accepted_of("a"), accepted_of("b"), accepted_of("c"))
AGGREGATING = Aggregating(HEAD, COHORT, ACCEPTED, (), (), WAITING)
COMPLETED = Completed(HEAD, COHORT, ACCEPTED, (), ())
ABANDONED = Abandoned(HEAD, "why", COHORT, (accepted_of("a"),))

STATES: tuple[training_round.RoundState, ...] = (SELECTING, COLLECTING, AGGREGATING, COMPLETED, ABANDONED)
EVENTS: tuple[training_round.RoundEvent, ...] = (
    Restarted(),
    CheckedIn(candidate_of("f"), population=20),
    SelectionDue(),
    Reported("b", report_of("b")),
    UpdateJudged("b", "accepted"),
    AssignmentGivenBack("c", "deadline"),
    DeadlinePassed(),
    Aggregated(),
    Aborted("by the operator"),
)


def changed(state: training_round.RoundState, **fields: object) -> training_round.RoundState:
    return msgspec.structs.replace(state, **fields)


# The whole diagram for the states and events above. What is not in this table changes nothing.
TABLE: dict[tuple[type, type], training_round.Transition] = {
    (Selecting, Restarted): (Selecting(HEAD), (AwaitSelection(30.0),)),
    (Selecting, CheckedIn): (Selecting(HEAD, (A, B, candidate_of("f"))), ()),
    (Selecting, SelectionDue): (
        Collecting(HEAD, tuple(one.device for one in select_cohort((A, B), 2, HEAD.seed))),
        (AwaitDeadline(600.0), Assign(select_cohort((A, B), 2, HEAD.seed))),
    ),
    (Selecting, Aborted): (Abandoned(HEAD, "by the operator"), (Finish((A, B)),)),
    (Collecting, Restarted): (COLLECTING, (AwaitDeadline(600.0), ExpectUpdate("b", report_of("b")))),
    (Collecting, CheckedIn): (changed(COLLECTING, waiting=(*WAITING, candidate_of("f"))), ()),
    (Collecting, Reported): (COLLECTING, (ExpectUpdate("b", report_of("b")),)),
    (Collecting, UpdateJudged): (
        changed(COLLECTING, announced=(), accepted=(accepted_of("a"), accepted_of("b"))),
        (Acknowledge("b", "accepted"),),
    ),
    (Collecting, AssignmentGivenBack): (changed(COLLECTING, given_back=(GivenBack("c", "deadline"),)), ()),
    (Collecting, DeadlinePassed): (
        Abandoned(HEAD, "1 reports at the deadline, needs 2", COHORT, (accepted_of("a"),)),
        (Cancel(("b", "c", "d")), Finish(WAITING)),
    ),
    (Collecting, Aborted): (
        Abandoned(HEAD, "by the operator", COHORT, (accepted_of("a"),)),
        (Cancel(("b", "c", "d")), Finish(WAITING)),
    ),
    (Aggregating, Restarted): (AGGREGATING, (Aggregate(ACCEPTED),)),
    (Aggregating, CheckedIn): (changed(AGGREGATING, waiting=(*WAITING, candidate_of("f"))), ()),
    (Aggregating, Reported): (AGGREGATING, (Acknowledge("b", "accepted"),)),
    (Aggregating, Aggregated): (COMPLETED, (Finish(WAITING),)),
    (Aggregating, Aborted): (Abandoned(HEAD, "by the operator", COHORT, ACCEPTED), (Finish(WAITING),)),
    (Completed, Restarted): (COMPLETED, (Finish(()),)),
    (Completed, Reported): (COMPLETED, (Acknowledge("b", "accepted"),)),
    (Abandoned, Restarted): (ABANDONED, (Finish(()),)),
    (Abandoned, Reported): (ABANDONED, (Acknowledge("b", "late"),)),
}

every_pair = pytest.mark.parametrize(
    ("state", "event"),
    [(state, event) for state in STATES for event in EVENTS],
    ids=lambda value: type(value).__name__,
)


def test_the_tables_hold_every_state_and_every_event() -> None:
    assert {type(state) for state in STATES} == set(get_args(training_round.RoundState))
    assert {type(event) for event in EVENTS} == set(get_args(training_round.RoundEvent))


@every_pair
def test_a_pair_does_what_the_diagram_says_and_an_event_out_of_season_nothing(
    state: training_round.RoundState, event: training_round.RoundEvent
) -> None:
    assert step(state, event) == TABLE.get((type(state), type(event)), (state, ()))


@every_pair
def test_an_event_that_comes_twice_leads_where_it_led_before(
    state: training_round.RoundState, event: training_round.RoundEvent
) -> None:
    after, _ = step(state, event)
    assert step(after, event)[0] == after


@pytest.mark.parametrize("state", STATES, ids=lambda state: type(state).__name__)
def test_a_state_survives_the_journal(state: training_round.RoundState) -> None:
    decoder: msgspec.msgpack.Decoder[training_round.RoundState] = msgspec.msgpack.Decoder(training_round.RoundState)
    assert decoder.decode(msgspec.msgpack.encode(state)) == state


# --- Selecting


def test_a_round_opens_with_a_window_for_check_ins() -> None:
    assert begin(HEAD) == (Selecting(HEAD), (AwaitSelection(30.0),))


def test_selection_ends_at_once_when_the_whole_population_is_there() -> None:
    state, _ = begin(HEAD)
    for candidate in (A, B, C):
        state, actions = step(state, CheckedIn(candidate, population=4))
        assert actions == ()
    state, actions = step(state, CheckedIn(D, population=4))
    assert isinstance(state, Collecting)
    assert set(state.cohort) == set(COHORT)
    deadline, assign = actions
    assert isinstance(assign, Assign)
    assert set(assign.candidates) == {A, B, C, D}
    assert deadline == AwaitDeadline(600.0)


def test_whoever_checks_in_first_is_not_selected_for_it() -> None:
    state, _ = begin(HEAD)
    crowd = tuple(candidate_of(f"device-{number}") for number in range(19))
    for candidate in crowd:
        state, actions = step(state, CheckedIn(candidate, population=20))
        assert actions == (), "the window is still open, and one device may yet come"
    state, _ = step(state, SelectionDue())
    assert isinstance(state, Collecting)
    assert set(state.cohort) != {candidate.device for candidate in crowd[: len(state.cohort)]}


def test_a_small_fleet_is_not_waited_for_in_vain() -> None:
    state, _ = begin(HEAD)
    state, _ = step(state, CheckedIn(A, population=2))
    state, _ = step(state, CheckedIn(B, population=2))
    assert isinstance(state, Collecting)


def test_too_few_devices_are_waited_for_once_more() -> None:
    state = Selecting(HEAD, (A,))
    assert step(state, SelectionDue()) == (state, (AwaitSelection(30.0),))


def test_who_is_not_drawn_is_turned_away() -> None:
    crowd = tuple(candidate_of(f"device-{number}") for number in range(9))
    state, actions = step(Selecting(HEAD, crowd), SelectionDue())
    assert isinstance(state, Collecting)
    _, assign, turn_away = actions
    assert isinstance(assign, Assign)
    assert isinstance(turn_away, TurnAway)
    assert (len(assign.candidates), len(turn_away.candidates)) == (4, 5)
    assert set(assign.candidates) | set(turn_away.candidates) == set(crowd)


def test_a_device_that_checks_in_again_is_answered_under_its_new_id() -> None:
    state, _ = step(Selecting(HEAD, (A, B)), CheckedIn(candidate_of("a", attempt=2), population=20))
    assert state == Selecting(HEAD, (B, candidate_of("a", attempt=2)))


# --- Collecting


def test_a_device_whose_assignment_was_lost_is_assigned_again() -> None:
    again = candidate_of("c", attempt=2)
    assert step(COLLECTING, CheckedIn(again, population=20)) == (COLLECTING, (Assign((again,)),))


def test_a_device_that_is_done_waits_for_the_next_round() -> None:
    again = candidate_of("a", attempt=2)
    state, actions = step(COLLECTING, CheckedIn(again, population=20))
    assert isinstance(state, Collecting)
    assert (state.waiting, actions) == ((*WAITING, again), ())


def test_the_report_that_reaches_the_goal_closes_the_round() -> None:
    state = changed(COLLECTING, accepted=(accepted_of("a"), accepted_of("c")))
    after, actions = step(state, UpdateJudged("b", "accepted"))
    accepted = (accepted_of("a"), accepted_of("c"), accepted_of("b"))
    assert after == Aggregating(HEAD, COHORT, accepted, (), (), WAITING)
    assert actions == (Acknowledge("b", "accepted"), Cancel(("d",)), Aggregate(accepted))


def test_at_the_deadline_enough_reports_are_enough() -> None:
    accepted = (accepted_of("a"), accepted_of("c"))
    after, actions = step(changed(COLLECTING, accepted=accepted), DeadlinePassed())
    assert after == Aggregating(HEAD, COHORT, accepted, (), (), WAITING)
    assert actions == (Cancel(("b", "d")), Aggregate(accepted))


def test_the_last_answer_of_the_cohort_closes_the_round_before_the_deadline() -> None:
    given_back = (GivenBack("c", "deadline"), GivenBack("d", "deadline"))
    after, actions = step(changed(COLLECTING, given_back=given_back), UpdateJudged("b", "accepted"))
    assert isinstance(after, Aggregating)
    assert [type(action) for action in actions] == [Acknowledge, Aggregate]


def test_when_all_have_given_back_the_round_is_abandoned_at_once() -> None:
    state: training_round.RoundState = Collecting(HEAD, COHORT)
    for device in COHORT[:3]:
        state, actions = step(state, AssignmentGivenBack(device, "became-ineligible"))
        assert actions == ()
    state, actions = step(state, AssignmentGivenBack("d", "became-ineligible"))
    assert isinstance(state, Abandoned)
    assert state.why == "0 reports from the whole cohort, needs 2"
    assert actions == (Finish(()),)


def test_an_assignment_that_was_given_back_takes_its_announced_update_along() -> None:
    state, _ = step(COLLECTING, AssignmentGivenBack("b", "deadline"))
    assert isinstance(state, Collecting)
    assert state.announced == ()
    assert step(state, UpdateJudged("b", "accepted")) == (state, ())


def test_a_report_that_counts_cannot_be_given_back() -> None:
    assert step(COLLECTING, AssignmentGivenBack("a", "deadline")) == (COLLECTING, ())
    assert step(COLLECTING, AssignmentGivenBack("stranger", "deadline")) == (COLLECTING, ())


# --- Verdicts


def with_metrics(report: Report, **fields: object) -> Report:
    return msgspec.structs.replace(report, metrics=msgspec.structs.replace(report.metrics, **fields))


FAULTS: list[tuple[Report, Verdict]] = [
    (msgspec.structs.replace(report_of("c"), base=BASE[::-1]), "wrong-base"),
    (report_of("c", kind="evaluate"), "wrong-plan"),
    (msgspec.structs.replace(report_of("c"), update=None), "wrong-plan"),
    (report_of("c", example_count=9), "too-few-examples"),
    (report_of("c", example_count=101), "too-many-examples"),
    (with_metrics(report_of("c"), example_count=101, correct_count=0), "too-many-examples"),
    (with_metrics(report_of("c"), correct_count=11), "malformed"),
    (with_metrics(report_of("c"), loss_sum=float("inf")), "not-finite"),
    (with_metrics(report_of("c"), loss_sum=float("nan")), "not-finite"),
    (msgspec.structs.replace(report_of("c"), training_loss=float("nan")), "not-finite"),
    (msgspec.structs.replace(report_of("c"), update=BlobReference(BASE, 2001)), "too-large"),
]


@pytest.mark.parametrize(("report", "verdict"), FAULTS, ids=[verdict for _, verdict in FAULTS])
def test_a_report_with_a_fault_is_refused_for_it_whenever_it_comes(report: Report, verdict: Verdict) -> None:
    state, actions = step(COLLECTING, Reported("c", report))
    assert isinstance(state, Collecting)
    assert state.refused == (Refused("c", verdict),)
    assert actions == (Acknowledge("c", verdict),)
    assert step(state, Reported("c", report)) == (state, (Acknowledge("c", verdict),))
    assert step(state, Reported("c", report_of("c"))) == (state, (Acknowledge("c", verdict),))  # No second try.


@pytest.mark.parametrize("example_count", [10, 100])
def test_a_count_at_the_plan_s_bound_is_within_it(example_count: int) -> None:
    report = report_of("c", example_count)
    assert step(COLLECTING, Reported("c", report))[1] == (ExpectUpdate("c", report),)


def test_a_device_that_was_not_selected_is_told_so() -> None:
    assert step(COLLECTING, Reported("e", report_of("e"))) == (COLLECTING, (Acknowledge("e", "not-selected"),))


def test_a_redelivered_report_is_acknowledged_and_not_counted() -> None:
    assert step(COLLECTING, Reported("a", report_of("a", 99))) == (COLLECTING, (Acknowledge("a", "accepted"),))


@pytest.mark.parametrize("verdict", [verdict for verdict in get_args(Verdict) if verdict != "accepted"])
def test_an_update_that_was_judged_badly_is_refused(verdict: Verdict) -> None:
    state, actions = step(COLLECTING, UpdateJudged("b", verdict))
    assert isinstance(state, Collecting)
    assert (state.refused, state.announced, actions) == ((Refused("b", verdict),), (), (Acknowledge("b", verdict),))


@pytest.mark.parametrize("device", ["d", "stranger"])
@pytest.mark.parametrize("state", [AGGREGATING, COMPLETED, ABANDONED], ids=lambda state: type(state).__name__)
def test_who_reports_after_the_close_is_late(state: training_round.RoundState, device: str) -> None:
    assert step(state, Reported(device, report_of(device))) == (state, (Acknowledge(device, "late"),))


def test_an_evaluation_counts_without_an_update() -> None:
    state: training_round.RoundState = Collecting(head_of("evaluate"), COHORT)
    state, actions = step(state, Reported("a", report_of("a", kind="evaluate")))
    assert isinstance(state, Collecting)
    assert state.accepted == (Accepted("a", 40, Metrics(10, 7, 3.5), None, 0.25, 1.5),)
    assert actions == (Acknowledge("a", "accepted"),)


# --- Histories

DEVICES = ("a", "b", "c", "d", "e", "f")
NAMES = st.sampled_from(DEVICES)
REPORTS = st.builds(report_of, NAMES, st.sampled_from([5, 10, 40, 100, 500]))
EVENT = st.one_of(
    st.just(Restarted()),
    st.builds(lambda name, attempt: CheckedIn(candidate_of(name, attempt), 6), NAMES, st.integers(1, 3)),
    st.just(SelectionDue()),
    st.builds(Reported, NAMES, REPORTS),
    st.builds(UpdateJudged, NAMES, st.sampled_from(["accepted", "accepted", "malformed"])),
    st.builds(AssignmentGivenBack, NAMES, st.just("deadline")),
)
ENDINGS = st.sampled_from([DeadlinePassed(), Aggregated(), Aborted("why")])
# Most of a history is reports; a round that ends too soon tells little.
HISTORIES = st.lists(st.one_of(*([EVENT] * 8), ENDINGS), max_size=80)
ROUNDS = st.builds(
    RoundSettings,
    goal=st.integers(2, 4),
    report_count_min=st.integers(1, 2),
    overselection_ratio=st.sampled_from([1.0, 1.3, 2.0]),
)


@given(ROUNDS, HISTORIES)
def test_whatever_is_delivered_a_device_counts_at_most_once(
    settings: RoundSettings, history: list[training_round.RoundEvent]
) -> None:
    state, _ = begin(head_of(settings=settings))
    for event in history:
        before, (state, actions) = state, step(state, event)
        if isinstance(state, Selecting):
            continue
        devices = [one.device for one in state.accepted]
        assert len(set(devices)) == len(devices)
        assert set(devices) <= set(state.cohort)
        assert len(devices) <= settings.goal
        assert all(10 <= one.example_count <= 100 for one in state.accepted)
        assert not set(devices) & {one.device for one in state.refused}
        if not isinstance(before, Selecting):
            assert state.accepted[: len(before.accepted)] == before.accepted  # What counts is never taken back.
            assert state.cohort == before.cohort
        if isinstance(state, Completed):
            assert settings.report_count_min <= len(devices)
            assert isinstance(before, Aggregating | Completed)
        if isinstance(before, Aggregating | Completed | Abandoned):
            assert state.accepted == before.accepted
        for action in actions:
            match action:
                case Aggregate(accepted):
                    assert accepted == state.accepted
                case Acknowledge(device, "accepted"):
                    assert device in devices
                case Cancel(cancelled):
                    assert not set(cancelled) & set(devices)
                case _:
                    pass


@given(ROUNDS, HISTORIES)
def test_after_any_history_the_round_goes_on_or_is_over(
    settings: RoundSettings, history: list[training_round.RoundEvent]
) -> None:
    state, actions = begin(head_of(settings=settings))
    pending = {"selection"}
    for event in history:
        if isinstance(event, Restarted):
            pending.clear()
        if isinstance(event, SelectionDue):
            if "selection" not in pending:
                continue
            pending.discard("selection")
        if isinstance(event, DeadlinePassed):
            if "deadline" not in pending:
                continue
            pending.discard("deadline")
        before, (state, actions) = state, step(state, event)
        for action in actions:
            match action:
                case AwaitSelection():
                    pending.add("selection")
                case AwaitDeadline():
                    pending = {"deadline"}
                case _:
                    pass
        if isinstance(state, Selecting):
            assert "selection" in pending
        if isinstance(state, Collecting):
            assert "deadline" in pending
            assert training_round.outstanding(state)
        if isinstance(state, Aggregating) and not isinstance(before, Aggregating):
            assert sum(isinstance(action, Aggregate) for action in actions) == 1
        if isinstance(state, Completed | Abandoned) and not isinstance(before, Completed | Abandoned):
            assert sum(isinstance(action, Finish) for action in actions) == 1
        if isinstance(event, Reported) and not isinstance(state, Selecting):
            answers = [action for action in actions if isinstance(action, Acknowledge | ExpectUpdate)]
            assert [answer.device for answer in answers] == [event.device]  # Nobody reports into the void.


@given(st.permutations(COHORT), st.integers(0, 3))
def test_with_the_same_devices_the_order_of_reports_changes_nothing_but_the_order(order: list[str], rest: int) -> None:
    settings = msgspec.structs.replace(SETTINGS, goal=4)
    state: training_round.RoundState = Collecting(head_of(settings=settings), COHORT)
    for device in order:
        state, _ = step(state, Reported(device, report_of(device)))
    for device in order[rest:] + order[:rest]:
        state, _ = step(state, UpdateJudged(device, "accepted"))
    assert isinstance(state, Aggregating)
    assert {one.device: one for one in state.accepted} == {device: accepted_of(device) for device in COHORT}
