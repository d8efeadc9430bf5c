"""Interpolation along one axis as a matrix: Resize is linear, so its gradient is the transposed matrix."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from federated_core.errors import LocalMisuseError
from federated_core.learning.graph import Attribute

Array = NDArray[np.float64]


def interpolation_matrix(settings: Mapping[str, Attribute], before: int, after: int, scale: float) -> Array:
    """Return what each element of a resized axis takes from each element of the original.

    Parameters
    ----------
    settings : mapping of str to Attribute
        The attributes of a Resize.
    before : int
        Size of the axis, > 0.
    after : int
        Its new size, > 0.
    scale : float
        Ratio of the two, before any rounding.

    Returns
    -------
    float64, shape (after, before)
        Weights; ``matrix @ x`` resizes a column.

    Raises
    ------
    LocalMisuseError
        If the coordinates are of a kind that is not supported.

    References
    ----------
    The operator Resize of ai.onnx 19.

    Examples
    --------
    >>> interpolation_matrix({"mode": "linear"}, 2, 4, 2.0).tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    """
    positions = _positions(str(settings.get("coordinate_transformation_mode", "half_pixel")), before, after, scale)
    mode = settings.get("mode", "nearest")
    if mode == "nearest":
        taps = _rounded(str(settings.get("nearest_mode", "round_prefer_floor")), positions)[:, None]
        weights = np.ones_like(taps, np.float64)
    else:
        narrowing = min(scale, 1.0) if settings.get("antialias") else 1.0
        reach = int(np.ceil((1 if mode == "linear" else 2) / narrowing)) + 1
        taps = np.floor(positions)[:, None].astype(np.int64) + np.arange(-reach, reach + 1)
        distance = np.abs(taps - positions[:, None]) * narrowing
        weights = (
            _tent(distance) if mode == "linear" else _cubic(distance, float(str(settings.get("cubic_coeff_a", -0.75))))
        )
        if settings.get("exclude_outside"):
            weights = weights * ((taps >= 0) & (taps < before))
        weights = weights / weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((after, before))
    np.add.at(matrix, (np.arange(after)[:, None], np.clip(taps, 0, before - 1)), weights)
    return matrix


def _positions(mode: str, before: int, after: int, scale: float) -> Array:
    """Return where each output element lies among the input's."""
    places = np.arange(after, dtype=np.float64)
    half_pixel: Array = (places + 0.5) / scale - 0.5
    middle = np.zeros(1)
    match mode:
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
        case _:
            raise LocalMisuseError(f"Resize with {mode} coordinates is not supported")


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
