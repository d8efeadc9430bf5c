"""The gradient rule of Resize: it is linear and works along one axis at a time, so it is a product of matrices."""

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from federated_core.learning.gradients.application import Application, Gradients, Rule
from federated_core.learning.gradients.builder import Expr

Array = NDArray[np.float64]


def resize(at: Application) -> Gradients:
    """Differentiate y = x resized: multiply each resized axis by the transposed matrix of its interpolation."""
    g = at.g
    for axis, scale in _scales(at).items():
        before, after = at.x.shape[axis], at.y.shape[axis]
        if before == after and scale == 1.0:
            continue
        if not isinstance(before, int) or not isinstance(after, int):
            raise at.refusal("the sizes along the axes that it resizes must be fixed")
        matrix = _matrix(at, _Axis(axis, before, after, scale)).astype(g.dtype)
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


class _Axis(NamedTuple):
    """One axis that is resized."""

    place: int
    before: int
    after: int
    scale: float


def _matrix(at: Application, axis: _Axis) -> Array:
    """Return the weights, shape (after, before), of one axis."""
    before, after, scale = axis.before, axis.after, axis.scale
    positions = _positions(at, axis)
    mode = at.word("mode", "nearest")
    if mode == "nearest":
        taps = _rounded(at.word("nearest_mode", "round_prefer_floor"), positions)[:, None]
        weights = np.ones_like(taps, np.float64)
    else:
        narrowing = min(scale, 1.0) if at.integer("antialias", 0) else 1.0
        reach = int(np.ceil((1 if mode == "linear" else 2) / narrowing)) + 1
        taps = np.floor(positions)[:, None].astype(np.int64) + np.arange(-reach, reach + 1)
        distance = np.abs(taps - positions[:, None]) * narrowing
        weights = _tent(distance) if mode == "linear" else _cubic(distance, at.number("cubic_coeff_a", -0.75))
        if at.integer("exclude_outside", 0):
            weights = weights * ((taps >= 0) & (taps < before))
        weights = weights / weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((after, before))
    np.add.at(matrix, (np.arange(after)[:, None], np.clip(taps, 0, before - 1)), weights)
    return matrix


def _positions(at: Application, axis: _Axis) -> Array:
    """Return where each output element lies among the input's."""
    _, before, after, scale = axis
    places = np.arange(after, dtype=np.float64)
    half_pixel: Array = (places + 0.5) / scale - 0.5
    middle = np.zeros(1)
    match at.word("coordinate_transformation_mode", "half_pixel"):
        case "half_pixel":
            return half_pixel
        case "half_pixel_symmetric":
            return half_pixel + before / 2 * (1 - after / (scale * before))
        case "pytorch_half_pixel":
            return half_pixel if after > 1 else middle
        case "align_corners":
            return places * (before - 1) / (after - 1) if after > 1 else middle
        case "asymmetric":
            return places / scale
        case mode:
            raise at.refusal(f"{mode} is not supported")


def _rounded(mode: str, positions: Array) -> NDArray[np.int64]:
    rounding = {
        "ceil": np.ceil(positions),
        "floor": np.floor(positions),
        "round_prefer_ceil": np.floor(positions + 0.5),
        "round_prefer_floor": np.ceil(positions - 0.5),
    }
    return rounding[mode].astype(np.int64)


def _tent(distance: Array) -> Array:
    return np.maximum(0.0, 1.0 - distance)


def _cubic(distance: Array, a: float) -> Array:
    """Keys' kernel: "Cubic convolution interpolation for digital image processing", IEEE TASSP 29(6), 1981."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


RULES: Final[Mapping[str, Rule]] = {"Resize": resize}
"""Rules by operator."""
