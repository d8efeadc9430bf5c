"""The gradient rule of Resize: it is linear and works along one axis at a time, so it is a product of matrices."""

from collections.abc import Mapping
from typing import Final

import numpy as np

from federated_core.errors import LocalMisuseError
from federated_core.learning.gradients.application import Application, Gradients, Rule
from federated_core.learning.gradients.builder import Expr
from federated_core.learning.interpolation import interpolation_matrix


def resize(at: Application) -> Gradients:
    """Differentiate y = x resized: multiply each resized axis by the transposed matrix of its interpolation."""
    g = at.g
    for axis, scale in _scales(at).items():
        before, after = at.x.shape[axis], at.y.shape[axis]
        if before == after and scale == 1.0:
            continue
        if not isinstance(before, int) or not isinstance(after, int):
            raise at.refusal("the sizes along the axes that it resizes must be fixed")
        try:
            matrix = interpolation_matrix(at.node.attributes, before, after, scale).astype(g.dtype)
        except LocalMisuseError as error:
            raise at.refusal(str(error)) from error
        g = _along_axis(g, axis, at.builder.constant(matrix))
    return [g]


def _along_axis(g: Expr, axis: int, matrix: Expr) -> Expr:
    """Multiply one axis of ``g`` by a matrix from the right."""
    last = [*(other for other in range(g.rank) if other != axis), axis]
    moved = g.transpose(last)
    product = g.builder.apply("MatMul", moved, matrix, shape=(*moved.shape[:-1], matrix.shape[1]))
    return product.transpose([int(place) for place in np.argsort(last)])


def _scales(at: Application) -> dict[int, float]:
    rank = at.x.rank
    axes = [axis % rank for axis in at.integers("axes") or range(rank)]
    if at.has_input(2) and at.input(2).shape != (0,):
        given = at.builder.constant_value(at.node.inputs[2])
        if given is None:
            raise at.refusal("its scales must be constant")
        return {axis: float(scale) for axis, scale in zip(axes, given, strict=True)}
    ratios: dict[int, float] = {}
    for axis, wanted in zip(axes, at.constant_integers(3) or (), strict=True):
        before = at.x.shape[axis]
        if isinstance(before, int):
            ratios[axis] = wanted / before
        elif at.y.shape[axis] != before:
            raise at.refusal("the sizes along the axes that it resizes must be fixed")
    policy = at.word("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        common = min(ratios.values()) if policy == "not_larger" else max(ratios.values())
        return dict.fromkeys(ratios, common)
    return ratios


RULES: Final[Mapping[str, Rule]] = {"Resize": resize}
"""Rules by operator."""
