import numpy as np
import pytest

from cloud_aggregator.model_building import build_bundle
from federated_core.errors import LocalMisuseError
from federated_core.learning.bundle import Fit, decode_bundle
from federated_core.learning.local_training import LocalPlan
from federated_core.learning.parameters import flatten
from models.spar_cnn.build import build
from scripts.fleet_demo.arms import Arm, Comparison, Judge, Outcome, UnseenPeople, compare, personal_rounds
from scripts.fleet_demo.spar_data import Examples, Wearer

ARMS: tuple[Arm, ...] = ("federated", "personalized", "local", "pooled")


def waves(seed: int, count: int, offset: float) -> Examples:
    """Two exercises that a device can learn: slow and fast waves, on a sensor with an offset and a scale of its own."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, count)
    time = np.arange(192) / 50
    phase = rng.random((count, 6, 1)) * 6
    frequency = np.where(y == 0, 0.5, 3.0)[:, np.newaxis, np.newaxis]
    x = offset + (1 + offset) * np.sin(2 * np.pi * frequency * time + phase)
    return Examples(x.astype(np.float32), y.astype(np.int64), np.arange(count, dtype=np.float64))


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    fits = (
        Fit("standardize.mean", "mean", "x", (0, 2)),
        Fit("standardize.scale", "inverse-standard-deviation", "x", (0, 2)),
    )
    built = build_bundle(build(0), name="spar_cnn", loss="softmax-cross-entropy", fits=fits)
    layout = decode_bundle(built.data).description.layout
    initial = flatten(layout, built.tensors)
    return Comparison(
        bundle=built.data,
        training=(waves(1, 20, 0.0), waves(2, 30, 2.0)),
        later=(waves(3, 10, 0.0), waves(4, 10, 2.0)),
        unseen=(Wearer("person-09", 9, waves(5, 20, 1.0), waves(6, 10, 1.0)),),
        initial=initial,
        earlier=initial,
        final=initial,
        plan=LocalPlan(epochs=2, batch_size=8, learning_rate=0.0),
        learning_rates=(0.05, 0.05),
        personal_rounds=2,
        seed=7,
    )


@pytest.fixture(scope="module")
def outcome(comparison: Comparison) -> Outcome:
    return compare(comparison, worker_count=1)


@pytest.mark.process
def test_every_arm_is_judged_on_unseen_people_and_on_each_devices_later_recordings(outcome: Outcome) -> None:
    assert tuple(outcome.arms) == ARMS
    for score in outcome.arms.values():
        assert 0 <= score.unseen <= 1
        assert len(score.later_by_device) == 2
        assert score.later == sum(score.later_by_device) / 2


@pytest.mark.process
def test_what_trains_learns_and_what_does_not_train_does_not(comparison: Comparison, outcome: Outcome) -> None:
    judge = Judge(decode_bundle(comparison.bundle))
    before = UnseenPeople(judge, comparison.unseen).accuracy(comparison.initial)
    assert outcome.arms["federated"].unseen == before
    for arm in ("personalized", "local", "pooled"):
        assert outcome.arms[arm].later > 0.85 > outcome.arms["federated"].later


@pytest.mark.process
def test_the_same_seed_gives_the_same_outcome_however_many_workers_there_are(
    comparison: Comparison, outcome: Outcome
) -> None:
    told: list[tuple[int, int]] = []
    assert compare(comparison, lambda done, total: told.append((done, total)), worker_count=2) == outcome
    assert told == [(done, 6) for done in range(1, 7)]


@pytest.mark.process
def test_a_device_that_fine_tuning_makes_worse_is_counted(comparison: Comparison) -> None:
    inverted = comparison._replace(earlier=-comparison.initial, learning_rates=(0.05, 0.0), personal_rounds=1)
    assert compare(inverted, worker_count=1).devices_worse_than_alone_ratio == 1.0


@pytest.mark.parametrize("count", [0, 3])
def test_a_device_leaves_the_fleet_within_the_rounds_that_there_were(comparison: Comparison, count: int) -> None:
    with pytest.raises(LocalMisuseError, match=f"personal_rounds: expected 1 to 2, got {count}"):
        compare(comparison._replace(personal_rounds=count))


def test_a_device_is_on_its_own_for_half_of_the_rounds() -> None:
    assert [personal_rounds(rounds) for rounds in (1, 2, 7, 20)] == [1, 1, 3, 10]


def test_a_watch_that_measures_in_other_units_is_judged_the_same(comparison: Comparison) -> None:
    judge = Judge(decode_bundle(comparison.bundle))
    (person,) = comparison.unseen

    def in_other_units(examples: Examples) -> Examples:
        return examples._replace(x=examples.x * np.float32(8) + np.float32(4))

    moved = person._replace(own=in_other_units(person.own), later=in_other_units(person.later))
    accuracies = [UnseenPeople(judge, [wearer]).accuracy(comparison.initial) for wearer in (person, moved)]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.04)
