"""Gradient rules of normalizations.

All follow one formula: with h the normalized input and q the gradient at h, the gradient at x is
``inv * (q - mean(q) - h * mean(q * h))``, means taken over what was normalized together.

References
----------
Ioffe and Szegedy, "Batch Normalization", ICML 2015, section 3. arXiv:1502.03167
"""

from collections.abc import Mapping, Sequence
from typing import Final

from federated_core.learning.gradients.application import Application, Gradients, Rule
from federated_core.learning.gradients.builder import Expr


def _back(q: Expr, h: Expr, inv: Expr, axes: Sequence[int]) -> Expr:
    return (q - q.mean(axes) - h * (q * h).mean(axes)) * inv


def _per_channel(value: Expr, rank: int) -> Expr:
    """Shape a value per channel so that it broadcasts against [N, C, ...]."""
    return value.reshape((value.shape[0], *(1,) * (rank - 2)))


def batch_normalization(at: Application) -> Gradients:
    """Differentiate y = scale (x - mean) / sqrt(var + epsilon) + bias.

    Outside training the statistics are fixed numbers. In training mode they are the batch's own and are computed again
    here: the node returns only what the running ones become.
    """
    x, g, scale = at.x, at.g, at.input(1)
    others = [0, *range(2, x.rank)]
    epsilon = at.number("epsilon", 1e-5)
    if at.integer("training_mode", 0):
        mean = x.mean(others)
        centered = x - mean
        inv = ((centered * centered).mean(others) + epsilon).unary("Sqrt").unary("Reciprocal")
    else:
        mean = _per_channel(at.input(3), x.rank)
        centered = x - mean
        inv = _per_channel((at.input(4) + epsilon).unary("Sqrt").unary("Reciprocal"), x.rank)
    h = centered * inv
    q = g * _per_channel(scale, x.rank)
    gscale = (g * h).sum(others, keepdims=False) if at.wants(1) else None
    gbias = g.sum(others, keepdims=False) if at.wants(2) else None
    if at.integer("training_mode", 0):
        return [_back(q, h, inv, others), gscale, gbias, None, None]
    gx = q * inv
    gmean = -gx.sum(others, keepdims=False) if at.wants(3) else None
    gvar = ((gx * h * inv) * -0.5).sum(others, keepdims=False) if at.wants(4) else None
    return [gx, gscale, gbias, gmean, gvar]


def instance_normalization(at: Application) -> Gradients:
    """Differentiate y = scale h + bias, h normalized over each channel of each example."""
    x, g = at.x, at.g
    space = list(range(2, x.rank))
    h, inv = _normalized(x, space, at.number("epsilon", 1e-5))
    gx = _back(g * _per_channel(at.input(1), x.rank), h, inv, space)
    return [gx, *_affine(at, g, h)]


def _affine(at: Application, g: Expr, h: Expr) -> Gradients:
    others = [0, *range(2, g.rank)]
    gscale = (g * h).sum(others, keepdims=False) if at.wants(1) else None
    return [gscale, g.sum(others, keepdims=False) if at.wants(2) else None]


def _normalized(x: Expr, axes: Sequence[int], epsilon: float) -> tuple[Expr, Expr]:
    centered = x - x.mean(axes)
    inv = ((centered * centered).mean(axes) + epsilon).unary("Sqrt").unary("Reciprocal")
    return centered * inv, inv


