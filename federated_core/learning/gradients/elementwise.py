"""Gradient rules of operators that work on each element by itself."""

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from federated_core.learning.gradients.application import Application, Gradients, Rule
from federated_core.learning.gradients.builder import Expr


def add(at: Application) -> Gradients:
    """Differentiate y = a + b."""
    return [at.g.sum_to(at.input(slot).shape) for slot in range(2)]


def subtract(at: Application) -> Gradients:
    """Differentiate y = a - b."""
    gb = -at.g if at.wants(1) else None
    return [at.g.sum_to(at.x.shape), gb and gb.sum_to(at.input(1).shape)]


def multiply(at: Application) -> Gradients:
    """Differentiate y = a * b."""
    a, b = at.input(0), at.input(1)
    ga = (at.g * b).sum_to(a.shape) if at.wants(0) else None
    return [ga, (at.g * a).sum_to(b.shape) if at.wants(1) else None]


def divide(at: Application) -> Gradients:
    """Differentiate y = a / b."""
    a, b = at.input(0), at.input(1)
    quotient = at.g / b
    gb = (-(quotient * at.y)).sum_to(b.shape) if at.wants(1) else None
    return [quotient.sum_to(a.shape), gb]


def power(at: Application) -> Gradients:
    """Differentiate y = a ** b; the gradient of b is zero where a <= 0, where it would not be real."""
    a, b = at.input(0), at.input(1)
    exponent = b.cast(a.dtype)
    ga = (at.g * exponent * a ** (exponent - 1.0)).sum_to(a.shape) if at.wants(0) else None
    if not at.wants(1) or b.dtype != a.dtype:
        return [ga, None]
    positive = a.greater(0.0)
    log = positive.where(a, 1.0).unary("Log")  # Safe before, not after: 0 * inf would be NaN.
    return [ga, (at.g * at.y * log).sum_to(b.shape)]


def modulo(at: Application) -> Gradients:
    """Differentiate y = a mod b = a - b * floor(a / b), or with the quotient cut off towards zero (fmod)."""
    gb = None
    if at.wants(1):
        b = at.input(1)
        gb = (at.g * (at.y - at.x) / b).sum_to(b.shape)
    return [at.g.sum_to(at.x.shape), gb]


def add_all(at: Application) -> Gradients:
    """Differentiate y = a + b + ... of any number of inputs."""
    return [at.g.sum_to(at.input(slot).shape) for slot in range(len(at.node.inputs))]


def mean_of_all(at: Application) -> Gradients:
    """Differentiate y = (a + b + ...) / count."""
    share = at.g / float(len(at.node.inputs))
    return [share.sum_to(at.input(slot).shape) for slot in range(len(at.node.inputs))]


def extreme_of_all(at: Application) -> Gradients:
    """Differentiate y = max(a, b, ...) or min: every input that equals the result gets the whole gradient."""
    return [
        at.input(slot).equals(at.y).where(at.g, 0.0).sum_to(at.input(slot).shape) if at.wants(slot) else None
        for slot in range(len(at.node.inputs))
    ]


def where(at: Application) -> Gradients:
    """Differentiate y = condition ? a : b."""
    condition = at.input(0)
    return [
        None,
        condition.where(at.g, 0.0).sum_to(at.input(1).shape) if at.wants(1) else None,
        condition.where(0.0, at.g).sum_to(at.input(2).shape) if at.wants(2) else None,
    ]


def identity(at: Application) -> Gradients:
    """Differentiate y = x."""
    return [at.g]


def cast(at: Application) -> Gradients:
    """Differentiate y = x in another type; from or to integers there is no slope."""
    floats = {"float16", "float32", "float64"}
    return [at.g.cast(at.x.dtype) if {at.x.dtype, at.y.dtype} <= floats else None]


def negate(at: Application) -> Gradients:
    """Differentiate y = -x."""
    return [-at.g]


def absolute(at: Application) -> Gradients:
    """Differentiate y = |x|; slope 0 at 0."""
    return [at.g * at.x.unary("Sign")]


def reciprocal(at: Application) -> Gradients:
    """Differentiate y = 1 / x."""
    return [-(at.g * at.y * at.y)]


def square_root(at: Application) -> Gradients:
    """Differentiate y = sqrt(x)."""
    return [at.g / (2.0 * at.y)]


def exponential(at: Application) -> Gradients:
    """Differentiate y = exp(x)."""
    return [at.g * at.y]


def logarithm(at: Application) -> Gradients:
    """Differentiate y = log(x)."""
    return [at.g / at.x]


def sine(at: Application) -> Gradients:
    """Differentiate y = sin(x)."""
    return [at.g * at.x.unary("Cos")]


def cosine(at: Application) -> Gradients:
    """Differentiate y = cos(x)."""
    return [-(at.g * at.x.unary("Sin"))]


def tangent(at: Application) -> Gradients:
    """Differentiate y = tan(x)."""
    return [at.g * (1.0 + at.y * at.y)]


