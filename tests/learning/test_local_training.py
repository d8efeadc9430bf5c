from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from federated_core.errors import LocalMisuseError
from federated_core.learning.local_training import LocalPlan, minibatches, planned_step_count, train_locally

KEY = bytes(range(16))
Floats = NDArray[np.float32]


class MeanSeeker:
    """A training session by hand: one parameter that descends the squared distance to each batch's mean."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self._mean = np.zeros(1, np.float32)

    def load(self, tensors: Mapping[str, Floats]) -> None:
        self._mean = tensors["mean"].copy()

    def step(self, inputs: Mapping[str, NDArray[Any]], label: NDArray[Any], learning_rate: float) -> float:
        self.batches.append(inputs["x"].tolist())
        distance = self._mean - inputs["x"].mean()
        self._mean = (self._mean - np.float32(learning_rate) * distance).astype(np.float32)
        return float(distance[0] ** 2)

    def parameters(self) -> dict[str, Floats]:
        return {"mean": self._mean.copy()}


START = {"mean": np.zeros(1, np.float32)}
X = np.arange(4, dtype=np.float32)


@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 3), st.binary(min_size=16, max_size=16))
def test_an_epoch_meets_every_example_once_in_batches_of_nearly_one_size(
    example_count: int, batch_size: int, epochs: int, key: bytes
) -> None:
    plan = LocalPlan(epochs, batch_size, 0.1)
    batches = list(minibatches(plan, example_count, key))
    assert len(batches) == planned_step_count(plan, example_count)
    per_epoch = len(batches) // epochs
    for epoch in range(epochs):
        part = batches[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(np.concatenate(part).tolist()) == list(range(example_count))
        sizes = {len(batch) for batch in part}
        assert max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1


def test_the_same_key_meets_the_examples_in_the_same_order_and_another_does_not() -> None:
    plan = LocalPlan(epochs=2, batch_size=8, learning_rate=0.1)
    first, again, other = (np.concatenate(list(minibatches(plan, 40, key))).tolist() for key in (KEY, KEY, bytes(16)))
    assert first == again
    assert first != other
    assert first[:40] != first[40:], "each epoch has an order of its own"


def test_training_is_its_steps_one_after_another() -> None:
    session = MeanSeeker()
    result = train_locally(session, START, {"x": X}, X, plan=LocalPlan(1, 4, 0.5), order_key=KEY)
    assert result is not None
    assert result.tensors["mean"].tolist() == [0.75]  # Half the way from 0 to 1.5.
    assert result.loss_mean == 2.25
    assert (result.example_count, result.step_count) == (4, 1)


def test_the_mean_loss_weighs_examples_and_not_batches() -> None:
    session = MeanSeeker()
    result = train_locally(session, START, {"x": X[:3]}, X[:3], plan=LocalPlan(1, 2, 0.0), order_key=KEY)
    assert result is not None
    losses = [(np.mean(batch) ** 2, len(batch)) for batch in session.batches]
    assert result.loss_mean == pytest.approx(sum(loss * count for loss, count in losses) / 3)
    assert sorted(count for _, count in losses) == [1, 2]


def test_a_step_limit_ends_training_inside_an_epoch() -> None:
    session = MeanSeeker()
    plan = LocalPlan(5, 2, 0.1, step_count_max=3)
    seen: list[tuple[int, int]] = []
    result = train_locally(
        session,
        START,
        {"x": X},
        X,
        plan=plan,
        order_key=KEY,
        progress=lambda done, planned: seen.append((done, planned)),
    )
    assert result is not None
    assert result.step_count == 3
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_training_that_is_stopped_has_no_result() -> None:
    session = MeanSeeker()
    answers = iter([False, False, True])
    plan = LocalPlan(5, 2, 0.1)
    assert (
        train_locally(session, START, {"x": X}, X, plan=plan, order_key=KEY, should_stop=lambda: next(answers)) is None
    )
    assert len(session.batches) == 2


@pytest.mark.parametrize(
    ("plan", "example_count", "key", "message"),
    [
        (LocalPlan(0, 2, 0.1), 4, KEY, "epochs: expected 1 or more, got 0"),
        (LocalPlan(1, 0, 0.1), 4, KEY, "batch_size: expected 1 or more, got 0"),
        (LocalPlan(1, 2, 0.1), 0, KEY, "example_count: expected 1 or more, got 0"),
        (LocalPlan(1, 2, float("nan")), 4, KEY, "learning_rate: expected a finite number of 0 or more, got nan"),
        (LocalPlan(1, 2, 0.1), 4, b"short", "order key: expected 16 bytes, got 5"),
    ],
)
def test_a_plan_that_cannot_be_followed_is_refused(
    plan: LocalPlan, example_count: int, key: bytes, message: str
) -> None:
    with pytest.raises(LocalMisuseError, match=message):
        minibatches(plan, example_count, key)


def test_inputs_and_labels_must_belong_together() -> None:
    with pytest.raises(LocalMisuseError, match="'x': expected 3 examples as there are labels, got 4"):
        train_locally(MeanSeeker(), START, {"x": X}, X[:3], plan=LocalPlan(1, 2, 0.1), order_key=KEY)
