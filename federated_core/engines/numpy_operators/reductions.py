"""Operators that reduce, normalize and order along axes."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from federated_core.engines.numpy_operators.operator import Array, Call, Operator, Operators


def _reduce(function: Callable[..., Any]) -> Operator:
    def run(call: Call) -> Array:
        axes = call.axes(1)
        if not axes:
            if call.integer("noop_with_empty_axes", 0):
                return call.x
            axes = None
        return np.asarray(function(call.x, axis=axes, keepdims=bool(call.integer("keepdims", 1))), call.x.dtype)

    return run


def _log_sum_exp(x: Array, *, axis: tuple[int, ...] | None, keepdims: bool) -> Array:
    top = x.max(axis=axis, keepdims=True)
    found = np.log(np.exp(x - top).sum(axis=axis, keepdims=True)) + top
    return np.asarray(found if keepdims else np.squeeze(found, axis=axis))


def _softmax(call: Call) -> Array:
    return np.exp(_log_softmax(call))


def _log_softmax(call: Call) -> Array:
    axis = call.integer("axis", -1)
    shifted = call.x - call.x.max(axis=axis, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)))


def _arg(function: Callable[..., Any]) -> Operator:
    def run(call: Call) -> Array:
        axis = call.integer("axis", 0)
        keepdims = bool(call.integer("keepdims", 1))
        if call.integer("select_last_index", 0):
            last = call.x.shape[axis] - 1
            return np.asarray(last - function(np.flip(call.x, axis), axis=axis, keepdims=keepdims))
        return np.asarray(function(call.x, axis=axis, keepdims=keepdims))

    return run


def _top_k(call: Call) -> tuple[Array, ...]:
    axis, count = call.integer("axis", -1), int(call.input(1).item())
    keys = -call.x if call.integer("largest", 1) else call.x
    order = np.take(np.argsort(keys, axis=axis, kind="stable"), np.arange(count), axis=axis)
    return np.take_along_axis(call.x, order, axis=axis), order


def _per_channel(value: Array, rank: int) -> Array:
    return value.reshape((-1, *(1,) * (rank - 2)))


def _batch_normalization(call: Call) -> tuple[Array, ...]:
    x, rank = call.x, call.x.ndim
    mean, var = call.input(3), call.input(4)
    if call.integer("training_mode", 0):
        axes, momentum = (0, *range(2, rank)), call.number("momentum", 0.9)
        batch_mean, batch_var = x.mean(axis=axes), x.var(axis=axes)
        running = (mean * momentum + batch_mean * (1 - momentum), var * momentum + batch_var * (1 - momentum))
        mean, var = batch_mean, batch_var
    else:
        running = (mean, var)
    inv = 1 / np.sqrt(var + call.number("epsilon", 1e-5))
    y = (x - _per_channel(mean, rank)) * _per_channel(inv * call.input(1), rank) + _per_channel(call.input(2), rank)
    return np.asarray(y), *running


def _normalized(x: Array, axes: tuple[int, ...], epsilon: float) -> tuple[Array, Array, Array]:
    mean = x.mean(axis=axes, keepdims=True)
    inv = 1 / np.sqrt(x.var(axis=axes, keepdims=True) + epsilon)
    return (x - mean) * inv, mean, inv


def _layer_normalization(call: Call) -> tuple[Array, ...]:
    axis = call.integer("axis", -1) % call.x.ndim
    h, mean, inv = _normalized(call.x, tuple(range(axis, call.x.ndim)), call.number("epsilon", 1e-5))
    y = h * call.input(1)
    return (y + call.input(2) if call.has(2) else y), mean, inv


def _rms_normalization(call: Call) -> Array:
    axes = tuple(range(call.integer("axis", -1) % call.x.ndim, call.x.ndim))
    scale = np.sqrt((call.x * call.x).mean(axis=axes, keepdims=True) + call.number("epsilon", 1e-5))
    return np.asarray(call.x / scale * call.input(1))


def _instance_normalization(call: Call) -> Array:
    rank = call.x.ndim
    h, _, _ = _normalized(call.x, tuple(range(2, rank)), call.number("epsilon", 1e-5))
    return h * _per_channel(call.input(1), rank) + _per_channel(call.input(2), rank)


def _group_normalization(call: Call) -> Array:
    x, groups = call.x, call.integer("num_groups", 1)
    h, _, _ = _normalized(x.reshape((x.shape[0], groups, -1)), (2,), call.number("epsilon", 1e-5))
    scale, bias = (np.repeat(call.input(slot), x.shape[1] // call.input(slot).size) for slot in (1, 2))
    return h.reshape(x.shape) * _per_channel(scale, x.ndim) + _per_channel(bias, x.ndim)


def _mean_variance_normalization(call: Call) -> Array:
    axes = call.integers("axes") or (0, 2, 3)
    deviation = call.x.std(axis=axes, keepdims=True) + 1e-9
    return np.asarray((call.x - call.x.mean(axis=axes, keepdims=True)) / deviation)


def _lp_normalization(call: Call) -> Array:
    norm = np.linalg.norm(call.x, ord=call.integer("p", 2), axis=call.integer("axis", -1), keepdims=True)
    return np.asarray(np.where(norm == 0, 0, call.x / np.where(norm == 0, 1, norm)), call.x.dtype)


def _local_response(call: Call) -> Array:
    x, size = call.x, call.integer("size", 1)
    before = (size - 1) // 2
    widths = [(0, 0), (before, size - 1 - before), *[(0, 0)] * (x.ndim - 2)]
    squares = np.pad(x * x, widths)
    total = sum(squares[:, start : start + x.shape[1]] for start in range(size))
    base = call.number("bias", 1.0) + call.number("alpha", 1e-4) / size * total
    return np.asarray(x / base ** call.number("beta", 0.75))


OPERATORS: Final[Operators] = {
    "ArgMax": _arg(np.argmax),
    "ArgMin": _arg(np.argmin),
    "BatchNormalization": _batch_normalization,
    "GroupNormalization": _group_normalization,
    "InstanceNormalization": _instance_normalization,
    "LRN": _local_response,
    "LayerNormalization": _layer_normalization,
    "LogSoftmax": _log_softmax,
    "LpNormalization": _lp_normalization,
    "MeanVarianceNormalization": _mean_variance_normalization,
    "RMSNormalization": _rms_normalization,
    "ReduceL1": _reduce(lambda x, **how: np.abs(x).sum(**how)),
    "ReduceL2": _reduce(lambda x, **how: np.sqrt((x * x).sum(**how))),
    "ReduceLogSum": _reduce(lambda x, **how: np.log(x.sum(**how))),
    "ReduceLogSumExp": _reduce(_log_sum_exp),
    "ReduceMax": _reduce(np.max),
    "ReduceMean": _reduce(np.mean),
    "ReduceMin": _reduce(np.min),
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "ReduceSumSquare": _reduce(lambda x, **how: (x * x).sum(**how)),
    "Softmax": _softmax,
    "TopK": _top_k,
}
"""Operators by name."""
