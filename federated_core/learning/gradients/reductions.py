"""Gradient rules of reductions along axes, and of the softmaxes.

Where several elements share a maximum or minimum, each gets the whole gradient.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np

from federated_core.learning.gradients.application import Application, Gradients, Rule
from federated_core.learning.gradients.builder import Expr


def _axes(at: Application) -> list[int]:
    """Return the reduced axes; none given means all, unless the node says it means none."""
    axes = at.constant_integers(1)
    if not axes:
        return [] if at.integer("noop_with_empty_axes", 0) else list(range(at.x.rank))
    return sorted(axis % at.x.rank for axis in axes)


def _kept(at: Application, value: Expr) -> Expr:
    """Give a reduced value its axes of size 1 back, so that it broadcasts against the input."""
    axes = _axes(at)
    if at.integer("keepdims", 1) or not axes:
        return value
    shape = tuple(1 if axis in axes else dim for axis, dim in enumerate(at.x.shape))
    return at.builder.apply("Unsqueeze", value, at.builder.integers(axes), shape=shape)


def _spread(at: Application, value: Expr) -> Expr:
    return _kept(at, value).expand(at.x.shape, at.x)


def reduce_sum(at: Application) -> Gradients:
    """Differentiate y = sum of x."""
    return [_spread(at, at.g)]


def reduce_mean(at: Application) -> Gradients:
    """Differentiate y = mean of x."""
    axes = _axes(at)
    return [_spread(at, at.g / at.x.element_count(axes)) if axes else at.g]


def reduce_extreme(at: Application) -> Gradients:
    """Differentiate y = max or min of x."""
    return [at.x.equals(_kept(at, at.y)).where(_kept(at, at.g), 0.0)]


def reduce_product(at: Application) -> Gradients:
    """Differentiate y = product of x: the product of all others, right for zeros too.

    The reduced axes are laid out as one, and running products from both ends meet at each element.
    """
    axes = _axes(at)
    if not axes:
        return [at.g]
    sizes = [at.x.shape[axis] for axis in axes]
    if not all(isinstance(size, int) for size in sizes):
        raise at.refusal("the sizes of the axes it reduces must be fixed")
    count = int(np.prod([int(size) for size in sizes]))
    rest = [axis for axis in range(at.x.rank) if axis not in axes]
    order = [*axes, *rest]
    moved = at.x.transpose(order)
    rows = moved.reshape((count, *moved.shape[len(axes) :]))
    before: list[Expr] = []
    after: list[Expr] = []
    for index in range(count - 1):
        low, high = rows.slice(0, index, index + 1), rows.slice(0, count - 1 - index, count - index)
        before.append(before[-1] * low if before else low)
        after.append(after[-1] * high if after else high)
    ones = rows.slice(0, 0, 1) * 0.0 + 1.0
    others = [a * b for a, b in zip([ones, *before], [*reversed(after), ones], strict=True)]
    stacked = at.builder.apply("Concat", *others, shape=rows.shape, axis=0).reshape(moved.shape)
    back = [int(axis) for axis in np.argsort(order)]
    return [_kept(at, at.g) * stacked.transpose(back)]


def reduce_l1(at: Application) -> Gradients:
    """Differentiate y = sum of |x|."""
    return [_kept(at, at.g) * at.x.unary("Sign")]


def reduce_l2(at: Application) -> Gradients:
    """Differentiate y = sqrt(sum of x^2); slope 0 at the origin."""
    norm = _kept(at, at.y)
    return [_kept(at, at.g) * at.x / norm.greater(0.0).where(norm, 1.0)]


def reduce_log_sum(at: Application) -> Gradients:
    """Differentiate y = log(sum of x)."""
    return [_spread(at, at.g / at.y.unary("Exp"))]


def reduce_log_sum_exp(at: Application) -> Gradients:
    """Differentiate y = log(sum of exp(x))."""
    return [_kept(at, at.g) * (at.x - _kept(at, at.y)).unary("Exp")]


def reduce_sum_square(at: Application) -> Gradients:
    """Differentiate y = sum of x^2."""
    return [_kept(at, at.g) * 2.0 * at.x]


def softmax(at: Application) -> Gradients:
    """Differentiate y = exp(x) / sum of exp(x) along an axis."""
    axis = at.integer("axis", -1) % at.x.rank
    weighted = at.g * at.y
    return [weighted - at.y * weighted.sum([axis])]


def log_softmax(at: Application) -> Gradients:
    """Differentiate y = x - log(sum of exp(x)) along an axis."""
    axis = at.integer("axis", -1) % at.x.rank
    return [at.g - at.y.unary("Exp") * at.g.sum([axis])]


RULES: Final[Mapping[str, Rule]] = {
    "LogSoftmax": log_softmax,
    "ReduceL1": reduce_l1,
    "ReduceL2": reduce_l2,
    "ReduceLogSum": reduce_log_sum,
    "ReduceLogSumExp": reduce_log_sum_exp,
    "ReduceMax": reduce_extreme,
    "ReduceMean": reduce_mean,
    "ReduceMin": reduce_extreme,
    "ReduceProd": reduce_product,
    "ReduceSum": reduce_sum,
    "ReduceSumSquare": reduce_sum_square,
    "Softmax": softmax,
}
"""Rules by operator."""
