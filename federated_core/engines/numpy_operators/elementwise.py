"""Operators that work on each element by itself."""

import functools
import math
from typing import Final

import numpy as np

from federated_core.engines.numpy_operators.operator import Array, Call, Operators, each
from federated_core.errors import LocalMisuseError
from federated_core.learning.graph import ONNX_TYPE_CODES

_TYPES: Final = {code: np.dtype(name) for name, code in ONNX_TYPE_CODES.items()}
_erf_of = np.frompyfunc(math.erf, 1, 1)


def _divide(call: Call) -> Array:
    a, b = call.input(0), call.input(1)
    if np.issubdtype(a.dtype, np.floating):
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(a / b)
    quotient = a // b  # ONNX cuts off towards zero, numpy rounds down.
    return np.asarray(quotient + ((quotient < 0) & (quotient * b != a)))


def _power(call: Call) -> Array:
    a, b = call.input(0), call.input(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.power(a, b.astype(a.dtype)))


def _modulo(call: Call) -> Array:
    return np.asarray((np.fmod if call.integer("fmod", 0) else np.mod)(call.x, call.input(1)))


def _fold(function: np.ufunc) -> functools.partial[Array]:
    def run(function: np.ufunc, call: Call) -> Array:
        return np.asarray(functools.reduce(function, [array for array in call.inputs if array is not None]))

    return functools.partial(run, function)


def _mean(call: Call) -> Array:
    return np.asarray(_fold(np.add)(call) / len(call.inputs))


def _cast(call: Call) -> Array:
    return call.x.astype(_TYPES[call.integer("to", 1)])


def _cast_like(call: Call) -> Array:
    return call.x.astype(call.input(1).dtype)


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)) without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))


def erf(x: Array) -> Array:
    """Return the error function in the type of ``x``."""
    return np.asarray(_erf_of(x)).astype(x.dtype)


