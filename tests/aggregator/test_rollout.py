"""The rollout machine: thresholds to the last device, and that nothing but a good canary opens the way to all."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_aggregator import rollout
from cloud_aggregator.rollout import (
    AdvanceAsked,
    Canary,
    CanaryOverdue,
    Completed,
    DeviceCommitted,
    DeviceFailed,
    DeviceJoined,
    Everyone,
    HaltAsked,
    Halted,
    NewerPromoted,
    Restarted,
    RolloutPolicy,
    SoakElapsed,
    Soaking,
    StageOpened,
    Superseded,
    Tally,
)

POLICY = RolloutPolicy(failure_ratio_max=0.2, finished_count_min=5, success_ratio_min=0.8, soak_s=60.0)


def run(
    state: rollout.RolloutState, *events: rollout.RolloutEvent, policy: RolloutPolicy = POLICY
) -> tuple[rollout.RolloutState, list[rollout.RolloutAction]]:
    """Advance through all events and collect the actions."""
    collected: list[rollout.RolloutAction] = []
    for event in events:
        state, actions = rollout.step(state, event, policy)
        collected += actions
    return state, collected


def test_a_good_release_goes_to_the_canary_soaks_and_goes_to_all() -> None:
    state, actions = rollout.begin(POLICY)
    assert (state, actions) == (Canary(), (rollout.OpenStage("canary"), rollout.AwaitCanary(259_200.0)))
    state, done = run(state, StageOpened(Tally(5)), *[DeviceCommitted()] * 4)
    assert state == Soaking(Tally(5, 4, 0))
    assert done[-1] == rollout.AwaitSoak(60.0)
    state, done = run(state, SoakElapsed())
    assert (state, done) == (Everyone(), [rollout.Rest(), rollout.OpenStage("everyone")])
    state, _ = run(state, StageOpened(Tally(3)), *[DeviceCommitted()] * 3)
    assert state == Completed(Tally(3, 3, 0))


def test_success_exactly_at_its_threshold_fires() -> None:
    assert isinstance(run(Canary(Tally(5, 3)), DeviceCommitted())[0], Soaking)  # 4 of 5 is 0.8.
    assert isinstance(run(Canary(Tally(6, 3)), DeviceCommitted())[0], Canary)  # 4 of 6 is less.


def test_failure_exactly_at_its_threshold_does_not_fire() -> None:
    assert isinstance(run(Canary(Tally(10, 4)), DeviceFailed())[0], Canary)  # 1 of 5 is 0.2.
    assert isinstance(run(Canary(Tally(10, 3, 1)), DeviceFailed())[0], Halted)  # 2 of 5 is more.


def test_failure_does_not_fire_before_the_minimum_count() -> None:
    assert isinstance(run(Canary(Tally(10)), *[DeviceFailed()] * 4)[0], Canary)
    assert isinstance(run(Canary(Tally(10)), *[DeviceFailed()] * 5)[0], Halted)


def test_a_canary_smaller_than_the_minimum_count_is_judged_when_all_have_finished() -> None:
    assert isinstance(run(Canary(Tally(2)), DeviceFailed())[0], Canary)
    assert run(Canary(Tally(2)), DeviceFailed(), DeviceFailed())[0] == Halted(
        Tally(2, 0, 2), "failed on 2 of 2 devices"
    )


def test_a_stage_without_devices_succeeds_and_never_fails() -> None:
    assert isinstance(run(Canary(), StageOpened(Tally()))[0], Soaking)
    assert isinstance(run(Everyone(), StageOpened(Tally()))[0], Completed)


@pytest.mark.parametrize("state", [Canary(Tally(10, 3, 1)), Soaking(Tally(10, 3, 1))])
def test_a_threshold_at_the_canary_halts_and_takes_back(state: rollout.RolloutState) -> None:
    after, actions = run(state, DeviceFailed())
    assert after == Halted(Tally(10, 3, 2), "failed on 2 of 5 devices")
    assert actions == [rollout.Rest(), rollout.TakeBack()]


def test_a_threshold_in_the_last_stage_halts_and_touches_nothing_that_committed() -> None:
    after, actions = run(Everyone(Tally(10, 3, 1)), DeviceFailed())
    assert isinstance(after, Halted)
    assert actions == [rollout.Rest()]


@pytest.mark.parametrize("state", [Canary(Tally(9)), Soaking(Tally(9)), Everyone(Tally(9))])
def test_an_operators_halt_touches_nothing_that_committed(state: rollout.RolloutState) -> None:
    assert run(state, HaltAsked()) == (Halted(Tally(9), "halted by the operator"), [rollout.Rest()])


def test_a_silent_device_is_timed_out_and_not_successful() -> None:
    after, actions = run(Canary(Tally(10, 7)), CanaryOverdue())
    assert after == Halted(Tally(10, 7, 3), "failed on 3 of 10 devices")
    assert actions == [rollout.TimeOutSilent(), rollout.Rest(), rollout.TakeBack()]


def test_a_canary_that_neither_failed_nor_succeeded_in_time_halts() -> None:
    policy = msgspec.structs.replace(POLICY, failure_ratio_max=0.5)
    after, actions = run(Canary(Tally(10, 7)), CanaryOverdue(), policy=policy)
    assert after == Halted(Tally(10, 7, 3), "only 7 of 10 committed in time")
    assert rollout.TakeBack() in actions


def test_the_soak_counts_from_the_last_success() -> None:
    after, actions = run(Soaking(Tally(5, 4)), DeviceCommitted())
    assert (after, actions) == (Soaking(Tally(5, 5)), [rollout.AwaitSoak(60.0)])


def test_everyone_now_skips_the_rest_of_the_canary() -> None:
    for state in (Canary(Tally(5)), Soaking(Tally(5, 4))):
        assert run(state, AdvanceAsked())[0] == Everyone()


def test_whoever_joins_belongs_to_the_last_stage() -> None:
    assert run(Everyone(Tally(3, 2)), DeviceJoined())[0] == Everyone(Tally(4, 2))
    assert run(Canary(Tally(3, 1)), DeviceJoined())[0] == Canary(Tally(3, 1))


def test_a_newer_release_takes_the_place_of_one_under_way_but_not_of_one_that_is_over() -> None:
    assert run(Canary(Tally(3)), NewerPromoted())[0] == Superseded(Tally(3))
    assert run(Completed(Tally(3, 3)), NewerPromoted())[0] == Completed(Tally(3, 3))


def test_a_restart_goes_on_in_the_same_stage() -> None:
    assert run(Canary(Tally(5, 2)), Restarted())[1][0] == rollout.OpenStage("canary")
    assert run(Soaking(Tally(5, 4)), Restarted())[1] == [rollout.AwaitSoak(60.0)]
    assert run(Everyone(Tally(5, 4)), Restarted())[1] == [rollout.OpenStage("everyone")]
    assert run(Canary(), StageOpened(Tally(5, 2, 1)))[0] == Canary(Tally(5, 2, 1))


def test_a_ratio_of_one_has_no_canary() -> None:
    policy = msgspec.structs.replace(POLICY, canary_ratio=1.0)
    assert rollout.begin(policy) == (Everyone(), (rollout.OpenStage("everyone"),))


@pytest.mark.parametrize(
    ("ratio", "population", "size"), [(0.1, 8, 1), (0.1, 11, 2), (0.25, 8, 2), (0.0, 8, 0), (0.5, 0, 0)]
)
def test_the_canary_is_its_share_of_the_fleet_rounded_up(ratio: float, population: int, size: int) -> None:
    assert rollout.canary_size(RolloutPolicy(canary_ratio=ratio), population) == size


HAPPENINGS = st.sampled_from(
    [Restarted(), DeviceCommitted(), DeviceFailed(), DeviceJoined(), SoakElapsed(), CanaryOverdue(), HaltAsked()]
)


@given(st.integers(1, 12), st.lists(HAPPENINGS, max_size=40))
def test_nothing_but_a_good_canary_opens_the_way_to_all(member_count: int, events: list[rollout.RolloutEvent]) -> None:
    state, _ = run(Canary(), StageOpened(Tally(member_count)))
    was_good = False
    for event in events:
        if isinstance(event, DeviceCommitted | DeviceFailed) and state.tally.finished_count >= member_count:
            continue  # The desk counts a device once.
        if isinstance(state, Canary | Soaking):
            was_good |= state.tally.committed_count >= 0.8 * member_count
        before, (state, actions) = state, rollout.step(state, event, POLICY)
        if isinstance(before, Canary | Soaking) and isinstance(state, Everyone):
            assert was_good
            return
        assert (rollout.TakeBack() in actions) == (
            isinstance(state, Halted)
            and state != before
            and isinstance(before, Canary | Soaking)
            and not isinstance(event, HaltAsked)
        )
        assert rollout.STATES.decode(msgspec.msgpack.encode(state)) == state
