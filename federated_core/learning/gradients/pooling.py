"""Gradient rules of pools."""

from collections.abc import Mapping
from typing import Final

import msgspec

from federated_core.learning.gradients.application import Application, Gradients, Rule
from federated_core.learning.gradients.builder import flattened
from federated_core.learning.gradients.windows import spatial, windows


def max_pool(at: Application) -> Gradients:
    """Differentiate y = the maximum of each window: the gradient goes to where the node's second output says it was."""
    builder, x = at.builder, at.x
    kernel = at.integers("kernel_shape") or ()
    window = windows(at, kernel, spatial(at, at.y.shape), spatial(at, x.shape))
    if at.integer("storage_order", 0):  # Its indices would be column-major; the values are the same without it.
        plain = {key: value for key, value in at.node.attributes.items() if key != "storage_order"}
        node = msgspec.structs.replace(builder.forward_node(at.node.outputs[0]), attributes=plain)
        builder.replace_forward(at.node.outputs[0], node)
    indices = builder.extra_output(at.node.outputs[0], 1, "int64", at.y.shape)
    size = flattened(x.shape)
    zeros = builder.apply("Reshape", builder.zeros(x.shape, x.dtype, x), builder.integers([-1]), shape=(size,))
    flat = (flattened(at.y.shape),)
    reduction = "add" if window.overlap else "none"
    scattered = builder.apply(
        "ScatterElements", zeros, indices.reshape(flat), at.g.reshape(flat), shape=(size,), reduction=reduction
    )
    return [scattered.reshape(x.shape, x)]


RULES: Final[Mapping[str, Rule]] = {"MaxPool": max_pool}
"""Rules by operator."""
