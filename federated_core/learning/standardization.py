"""Personal parameters that a device computes from its own examples: means and scales of its sensors."""

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from federated_core.errors import LocalMisuseError
from federated_core.learning.bundle import Bundle

_DEVIATION_MIN: Final = 1e-6
_BLOCK_COUNT: Final = 64


def fit_personal(bundle: Bundle, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """Compute the personal parameters that the bundle's fits describe.

    Parameters
    ----------
    bundle : Bundle
        Its description names the parameter, the statistic, the input and the axes of each fit.
    inputs : mapping of str to array
        The device's own *training* examples, one array per input of the model, examples first; at least one example.

    Returns
    -------
    dict of str to float32 array
        Each fitted parameter in its shape. A mean is in the unit of the input, an inverse standard deviation in its
        reciprocal; of a feature that does not vary (deviation below 1e-6) it is 1, so that nothing is blown up.

    Raises
    ------
    LocalMisuseError
        If an input is missing or empty, or the statistic does not have the parameter's shape.

    Examples
    --------
    A fit of ``mean`` over axes (0, 2) of examples of shape (count, channels, steps) gives one mean per channel.
    """
    shapes = {spec.name: spec.shape for spec in bundle.description.layout.parameters}
    fitted: dict[str, NDArray[np.float32]] = {}
    for fit in bundle.description.fits:
        if fit.input not in inputs or inputs[fit.input].size == 0:
            raise LocalMisuseError(f"'{fit.parameter}' is fitted to input '{fit.input}', which has no examples")
        if 0 not in fit.axes:
            raise LocalMisuseError(f"'{fit.parameter}': expected a fit over examples (axis 0), got axes {fit.axes}")
        mean = _block_mean(inputs[fit.input], fit.axes)
        statistic = mean
        if fit.statistic == "inverse-standard-deviation":
            deviation = np.sqrt(_block_mean(inputs[fit.input], fit.axes, around=mean))
            statistic = 1.0 / np.where(deviation < _DEVIATION_MIN, 1.0, deviation)
        shape = shapes[fit.parameter]
        if statistic.size != np.prod(shape, dtype=np.int64):
            raise LocalMisuseError(
                f"'{fit.parameter}' has shape {shape}, its statistic over axes {fit.axes} has {statistic.size} values"
            )
        fitted[fit.parameter] = statistic.reshape(shape).astype(np.float32)
    return fitted


def _block_mean(
    values: NDArray[Any], axes: tuple[int, ...], around: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Mean over ``axes`` (kept with length 1), of squared distances if ``around`` is given.

    Over examples at least, block by block, as a board with 512 MB has no room for a float64 copy of all its examples.
    """
    total: NDArray[np.float64] = np.zeros(1)
    for start in range(0, len(values), _BLOCK_COUNT):
        block = np.asarray(values[start : start + _BLOCK_COUNT], np.float64)
        block = block if around is None else (block - around) ** 2
        total = total + block.sum(axis=axes, keepdims=True)
    count: int = math.prod(values.shape[axis] for axis in axes)
    return total / count
