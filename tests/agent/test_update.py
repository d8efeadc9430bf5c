"""The update machine on its own: its table, and what must hold whatever happens."""

import msgspec
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from hypothesis.strategies import integers, sampled_from

from edge_agent import update
from federated_core.protocol.messages import BlobReference, ReleaseConclusion, SignedManifest
from federated_core.release.manifest import ReleaseManifest

BLOB = BlobReference(bytes(32), 10)
MANIFEST = ReleaseManifest(1, "demo", "gestures", 8, "gestures", 20, BLOB, BLOB, 1_000, 2_000, 0.05)
BEFORE = ReleaseConclusion(6, "committed")


def candidate(number: int = 8) -> update.Candidate:
    """Return an accepted release; its bytes do not matter to the machine."""
    manifest = msgspec.structs.replace(MANIFEST, number=number)
    return update.Candidate(manifest, SignedManifest(b"", bytes(8), bytes(64)), ())


def run(state: update.UpdateState, *events: update.UpdateEvent) -> update.UpdateState:
    """Advance through all events."""
    for event in events:
        state, _ = update.step(state, event)
    return state


def test_a_good_release_goes_from_offer_to_commit() -> None:
    state: update.UpdateState = update.Idle(BEFORE)
    seen = []
    for event in (
        update.Offered(candidate()),
        update.Fetched(),
        update.Installed(),
        update.Passed(),
        update.Committed(),
    ):
        state, actions = update.step(state, event)
        seen.append([type(action).__name__ for action in actions])
    assert seen == [["Fetch"], ["Install"], ["Try"], ["StopTrial", "Commit"], ["Discard", "Report"]]
    assert state == update.Idle(ReleaseConclusion(8, "committed"))


@pytest.mark.parametrize("number", [6, 5, 1])
def test_a_number_that_was_concluded_is_never_tried_again(number: int) -> None:
    failed = update.Idle(ReleaseConclusion(6, "failed", "not-finite"))
    assert update.step(failed, update.Offered(candidate(number))) == (failed, ())


def test_a_failed_release_is_concluded_with_its_reason_and_reported() -> None:
    rolling, actions = update.step(
        update.Trying(candidate(), BEFORE, 1), update.Unfit("less-accurate", "0.61, ran 0.83")
    )
    assert actions == (update.StopTrial(), update.Discard())
    assert update.step(rolling, update.Discarded()) == (
        update.Idle(ReleaseConclusion(8, "failed", "less-accurate", "0.61, ran 0.83")),
        (update.Report(),),
    )


@pytest.mark.parametrize("event", [update.Restarted(), update.ChildDied()])
@pytest.mark.parametrize("state", [update.Installing(candidate(), BEFORE, 1), update.Trying(candidate(), BEFORE, 1)])
def test_an_attempt_that_ends_without_an_answer_is_counted_and_the_third_is_the_last(
    state: update.Installing | update.Trying, event: update.UpdateEvent
) -> None:
    second, third = run(state, event), run(state, event, event)
    assert isinstance(second, update.Installing | update.Trying)
    assert isinstance(third, update.Installing | update.Trying)
    assert (second.attempt, third.attempt) == (2, 3)
    given_up = run(third, event)
    assert isinstance(given_up, update.RollingBack)
    assert given_up.reason == "crashed"


def test_a_trial_that_hangs_is_ended_and_its_release_rolled_back() -> None:
    after, actions = update.step(update.Trying(candidate(), BEFORE, 1), update.Overdue())
    assert isinstance(after, update.RollingBack)
    assert after.reason == "timed-out"
    assert actions[0] == update.StopTrial()


def test_what_cannot_be_fetched_now_is_asked_for_later_and_nothing_is_concluded() -> None:
    after, actions = update.step(update.Downloading(candidate(), BEFORE), update.FetchFailed())
    assert (after, actions) == (update.Idle(BEFORE), (update.StopFetching(), update.AskLater()))
    assert isinstance(run(after, update.Offered(candidate())), update.Downloading)


def test_training_that_moved_the_base_costs_another_offer_and_not_the_release() -> None:
    after, actions = update.step(update.Installing(candidate(), BEFORE, 2), update.BaseMoved())
    assert (after, actions[-1]) == (update.Idle(BEFORE), update.AskLater())


def test_a_newer_offer_takes_the_place_of_a_download_but_not_of_a_trial() -> None:
    downloading = run(update.Downloading(candidate(8), BEFORE), update.Offered(candidate(9)))
    assert downloading == update.Downloading(candidate(9), BEFORE)
    assert run(downloading, update.Offered(candidate(8))) == downloading
    trying = update.Trying(candidate(8), BEFORE, 1)
    assert run(trying, update.Offered(candidate(9))) == trying


def test_a_full_disk_at_the_swap_leaves_what_runs() -> None:
    after = run(update.Committing(candidate(), BEFORE), update.CommitFailed("disk full"), update.Discarded())
    assert after == update.Idle(ReleaseConclusion(8, "failed", "no-room", "disk full"))


EVENTS: list[update.UpdateEvent] = [
    update.Restarted(),
    update.LinkRestored(),
    update.Fetched(),
    update.FetchFailed(),
    update.Installed(),
    update.BaseMoved(),
    update.Passed(),
    update.Unfit("not-finite", "NaN"),
    update.ChildDied(),
    update.Overdue(),
    update.Committed(),
    update.CommitFailed("full"),
    update.Discarded(),
]


class AnyHistory(RuleBasedStateMachine):
    """Whatever happens in whatever order."""

    def __init__(self) -> None:
        super().__init__()
        self.state: update.UpdateState = update.Idle()
        self.floor = 0
        self.tried: set[int] = set()
        self.concluded: dict[int, str] = {}

    def happen(self, event: update.UpdateEvent) -> None:
        """Advance and note what is to be checked."""
        before = self.state
        self.state, actions = update.step(before, event)
        for action in actions:
            if isinstance(action, update.Fetch | update.Install | update.Try | update.Commit):
                assert action.candidate.manifest.number not in self.concluded, "a concluded number was tried again"
            if isinstance(action, update.Commit):
                assert isinstance(before, update.Trying | update.Committing), "committed without a trial"
        if isinstance(self.state, update.Idle) and self.state.concluded is not None:
            self.concluded[self.state.concluded.number] = self.state.concluded.outcome

    @rule(number=integers(1, 6))
    def offered(self, number: int) -> None:
        self.happen(update.Offered(candidate(number)))

    @rule(event=sampled_from(EVENTS))
    def anything(self, event: update.UpdateEvent) -> None:
        self.happen(event)

    @invariant()
    def the_floor_never_sinks(self) -> None:
        assert update.floor_of(self.state) >= self.floor
        self.floor = update.floor_of(self.state)

    @invariant()
    def the_journal_gives_the_same_state_again(self) -> None:
        assert update.STATES.decode(msgspec.msgpack.encode(self.state)) == self.state

    @invariant()
    def attempts_are_bounded(self) -> None:
        if isinstance(self.state, update.Installing | update.Trying):
            assert 1 <= self.state.attempt <= update.ATTEMPTS_MAX


TestAnyHistory = AnyHistory.TestCase
