"""Whole fleets with faults, a sample of them: `scripts/simulate --seeds 0-999` plays the rest."""

from pathlib import Path

import pytest

from tests.simulation.faults import FAULTS
from tests.simulation.planted import PLANTED, planted
from tests.simulation.world import Outcome, Scenario, World

HERE = Path(__file__).parent
SAMPLE = 12
KEPT = [int(line.split()[0]) for line in (HERE / "kept-seeds.txt").read_text().splitlines() if line[:1].isdigit()]


def play(scenario: Scenario) -> Outcome:
    return World(scenario).run()


@pytest.mark.parametrize("seed", range(SAMPLE))
def test_a_fleet_with_every_fault_is_safe_and_comes_to_rest(seed: int) -> None:
    outcome = play(Scenario(seed, device_count=12, round_count=4))
    assert outcome.violations == ()
    assert outcome.completed_count == 5  # Four of training, one of evaluation.
    assert outcome.completed_count >= 0.7 * (outcome.completed_count + outcome.abandoned_count)


@pytest.mark.slow
@pytest.mark.parametrize("seed", KEPT)
def test_a_seed_that_failed_once_fails_no_more(seed: int) -> None:
    assert play(Scenario(seed)).violations == ()


def test_the_same_seed_is_the_same_history() -> None:
    scenario = Scenario(3, device_count=8, round_count=2)
    assert play(scenario).history == play(scenario).history
    assert play(Scenario(4, device_count=8, round_count=2)).history != play(scenario).history


def test_the_real_database_has_the_same_history_as_the_one_in_memory() -> None:
    in_memory = Scenario(5, device_count=6, round_count=2)
    on_disk = Scenario(5, device_count=6, round_count=2, database="sqlite")
    assert play(on_disk).violations == ()
    assert play(on_disk).history == play(in_memory).history


def test_in_fair_weather_every_round_completes_at_once() -> None:
    outcome = play(Scenario(0, device_count=10, round_count=3, faults=()))
    assert (outcome.violations, outcome.completed_count, outcome.abandoned_count) == ((), 4, 0)
    assert outcome.crashes == {}


def test_every_planted_bug_is_on_the_list_that_was_written_first() -> None:
    listed = {line.split("|")[1].strip() for line in (HERE / "planted-bugs.md").read_text().splitlines() if "|" in line}
    assert listed - {"Name", "---"} == set(PLANTED)


@pytest.mark.parametrize("name", ["agent-acts-before-journal", "cohort-off-by-one", "sum-unweighted"])
def test_a_planted_bug_is_caught(name: str) -> None:
    """Three that show at once: `scripts/simulate --kill-table` plants them all."""
    with planted(name):
        outcome = play(Scenario(0, device_count=8, round_count=2, faults=FAULTS))
    assert outcome.violations


@pytest.mark.parametrize("name", ["fair-weather", "lost-and-crashed"])
def test_a_conversation_goes_as_it_always_went(name: str) -> None:
    """`scripts/simulate --transcript` prints them; a change here is a change of the protocol, and is to be read."""
    faults = () if name == "fair-weather" else ("loss", "agent-crash", "aggregator-crash", "unplug")
    lines: list[str] = []
    World(Scenario(7, device_count=6, round_count=2, faults=faults), lines).run()
    told = [line for line in lines if " send " not in line]
    end = next(number for number, line in enumerate(told) if "--> Finished" in line)
    assert told[: end + 1] == (HERE / "golden" / f"{name}.txt").read_text().splitlines()