def group_normalization(at: Application) -> Gradients:
    """Differentiate y = scale h + bias, h normalized over groups of channels of each example."""
    x, g, scale = at.x, at.g, at.input(1)
    groups = at.integer("num_groups", 1)
    if not all(isinstance(dim, int) for dim in x.shape[1:]):
        raise at.refusal("all sizes but the batch must be fixed")
    channels = int(x.shape[1])
    grouped = (x.shape[0], groups, channels // groups, *x.shape[2:])
    axes = list(range(2, len(grouped)))
    h, inv = _normalized(x.reshape(grouped), axes, at.number("epsilon", 1e-5))
    if scale.shape[0] == groups != channels:  # Before opset 21 a group has one scale.
        per_group = _per_channel(scale, len(grouped))
        gh = g.reshape(grouped)
        gscale = (gh * h).sum([0, *axes], keepdims=False) if at.wants(1) else None
        gbias = gh.sum([0, *axes], keepdims=False) if at.wants(2) else None
        return [_back(gh * per_group, h, inv, axes).reshape(x.shape), gscale, gbias]
    q = (g * _per_channel(scale, x.rank)).reshape(grouped)
    return [_back(q, h, inv, axes).reshape(x.shape), *_affine(at, g, h.reshape(x.shape))]


def layer_normalization(at: Application) -> Gradients:
    """Differentiate y = scale h + bias, h normalized over the last axes; the node tells mean and deviation."""
    x, g, scale = at.x, at.g, at.input(1)
    axis = at.integer("axis", -1) % x.rank
    over = list(range(axis, x.rank))
    reduced = tuple(1 if place in over else dim for place, dim in enumerate(x.shape))
    mean = at.builder.extra_output(at.node.outputs[0], 1, x.dtype, reduced)
    inv = at.builder.extra_output(at.node.outputs[0], 2, x.dtype, reduced)
    h = (x - mean) * inv
    gx = _back(g * scale, h, inv, over)
    for slot, slope in ((1, None), (2, -(h * inv * inv))):
        arriving = at.gradients[slot] if slot < len(at.gradients) else None
        if arriving is not None:
            share = arriving / x.element_count(over)
            gx = gx + (share if slope is None else share * slope)
    gscale = (g * h).sum_to(scale.shape) if at.wants(1) else None
    return [gx, gscale, g.sum_to(at.input(2).shape) if at.wants(2) else None]


def rms_normalization(at: Application) -> Gradients:
    """Differentiate y = scale x / sqrt(mean(x^2) + epsilon)."""
    x, g, scale = at.x, at.g, at.input(1)
    axis = at.integer("axis", -1) % x.rank
    over = list(range(axis, x.rank))
    inv = ((x * x).mean(over) + at.number("epsilon", 1e-5)).unary("Sqrt").unary("Reciprocal")
    h = x * inv
    q = g * scale
    gx = (q - h * (q * h).mean(over)) * inv
    return [gx, (g * h).sum_to(scale.shape) if at.wants(1) else None]


def mean_variance_normalization(at: Application) -> Gradients:
    """Differentiate y = (x - mean) / deviation over some axes; the node adds 1e-9 to the deviation."""
    axes = [axis % at.x.rank for axis in at.integers("axes") or (0, 2, 3)]
    centered = at.x - at.x.mean(axes)
    inv = ((centered * centered).mean(axes).unary("Sqrt") + 1e-9).unary("Reciprocal")
    return [_back(at.g, centered * inv, inv, axes)]


def lp_normalization(at: Application) -> Gradients:
    """Differentiate y = x / its norm along an axis; a slice of norm zero gets no gradient."""
    axis = [at.integer("axis", -1) % at.x.rank]
    x, g = at.x, at.g
    euclidean = at.integer("p", 2) == 2
    norm = (x * x).sum(axis).unary("Sqrt") if euclidean else x.unary("Abs").sum(axis)
    positive = norm.greater(0.0)
    safe = positive.where(norm, 1.0)
    direction = at.y if euclidean else x.unary("Sign")
    return [positive.where((g - direction * (g * at.y).sum(axis)) / safe, 0.0)]


def local_response(at: Application) -> Gradients:
    """Differentiate y = x / (bias + alpha / size * sum of x^2 over neighbouring channels) ^ beta."""
    x, g, builder = at.x, at.g, at.builder
    size, beta = at.integer("size", 1), at.number("beta", 0.75)
    scale = at.number("alpha", 1e-4) / size
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2

    def neighbours(value: Expr, low: int, high: int) -> Expr:
        pads = builder.integers([low, high])
        padded_shape = (value.shape[0], int(value.shape[1]) + low + high, *value.shape[2:])
        padded = builder.apply("Pad", value, pads, None, builder.integers([1]), shape=padded_shape)
        return builder.sum([padded.slice(1, start, start + int(value.shape[1])) for start in range(size)])

    base = neighbours(x * x, before, after) * scale + at.number("bias", 1.0)
    inner = g * x * base ** (-beta - 1.0)
    return [g * base ** (-beta) - x * neighbours(inner, after, before) * (2.0 * scale * beta)]


RULES: Final[Mapping[str, Rule]] = {
    "BatchNormalization": batch_normalization,
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "LRN": local_response,
    "LayerNormalization": layer_normalization,
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
    "RMSNormalization": rms_normalization,
}
"""Rules by operator."""