def _gelu(call: Call) -> Array:
    x = call.x
    if call.word("approximate", "none") == "tanh":
        return np.asarray(0.5 * x * (1.0 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    return np.asarray(0.5 * x * (1.0 + erf(x * math.sqrt(0.5))))


def _clip(call: Call) -> Array:
    x = call.x
    if call.has(1):
        x = np.maximum(x, call.input(1))
    return np.minimum(x, call.input(2)) if call.has(2) else x


def _leaky_relu(call: Call) -> Array:
    return np.where(call.x < 0, call.x * call.number("alpha", 0.01), call.x).astype(call.x.dtype)


def _elu(call: Call) -> Array:
    return np.where(call.x < 0, call.number("alpha", 1.0) * np.expm1(np.minimum(call.x, 0)), call.x)


def _celu(call: Call) -> Array:
    alpha = call.number("alpha", 1.0)
    return np.where(call.x < 0, alpha * np.expm1(np.minimum(call.x, 0) / alpha), call.x)


def _selu(call: Call) -> Array:
    alpha, gamma = call.number("alpha", 1.6732631921768188), call.number("gamma", 1.0507010221481323)
    return gamma * np.where(call.x > 0, call.x, alpha * np.expm1(np.minimum(call.x, 0)))


def _hard_sigmoid(call: Call) -> Array:
    return np.clip(call.number("alpha", 0.2) * call.x + call.number("beta", 0.5), 0, 1)


def _hard_swish(call: Call) -> Array:
    return np.asarray(call.x * np.clip(call.x / 6 + 0.5, 0, 1))


def _thresholded(call: Call) -> Array:
    return np.where(call.x > call.number("alpha", 1.0), call.x, np.zeros_like(call.x))


def _shrink(call: Call) -> Array:
    x, bound, bias = call.x, call.number("lambd", 0.5), call.number("bias", 0.0)
    return np.where(x > bound, x - bias, np.where(x < -bound, x + bias, np.zeros_like(x)))


def _swish(call: Call) -> Array:
    return call.x * sigmoid(call.x * call.number("alpha", 1.0))


def _mish(x: Array) -> Array:
    return np.asarray(x * np.tanh(_softplus(x)))


def _softplus(x: Array) -> Array:
    return np.asarray(np.logaddexp(x.dtype.type(0), x))


def _dropout(call: Call) -> tuple[Array, ...]:
    """Return the input: outside training there is nothing to drop."""
    if call.has(2) and call.input(2).any():
        raise LocalMisuseError("Dropout in training mode draws a mask, which the numpy engine does not")
    return call.x, np.ones(call.x.shape, bool)


def _is_infinite(call: Call) -> Array:
    positive = np.isposinf(call.x) if call.integer("detect_positive", 1) else np.zeros(call.x.shape, bool)
    return np.asarray(positive | (np.isneginf(call.x) if call.integer("detect_negative", 1) else False))


def _cumulative_sum(call: Call) -> Array:
    axis = int(call.input(1))
    x = np.flip(call.x, axis) if call.integer("reverse", 0) else call.x
    total = np.cumsum(x, axis=axis, dtype=x.dtype)
    total = total - x if call.integer("exclusive", 0) else total
    return np.flip(total, axis) if call.integer("reverse", 0) else total


def _triangle(call: Call) -> Array:
    diagonal = int(call.input(1)) if call.has(1) else 0
    return (np.triu if call.integer("upper", 1) else np.tril)(call.x, diagonal)


OPERATORS: Final[Operators] = {
    "Abs": each(np.abs),
    "Acos": each(np.arccos),
    "Acosh": each(np.arccosh),
    "Add": each(np.add),
    "And": each(np.logical_and),
    "Asin": each(np.arcsin),
    "Asinh": each(np.arcsinh),
    "Atan": each(np.arctan),
    "Atanh": each(np.arctanh),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Ceil": each(np.ceil),
    "Celu": _celu,
    "Clip": _clip,
    "Cos": each(np.cos),
    "Cosh": each(np.cosh),
    "CumSum": _cumulative_sum,
    "Div": _divide,
    "Dropout": _dropout,
    "Elu": _elu,
    "Equal": each(np.equal),
    "Erf": each(erf),
    "Exp": each(np.exp),
    "Floor": each(np.floor),
    "Gelu": _gelu,
    "Greater": each(np.greater),
    "GreaterOrEqual": each(np.greater_equal),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Identity": each(np.array),
    "IsInf": _is_infinite,
    "IsNaN": each(np.isnan),
    "LeakyRelu": _leaky_relu,
    "Less": each(np.less),
    "LessOrEqual": each(np.less_equal),
    "Log": each(np.log),
    "Max": _fold(np.maximum),
    "Mean": _mean,
    "Min": _fold(np.minimum),
    "Mish": each(_mish),
    "Mod": _modulo,
    "Mul": each(np.multiply),
    "Neg": each(np.negative),
    "Not": each(np.logical_not),
    "Or": each(np.logical_or),
    "PRelu": each(lambda x, slope: np.where(x < 0, x * slope, x)),
    "Pow": _power,
    "Reciprocal": each(lambda x: 1 / x),
    "Relu": each(lambda x: np.maximum(x, 0)),
    "Round": each(np.round),
    "Selu": _selu,
    "Shrink": _shrink,
    "Sigmoid": each(sigmoid),
    "Sign": each(np.sign),
    "Sin": each(np.sin),
    "Sinh": each(np.sinh),
    "Softplus": each(_softplus),
    "Softsign": each(lambda x: x / (1 + np.abs(x))),
    "Sqrt": each(np.sqrt),
    "Sub": each(np.subtract),
    "Sum": _fold(np.add),
    "Swish": _swish,
    "Tan": each(np.tan),
    "Tanh": each(np.tanh),
    "ThresholdedRelu": _thresholded,
    "Trilu": _triangle,
    "Where": each(np.where),
    "Xor": each(np.logical_xor),
}
"""Operators by name."""
