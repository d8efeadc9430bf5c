"""Selection: a fair draw that nobody outside can predict and a restart repeats."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_aggregator.selection import Candidate, cohort_size, round_seed, select_cohort

SECRET = bytes(range(32))
CROWD = tuple(Candidate(f"device-{number}", bytes(8)) for number in range(10))


@pytest.mark.parametrize(
    ("goal", "ratio", "population", "size"),
    [(10, 1.3, 100, 13), (8, 1.3, 100, 11), (3, 1.3, 100, 4), (8, 1.0, 100, 8), (8, 1.3, 9, 9), (8, 1.3, 0, 0)],
)
def test_a_cohort_is_larger_than_its_goal_and_no_larger_than_the_fleet(
    goal: int, ratio: float, population: int, size: int
) -> None:
    assert cohort_size(goal, ratio, population) == size


@given(st.permutations(CROWD), st.integers(0, 12), st.binary(min_size=32, max_size=32))
def test_the_order_of_check_ins_does_not_matter(order: list[Candidate], size: int, seed: bytes) -> None:
    assert select_cohort(order, size, seed) == select_cohort(CROWD, size, seed)


@given(st.sets(st.sampled_from(CROWD)), st.integers(0, 12), st.binary(min_size=32, max_size=32))
def test_a_cohort_is_drawn_from_who_checked_in_each_once(crowd: set[Candidate], size: int, seed: bytes) -> None:
    cohort = select_cohort(crowd, size, seed)
    assert len(set(cohort)) == len(cohort) == min(size, len(crowd))
    assert set(cohort) <= crowd


@given(st.integers(1, 9), st.binary(min_size=32, max_size=32))
def test_who_is_drawn_stays_drawn_when_others_drop_out(size: int, seed: bytes) -> None:
    cohort = select_cohort(CROWD, size, seed)
    assert select_cohort(cohort, size, seed) == cohort


def test_every_device_is_drawn_as_often_as_every_other() -> None:
    rounds, size = 2000, 3
    drawn = dict.fromkeys((one.device for one in CROWD), 0)
    for number in range(rounds):
        for one in select_cohort(CROWD, size, round_seed(SECRET, "task", number)):
            drawn[one.device] += 1
    # A binomial count with p = 3/10: its mean is 600, its standard deviation 20.5; four of them are 82.
    deviation = math.sqrt(rounds * 0.3 * 0.7)
    assert all(abs(count - 600) < 4 * deviation for count in drawn.values()), drawn


def test_the_draw_is_the_aggregator_s_secret_and_new_for_each_round_and_task() -> None:
    seeds = {
        round_seed(SECRET, "task", 1),
        round_seed(SECRET, "task", 2),
        round_seed(SECRET, "other", 1),
        round_seed(SECRET[::-1], "task", 1),
    }
    assert len(seeds) == 4
    assert round_seed(SECRET, "task", 1) in seeds  # A restart draws the same.
    cohorts = {select_cohort(CROWD, 5, seed) for seed in seeds}
    assert len(cohorts) == 4