def hyperbolic_sine(at: Application) -> Gradients:
    """Differentiate y = sinh(x)."""
    return [at.g * at.x.unary("Cosh")]


def hyperbolic_cosine(at: Application) -> Gradients:
    """Differentiate y = cosh(x)."""
    return [at.g * at.x.unary("Sinh")]


def arc_sine(at: Application) -> Gradients:
    """Differentiate y = asin(x)."""
    return [at.g / (1.0 - at.x * at.x).unary("Sqrt")]


def arc_cosine(at: Application) -> Gradients:
    """Differentiate y = acos(x)."""
    return [-(at.g / (1.0 - at.x * at.x).unary("Sqrt"))]


def arc_tangent(at: Application) -> Gradients:
    """Differentiate y = atan(x)."""
    return [at.g / (1.0 + at.x * at.x)]


def area_sine(at: Application) -> Gradients:
    """Differentiate y = asinh(x)."""
    return [at.g / (at.x * at.x + 1.0).unary("Sqrt")]


def area_cosine(at: Application) -> Gradients:
    """Differentiate y = acosh(x)."""
    return [at.g / (at.x * at.x - 1.0).unary("Sqrt")]


def area_tangent(at: Application) -> Gradients:
    """Differentiate y = atanh(x)."""
    return [at.g / (1.0 - at.x * at.x)]


def relu(at: Application) -> Gradients:
    """Differentiate y = max(x, 0): Sign(y) is the slope, two cheap operators."""
    return [at.g * at.y.unary("Sign")]


def leaky_relu(at: Application) -> Gradients:
    """Differentiate y = x if x >= 0 else alpha x."""
    alpha = at.number("alpha", 0.01)
    return [at.x.less(0.0).where(at.g * alpha, at.g)]


def prelu(at: Application) -> Gradients:
    """Differentiate y = x if x >= 0 else slope x, the slope learned."""
    slope = at.input(1)
    negative = at.x.less(0.0)
    gx = negative.where(at.g * slope, at.g) if at.wants(0) else None
    return [gx, negative.where(at.g * at.x, 0.0).sum_to(slope.shape) if at.wants(1) else None]


def elu(at: Application) -> Gradients:
    """Differentiate y = x if x >= 0 else alpha (exp(x) - 1)."""
    alpha = at.number("alpha", 1.0)
    return [at.x.less(0.0).where(at.g * (at.y + alpha), at.g)]


def celu(at: Application) -> Gradients:
    """Differentiate y = max(0, x) + min(0, alpha (exp(x / alpha) - 1))."""
    alpha = at.number("alpha", 1.0)
    return [at.x.less(0.0).where(at.g * (at.y * (1.0 / alpha) + 1.0), at.g)]


def selu(at: Application) -> Gradients:
    """Differentiate y = gamma x if x > 0 else gamma alpha (exp(x) - 1)."""
    alpha = at.number("alpha", 1.6732631921768188)
    gamma = at.number("gamma", 1.0507010221481323)
    return [at.x.greater(0.0).where(at.g * gamma, at.g * (at.y + gamma * alpha))]


def thresholded_relu(at: Application) -> Gradients:
    """Differentiate y = x if x > alpha else 0."""
    return [at.x.greater(at.number("alpha", 1.0)).where(at.g, 0.0)]


def shrink(at: Application) -> Gradients:
    """Differentiate y = x + bias below -lambd, x - bias above lambd, else 0."""
    return [at.x.unary("Abs").greater(at.number("lambd", 0.5)).where(at.g, 0.0)]


def sigmoid(at: Application) -> Gradients:
    """Differentiate y = 1 / (1 + exp(-x))."""
    return [at.g * at.y * (1.0 - at.y)]


def hard_sigmoid(at: Application) -> Gradients:
    """Differentiate y = max(0, min(1, alpha x + beta))."""
    inside = at.y.greater(0.0).both(at.y.less(1.0))
    return [inside.where(at.g * at.number("alpha", 0.2), 0.0)]


def hard_swish(at: Application) -> Gradients:
    """Differentiate y = x max(0, min(1, x / 6 + 1/2))."""
    x = at.x
    middle = x.less(3.0).where(x * (1.0 / 3.0) + 0.5, 1.0)
    return [at.g * x.greater(-3.0).where(middle, 0.0)]


def hyperbolic_tangent(at: Application) -> Gradients:
    """Differentiate y = tanh(x)."""
    return [at.g * (1.0 - at.y * at.y)]


def error_function(at: Application) -> Gradients:
    """Differentiate y = erf(x)."""
    return [at.g * (2.0 / math.sqrt(math.pi)) * (-(at.x * at.x)).unary("Exp")]


def softplus(at: Application) -> Gradients:
    """Differentiate y = log(1 + exp(x))."""
    return [at.g * at.x.unary("Sigmoid")]


def softsign(at: Application) -> Gradients:
    """Differentiate y = x / (1 + |x|)."""
    scale = at.x.unary("Abs") + 1.0
    return [at.g / (scale * scale)]


