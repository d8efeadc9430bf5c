"""Gradient rules of pools."""

from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from federated_core.learning.gradients.application import Application, Gradients, Rule
from federated_core.learning.gradients.builder import flattened
from federated_core.learning.gradients.windows import Windows, spatial, windows


def max_pool(at: Application) -> Gradients:
    """Differentiate y = the maximum of each window: the node's second output says where it was."""
    builder, x = at.builder, at.x
    kernel = at.integers("kernel_shape") or ()
    window = windows(at, kernel, spatial(at, at.y.shape), spatial(at, x.shape))
    if at.integer("storage_order", 0):  # Its indices would be column-major; the values are the same without it.
        plain = {key: value for key, value in at.node.attributes.items() if key != "storage_order"}
        node = msgspec.structs.replace(builder.forward_node(at.node.outputs[0]), attributes=plain)
        builder.replace_forward(at.node.outputs[0], node)
    indices = builder.extra_output(at.node.outputs[0], 1, "int64", at.y.shape)
    size = flattened(x.shape)
    flat = (flattened(at.y.shape),)
    zeros = builder.zeros(x.shape, x.dtype, x).reshape((size,))
    reduction = "add" if window.overlap else "none"
    scattered = builder.apply(
        "ScatterElements", zeros, indices.reshape(flat), at.g.reshape(flat), shape=(size,), reduction=reduction
    )
    return [scattered.reshape(x.shape, x)]


def average_pool(at: Application) -> Gradients:
    """Differentiate y = the mean of each window: each gives its share back to every cell that it covered."""
    builder, x = at.builder, at.x
    kernel = at.integers("kernel_shape") or ()
    window = windows(at, kernel, spatial(at, at.y.shape), spatial(at, x.shape))
    counts = _cell_counts(window, include_pad=bool(at.integer("count_include_pad", 0)))
    share = at.g / builder.constant(counts.astype(x.dtype))
    # ceil_mode may let the last window hang over the end, or leave cells that no window covers.
    reach = [
        (out - 1) * stride + (size - 1) * dilation + 1 - begin
        for out, stride, size, dilation, begin in zip(
            window.outputs, window.strides, kernel, window.dilations, window.begins, strict=True
        )
    ]
    overhang = [end - size for end, size in zip(reach, window.sizes, strict=True)]
    channels = int(x.shape[1])
    ones = builder.constant(np.ones((channels, 1, *kernel), x.dtype))
    covered = tuple(size + min(over, 0) for size, over in zip(window.sizes, overhang, strict=True))
    spread = builder.apply(
        "ConvTranspose",
        share,
        ones,
        shape=(*x.shape[:2], *covered),
        dilations=window.dilations,
        group=channels,
        kernel_shape=kernel,
        pads=window.begins + tuple(max(over, 0) for over in overhang),
        strides=window.strides,
    )
    if covered == window.sizes:
        return [spread]
    axes = builder.integers(range(2, x.rank))
    pads = builder.integers([0] * len(kernel) + [max(-over, 0) for over in overhang])
    return [builder.apply("Pad", spread, pads, None, axes, shape=x.shape)]


def _cell_counts(window: Windows, *, include_pad: bool) -> NDArray[np.float64]:
    """Count the cells that each window averages; what ceil_mode adds beyond the pads never counts."""
    counts = np.ones((), np.float64)
    for size, out, kernel, stride, dilation, begin, end in zip(*window, strict=True):
        positions = np.arange(out)[:, None] * stride + np.arange(kernel)[None, :] * dilation - begin
        low, high = (-begin, size + end) if include_pad else (0, size)
        counts = counts[..., None] * ((positions >= low) & (positions < high)).sum(axis=1)
    return counts


def global_average_pool(at: Application) -> Gradients:
    """Differentiate y = the mean of each channel."""
    space = list(range(2, at.x.rank))
    return [(at.g / at.x.element_count(space)).expand(at.x.shape, at.x)]


def global_max_pool(at: Application) -> Gradients:
    """Differentiate y = the maximum of each channel; every tie gets the whole gradient."""
    return [at.x.equals(at.y).where(at.g, 0.0)]


RULES: Final[Mapping[str, Rule]] = {
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "MaxPool": max_pool,
}
"""Rules by operator."""
