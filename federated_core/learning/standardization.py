"""Personal parameters that a device computes from its own examples: means and scales of its sensors."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from federated_core.errors import LocalMisuseError
from federated_core.learning.bundle import Bundle

_DEVIATION_MIN: Final = 1e-6


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
        values = np.asarray(inputs[fit.input], np.float64)
        if fit.statistic == "mean":
            statistic = values.mean(axis=fit.axes)
        else:
            deviation = values.std(axis=fit.axes)
            statistic = 1.0 / np.where(deviation < _DEVIATION_MIN, 1.0, deviation)
        shape = shapes[fit.parameter]
        if statistic.size != np.prod(shape, dtype=np.int64):
            raise LocalMisuseError(f"'{fit.parameter}' has shape {shape}, its statistic {statistic.shape}")
        fitted[fit.parameter] = statistic.reshape(shape).astype(np.float32)
    return fitted
