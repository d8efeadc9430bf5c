"""What a device does between two checkpoints: some epochs over its own examples, in an order that only it knows.

Agent and demo train through this one function, so that a device alone, a device in a fleet and all data pooled differ
in their data and in nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from federated_core.errors import LocalMisuseError

if TYPE_CHECKING:
    from federated_core.engines.engine import TrainingSession

ORDER_KEY_BYTES: Final = 16


class LocalPlan(NamedTuple):
    """How to train: whole epochs, or fewer steps if ``step_count_max`` is reached before."""

    epochs: int
    batch_size: int
    learning_rate: float
    step_count_max: int | None = None


class LocalResult(NamedTuple):
    """What training gave: all parameters, personal ones included, and how it went."""

    tensors: dict[str, NDArray[np.float32]]
    example_count: int
    step_count: int
    loss_mean: float
    """Over the examples as they were met, each before the step that it took part in."""


def planned_step_count(plan: LocalPlan, example_count: int) -> int:
    """Count the optimizer steps of ``plan`` on ``example_count`` examples.

    Parameters
    ----------
    plan : LocalPlan
        At least one epoch, a batch of at least one example.
    example_count : int
        Examples of the device, at least one.

    Returns
    -------
    int
        ``epochs * ceil(example_count / batch_size)``, at most ``step_count_max``.

    Raises
    ------
    LocalMisuseError
        If there is nothing to train on, or the plan is out of bounds.

    Examples
    --------
    >>> planned_step_count(LocalPlan(epochs=2, batch_size=32, learning_rate=0.1), 70)
    6
    """
    for name, value in (("epochs", plan.epochs), ("batch_size", plan.batch_size), ("example_count", example_count)):
        if value < 1:
            raise LocalMisuseError(f"{name}: expected 1 or more, got {value}")
    if not (math.isfinite(plan.learning_rate) and plan.learning_rate >= 0):
        raise LocalMisuseError(f"learning_rate: expected a finite number of 0 or more, got {plan.learning_rate}")
    step_count = plan.epochs * _batch_count(plan, example_count)
    return step_count if plan.step_count_max is None else min(step_count, plan.step_count_max)


def minibatches(plan: LocalPlan, example_count: int, order_key: bytes) -> Iterator[NDArray[np.intp]]:
    """Draw the minibatches of ``plan``: each epoch meets every example once, in an order of its own.

    An epoch is cut into as few batches as hold at most ``batch_size`` examples, of sizes that differ by one at most: no
    example is left out, and none weighs more because it fell into a short last batch. The order is the rank of raw
    Philox words: numpy promises the words for ever, but not what its own shuffle makes of them (NEP 19).

    Parameters
    ----------
    plan : LocalPlan
        See `planned_step_count`.
    example_count : int
        Examples of the device, at least one.
    order_key : bytes
        16 bytes, private to the device and new for every round.

    Returns
    -------
    iterator of intp arrays
        Indices into the examples, one array a step.

    Raises
    ------
    LocalMisuseError
        If the key is not 16 bytes long, there is nothing to train on, or the plan is out of bounds.

    References
    ----------
    Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

    Examples
    --------
    >>> plan = LocalPlan(epochs=1, batch_size=3, learning_rate=0.1)
    >>> [batch.tolist() for batch in minibatches(plan, 5, bytes(16))]
    [[0, 2], [1, 4, 3]]
    """
    if len(order_key) != ORDER_KEY_BYTES:
        raise LocalMisuseError(f"order key: expected {ORDER_KEY_BYTES} bytes, got {len(order_key)}")
    step_count = planned_step_count(plan, example_count)
    stream = np.random.Philox(key=np.frombuffer(order_key, "<u8").astype(np.uint64))
    return islice(_endless_batches(stream, example_count, _batch_count(plan, example_count)), step_count)


def train_locally(
    session: TrainingSession,
    start: Mapping[str, NDArray[np.float32]],
    inputs: Mapping[str, NDArray[Any]],
    label: NDArray[Any],
    *,
    plan: LocalPlan,
    order_key: bytes,
    should_stop: Callable[[], bool] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LocalResult | None:
    """Train from ``start`` on a device's own examples.

    Parameters
    ----------
    session : TrainingSession
        A model, opened by any engine; what it holds is replaced.
    start : mapping of str to float32 array
        Every parameter of the layout, the device's personal ones among them.
    inputs : mapping of str to array
        The model's inputs, examples first.
    label : array
        One label an example.
    plan : LocalPlan
        How long, in which batches, at which rate.
    order_key : bytes
        16 bytes: the same key meets the examples in the same order (`minibatches`).
    should_stop : callable, optional
        Asked before every step.
    progress : callable, optional
        Told after every step how many are done and how many there are.

    Returns
    -------
    LocalResult or None
        None if ``should_stop`` said so: half a plan is no result.

    Raises
    ------
    LocalMisuseError
        If inputs and labels differ in length, there are none, or the plan or key is out of bounds.

    References
    ----------
    McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
    algorithm 1, ClientUpdate. arXiv:1602.05629

    Examples
    --------
    A session that knows no mathematics shows the order of things: three examples in batches of two, once.

    >>> class Session:
    ...     def load(self, tensors): self.tensors = dict(tensors)
    ...     def step(self, inputs, label, learning_rate): return float(len(label))
    ...     def parameters(self): return self.tensors
    >>> plan = LocalPlan(epochs=1, batch_size=2, learning_rate=0.1)
    >>> x, y = np.zeros((3, 4), np.float32), np.arange(3)
    >>> result = train_locally(Session(), {}, {"x": x}, y, plan=plan, order_key=bytes(16))
    >>> result.example_count, result.step_count
    (3, 2)
    """
    example_count = len(label)
    for name, array in inputs.items():
        if len(array) != example_count:
            raise LocalMisuseError(f"'{name}': expected {example_count} examples as there are labels, got {len(array)}")
    planned = planned_step_count(plan, example_count)
    batches = minibatches(plan, example_count, order_key)
    session.load(start)
    loss_sum, met_count = 0.0, 0
    for done, batch in enumerate(batches, 1):
        if should_stop is not None and should_stop():
            return None
        loss = session.step({name: array[batch] for name, array in inputs.items()}, label[batch], plan.learning_rate)
        loss_sum += loss * len(batch)
        met_count += len(batch)
        if progress is not None:
            progress(done, planned)
    return LocalResult(session.parameters(), example_count, planned, loss_sum / max(met_count, 1))


def _batch_count(plan: LocalPlan, example_count: int) -> int:
    return -(-example_count // plan.batch_size)


def _endless_batches(stream: np.random.Philox, example_count: int, batch_count: int) -> Iterator[NDArray[np.intp]]:
    while True:
        order = np.argsort(stream.random_raw(example_count), kind="stable")
        for index in range(batch_count):
            yield order[index * example_count // batch_count : (index + 1) * example_count // batch_count]
