"""Losses as graph nodes: what a model's output and the labels say, and the gradient of that in closed form.

A loss is a pair of pure emitters. Training wants the mean over the batch and its gradient; evaluation wants the sum
and how many examples are right, so that batches of any size add up.
"""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import numpy as np

from federated_core.errors import LocalMisuseError, UntrainableModelError
from federated_core.learning.gradients.builder import Expr
from federated_core.learning.graph import DType, Shape


class Training(NamedTuple):
    """The mean loss, a scalar, and its gradient with respect to the model's output."""

    loss: Expr
    gradient: Expr


class Scores(NamedTuple):
    """The summed loss, float32, and the count of examples that are right, int64; both scalars."""

    loss_sum: Expr
    correct_count: Expr


class Loss(NamedTuple):
    """How to train and to evaluate with one loss, and what its labels look like."""

    label_dtype: DType
    label_shape: Callable[[Shape], Shape]
    train: Callable[[Expr, Expr], Training]
    evaluate: Callable[[Expr, Expr], Scores]


def loss_named(name: str) -> Loss:
    """Look a loss up.

    Parameters
    ----------
    name : str
        A key of `LOSSES`.

    Returns
    -------
    Loss
        Its emitters.

    Raises
    ------
    LocalMisuseError
        If there is no such loss.

    Examples
    --------
    >>> loss_named("softmax-cross-entropy").label_dtype
    'int64'
    """
    if name not in LOSSES:
        raise LocalMisuseError(f"expected a loss of {', '.join(LOSSES)}, got '{name}'")
    return LOSSES[name]


def _class_label_shape(shape: Shape) -> Shape:
    if len(shape) < 2 or not isinstance(shape[1], int) or shape[1] < 2:
        raise UntrainableModelError(
            f"softmax-cross-entropy expects an output of shape [batch, classes, ...], got {list(shape)}: name another "
            "output"
        )
    return (shape[0], *shape[2:])


def _softmax_cross_entropy(logits: Expr, label: Expr) -> Training:
    log_probability = logits.unary("LogSoftmax", axis=1)
    target = _one_hot(logits, label)
    count = label.element_count().cast(logits.dtype)
    loss = -((log_probability * target).sum(keepdims=False) / count)
    return Training(loss, (log_probability.unary("Exp") - target) / count)


def _softmax_cross_entropy_scores(logits: Expr, label: Expr) -> Scores:
    per_place = (logits.unary("LogSoftmax", axis=1) * _one_hot(logits, label)).sum([1], keepdims=False)
    loss_sum = -(per_place.mean(range(1, label.rank), keepdims=False).sum(keepdims=False))
    best = logits.builder.apply("ArgMax", logits, shape=label.shape, dtype="int64", axis=1, keepdims=0)
    if label.rank == 1:
        return Scores(loss_sum, _count(best.equals(label)))
    wrong_count = (1.0 - best.equals(label).cast("float32")).sum(range(1, label.rank), keepdims=False)
    return Scores(loss_sum, _count(wrong_count.equals(0.0)))


def _one_hot(logits: Expr, label: Expr) -> Expr:
    """Compare with each class: a label outside the classes is right nowhere, and no index is out of range."""
    classes = np.arange(int(logits.shape[1])).reshape(-1, *(1,) * (label.rank - 1))
    shape = (label.shape[0], 1, *label.shape[1:])
    column = logits.builder.apply("Unsqueeze", label, logits.builder.integers([1]), shape=shape)
    return column.equals(logits.builder.constant(classes)).cast(logits.dtype)


def _mean_squared_error(output: Expr, label: Expr) -> Training:
    difference = output - label
    count = difference.element_count()
    return Training((difference * difference).sum(keepdims=False) / count, difference * (2.0 / count))


def _mean_squared_error_scores(output: Expr, label: Expr) -> Scores:
    difference = output - label
    per_example = (difference * difference).mean(range(1, output.rank), keepdims=False)
    nothing = output.builder.constant(np.asarray(0, np.int64))
    return Scores(per_example.sum(keepdims=False), nothing)


def _binary_cross_entropy(logits: Expr, label: Expr) -> Training:
    count = logits.element_count()
    loss = _binary_terms(logits, label).sum(keepdims=False) / count
    return Training(loss, (logits.unary("Sigmoid") - label) / count)


def _binary_cross_entropy_scores(logits: Expr, label: Expr) -> Scores:
    rest = range(1, logits.rank)
    loss_sum = _binary_terms(logits, label).mean(rest, keepdims=False).sum(keepdims=False)
    agree = logits.greater(0.0).cast("float32") - label.greater(0.5).cast("float32")
    wrong_count = agree.unary("Abs").sum(rest, keepdims=False)
    return Scores(loss_sum, _count(wrong_count.equals(0.0)))


def _binary_terms(logits: Expr, label: Expr) -> Expr:
    """Return max(z, 0) - z t + log(1 + exp(-|z|)), which overflows nowhere."""
    softened = (-logits.unary("Abs")).unary("Softplus")
    return logits.unary("Relu") - logits * label + softened


def _count(flags: Expr) -> Expr:
    return flags.cast("int64").sum(keepdims=False)


def _same_shape(shape: Shape) -> Shape:
    return shape


LOSSES: Final[Mapping[str, Loss]] = {
    "softmax-cross-entropy": Loss("int64", _class_label_shape, _softmax_cross_entropy, _softmax_cross_entropy_scores),
    "mean-squared-error": Loss("float32", _same_shape, _mean_squared_error, _mean_squared_error_scores),
    "binary-cross-entropy": Loss("float32", _same_shape, _binary_cross_entropy, _binary_cross_entropy_scores),
}
"""Losses by the name that a person gives them. Regression counts no example as right, and an example with several
labels is right if all of them are."""