def mish(at: Application) -> Gradients:
    """Differentiate y = x tanh(softplus(x))."""
    squashed = at.x.unary("Softplus").unary("Tanh")
    slope = squashed + at.x * at.x.unary("Sigmoid") * (1.0 - squashed * squashed)
    return [at.g * slope]


def swish(at: Application) -> Gradients:
    """Differentiate y = x sigmoid(alpha x)."""
    alpha = at.number("alpha", 1.0)
    gate = (at.x * alpha).unary("Sigmoid")
    return [at.g * (gate + at.y * (1.0 - gate) * alpha)]


def gelu(at: Application) -> Gradients:
    """Differentiate y = x Phi(x), exact or in its tanh form."""
    x = at.x
    if at.word("approximate", "none") == "tanh":
        c = math.sqrt(2.0 / math.pi)
        t = ((x + x * x * x * 0.044715) * c).unary("Tanh")
        slope = (t + 1.0) * 0.5 + x * (1.0 - t * t) * (x * x * (3.0 * 0.044715) + 1.0) * (0.5 * c)
        return [at.g * slope]
    phi = (x * x * -0.5).unary("Exp") * (1.0 / math.sqrt(2.0 * math.pi))
    return [at.g * (_erf_half(x) + x * phi)]


def _erf_half(x: Expr) -> Expr:
    return ((x * math.sqrt(0.5)).unary("Erf") + 1.0) * 0.5


def clip(at: Application) -> Gradients:
    """Differentiate y = min(max(x, low), high), bounds inclusive; a learned bound gets what is clipped."""
    x, gx = at.x, at.g
    glow = ghigh = None
    raised = x
    if at.has_input(1):
        low = at.input(1)
        below = x.less(low)
        raised = at.builder.apply("Max", x, low, shape=x.shape)
        gx = below.where(0.0, gx)
        glow = below.where(at.g, 0.0)
    if at.has_input(2):
        above = raised.greater(at.input(2))
        gx = above.where(0.0, gx)
        glow = glow and above.where(0.0, glow)
        ghigh = above.where(at.g, 0.0).sum_to(at.input(2).shape)
    return [gx, glow and glow.sum_to(at.input(1).shape), ghigh]


def dropout(at: Application) -> Gradients:
    """Differentiate y = x mask / (1 - ratio) with the mask of the same run; the identity outside training."""
    training = at.has_input(2) and at.builder.constant_value(at.node.inputs[2])
    if training is False or (isinstance(training, np.ndarray) and not training.any()):
        return [at.g]
    mask = at.builder.extra_output(at.node.outputs[0], 1, "bool", at.y.shape)
    kept = 1.0 - at.input(1).cast(at.x.dtype) if at.has_input(1) else at.x.scalar(0.5)
    return [mask.where(at.g / kept, 0.0)]


def cumulative_sum(at: Application) -> Gradients:
    """Differentiate y = running sums along an axis; the gradient runs the other way."""
    flags = {"exclusive": at.integer("exclusive", 0), "reverse": 1 - at.integer("reverse", 0)}
    return [at.builder.apply("CumSum", at.g, at.input(1), shape=at.x.shape, attributes=flags), None]


def triangle(at: Application) -> Gradients:
    """Differentiate y = the upper or lower triangle of the last two axes; so is the gradient."""
    diagonal = at.input(1) if at.has_input(1) else None
    return [at.builder.apply("Trilu", at.g, diagonal, shape=at.x.shape, upper=at.integer("upper", 1)), None]


RULES: Final[Mapping[str, Rule]] = {
    "Abs": absolute,
    "Acos": arc_cosine,
    "Acosh": area_cosine,
    "Add": add,
    "Asin": arc_sine,
    "Asinh": area_sine,
    "Atan": arc_tangent,
    "Atanh": area_tangent,
    "Cast": cast,
    "CastLike": cast,
    "Celu": celu,
    "Clip": clip,
    "Cos": cosine,
    "Cosh": hyperbolic_cosine,
    "CumSum": cumulative_sum,
    "Div": divide,
    "Dropout": dropout,
    "Elu": elu,
    "Erf": error_function,
    "Exp": exponential,
    "Gelu": gelu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "Identity": identity,
    "LeakyRelu": leaky_relu,
    "Log": logarithm,
    "Max": extreme_of_all,
    "Mean": mean_of_all,
    "Min": extreme_of_all,
    "Mish": mish,
    "Mod": modulo,
    "Mul": multiply,
    "Neg": negate,
    "PRelu": prelu,
    "Pow": power,
    "Reciprocal": reciprocal,
    "Relu": relu,
    "Selu": selu,
    "Shrink": shrink,
    "Sigmoid": sigmoid,
    "Sin": sine,
    "Sinh": hyperbolic_sine,
    "Softplus": softplus,
    "Softsign": softsign,
    "Sqrt": square_root,
    "Sub": subtract,
    "Sum": add_all,
    "Swish": swish,
    "Tan": tangent,
    "Tanh": hyperbolic_tangent,
    "ThresholdedRelu": thresholded_relu,
    "Trilu": triangle,
    "Where": where,
}
"""Rules by operator."""
