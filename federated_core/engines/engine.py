"""What an engine does with a bundle: train step by step, evaluate; whichever runtime is underneath.

An engine runs graphs and nothing else: it decides no batch, no rate and no order.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from federated_core.errors import LocalMisuseError
from federated_core.learning.bundle import Bundle
from federated_core.learning.graph import Graph, Value
from federated_core.learning.parameters import Layout
from federated_core.learning.step_interface import ANCHOR, SLOT


class Evaluation(NamedTuple):
    """Sums over examples, so that evaluations of several batches or devices add up."""

    example_count: int
    correct_count: int
    loss_sum: float


class TrainingSession(Protocol):
    """A model in training; one thread at a time."""

    def load(self, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        """Set every parameter of the layout; what the optimizer remembered is forgotten."""

    def step(self, inputs: Mapping[str, NDArray[Any]], label: NDArray[Any], learning_rate: float) -> float:
        """Train on one batch of any size and return its mean loss before the step."""

    def parameters(self) -> dict[str, NDArray[np.float32]]:
        """Return copies of all parameters."""


class EvaluationSession(Protocol):
    """A model under examination; it learns nothing."""

    def evaluate(
        self,
        tensors: Mapping[str, NDArray[np.float32]],
        inputs: Mapping[str, NDArray[Any]],
        label: NDArray[Any],
        *,
        batch_size: int = 64,
    ) -> Evaluation:
        """Score examples in batches."""


class InferenceSession(Protocol):
    """A model at work, with its parameters; any number of threads at once."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the model on a batch and return its outputs by name."""


class Engine(Protocol):
    """A runtime that opens bundles."""

    def open_training(self, bundle: Bundle) -> TrainingSession:
        """Open the training-step graph."""

    def open_evaluation(self, bundle: Bundle) -> EvaluationSession:
        """Open the evaluation graph."""

    def open_inference(self, bundle: Bundle, tensors: Mapping[str, NDArray[np.float32]]) -> InferenceSession:
        """Open the inference graph with these parameters, which the caller must not change any more."""


def as_declared(value: Value, array: NDArray[Any]) -> NDArray[Any]:
    """Return ``array`` contiguous and of the type that ``value`` declares; the shape must fit."""
    fits = array.ndim == len(value.shape) and all(
        isinstance(dim, str) or dim == size for dim, size in zip(value.shape, array.shape, strict=True)
    )
    if not fits:
        raise LocalMisuseError(f"'{value.name}': expected shape {list(value.shape)}, got {list(array.shape)}")
    if not np.can_cast(array.dtype, value.dtype, "same_kind"):
        raise LocalMisuseError(f"'{value.name}': expected {value.dtype}, got {array.dtype}")
    return np.require(array, dtype=value.dtype, requirements="C")


def example_feeds(graph: Graph, given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Check the arrays of a batch against the graph's declarations."""
    declared = {value.name: value for value in graph.inputs}
    unknown = sorted(set(given) - set(declared))
    if unknown:
        raise LocalMisuseError(f"the model has no input '{unknown[0]}'")
    return {name: as_declared(declared[name], array) for name, array in given.items()}


def initial_state(
    graph: Graph, layout: Layout, tensors: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    """Return fresh arrays for every parameter, slot (zeros) and anchor (the parameter itself) of a training graph."""
    missing = sorted({spec.name for spec in layout.parameters} ^ set(tensors))
    if missing:
        raise LocalMisuseError(f"expected exactly the parameters of the layout, differs in '{missing[0]}'")
    declared = {value.name: value for value in graph.inputs}
    state = {spec.name: np.array(as_declared(declared[spec.name], tensors[spec.name])) for spec in layout.parameters}
    for name, value in declared.items():
        if name.startswith(ANCHOR):
            state[name] = state[name.removeprefix(ANCHOR)].copy()
        elif name.startswith(SLOT):
            state[name] = np.zeros([int(dim) for dim in value.shape], np.float32)
    return state


def evaluate_in_batches(
    score: Callable[[dict[str, NDArray[Any]]], tuple[float, int]],
    feeds: Mapping[str, NDArray[Any]],
    example_count: int,
    batch_size: int,
) -> Evaluation:
    """Add up ``score`` (summed loss, count of right ones) over slices of at most ``batch_size`` examples."""
    if batch_size < 1:
        raise LocalMisuseError(f"expected a batch size of 1 or more, got {batch_size}")
    loss_sum, correct_count = 0.0, 0
    for batch in _slices(feeds, example_count, batch_size):
        loss, correct = score(batch)
        loss_sum += loss
        correct_count += correct
    return Evaluation(example_count, correct_count, loss_sum)


def _slices(
    feeds: Mapping[str, NDArray[Any]], example_count: int, batch_size: int
) -> Iterator[dict[str, NDArray[Any]]]:
    for start in range(0, example_count, batch_size):
        yield {name: array[start : start + batch_size] for name, array in feeds.items()}
