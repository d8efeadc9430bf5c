"""Values to small integers and back: unbiased stochastic rounding with private, reproducible noise."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from federated_core.errors import LocalMisuseError

NOISE_KEY_BYTES: Final = 16
MAGNITUDE_MAX: Final = (1 << 24) - 1
"""Largest symbol: beyond it float32 could not hold the symbol exactly."""

Symbols = NDArray[np.int32]

_SMALLEST_NORMAL: Final = float(np.finfo(np.float32).smallest_normal)


def rounding_noise(key: bytes, count: int) -> NDArray[np.float64]:
    """Draw ``count`` numbers in (0, 1) from the Philox stream of ``key``.

    The raw 64-bit words are cut into 16-bit numbers and centred on half steps. Raw, because numpy promises the
    stream of a bit generator for ever, but not what its distributions make of it (NEP 19).

    Parameters
    ----------
    key : bytes
        16 bytes, private to the device and new for every round: equal noise on two devices would correlate their
        errors, and noise that the aggregator can compute would undo the rounding.
    count : int
        How many numbers, >= 0.

    Returns
    -------
    float64, shape (count,)
        Multiples of 2^-16 plus 2^-17; the same key gives the same numbers on every platform.

    Raises
    ------
    LocalMisuseError
        If ``key`` is not 16 bytes long.

    References
    ----------
    Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

    Examples
    --------
    >>> rounding_noise(bytes(16), 3).round(4).tolist()
    [0.8461, 0.0347, 0.7281]
    """
    if len(key) != NOISE_KEY_BYTES:
        raise LocalMisuseError(f"noise key: expected {NOISE_KEY_BYTES} bytes, got {len(key)}")
    words = np.random.Philox(key=np.frombuffer(key, "<u8").astype(np.uint64)).random_raw(-(-count // 4))
    return (words.astype("<u8", copy=False).view("<u2")[:count].astype(np.float64) + 0.5) / 65536


def step_for(values: NDArray[np.float32], step_per_rms: float) -> float:
    """Choose the step of a whole update or round: a multiple of the root mean square of ``values``.

    Parameters
    ----------
    values : float32, shape (n,)
        What will be quantized, finite.
    step_per_rms : float
        ``a`` of the codec notes, > 0: 4 costs about 0.7 bits a value, 16 about 0.25.

    Returns
    -------
    float
        A float32 number, rounded *before* any level is drawn, as a step rounded afterwards would be a bias;
        0 if all values are zero.

    Raises
    ------
    LocalMisuseError
        If ``values`` are not finite, ``step_per_rms`` is not positive or the step exceeds float32.

    Examples
    --------
    >>> step_for(np.float32([3, -4, 0, 0]), 4.0)
    10.0
    """
    if not 0 < step_per_rms < np.inf:
        raise LocalMisuseError(f"step per rms: expected a positive number, got {step_per_rms}")
    if not np.isfinite(values).all():
        raise LocalMisuseError("expected finite values, got NaN or infinity")
    square_sum = float(np.square(values, dtype=np.float64).sum())
    if square_sum == 0:
        return 0.0
    step = step_per_rms * np.sqrt(square_sum / values.size)
    if step > np.finfo(np.float32).max:
        raise LocalMisuseError(f"expected a step within float32, got {step}")
    return float(np.float32(max(step, _SMALLEST_NORMAL)))


def quantize(values: NDArray[np.float32], step: float, noise: NDArray[np.float64]) -> Symbols:
    """Round ``values`` to multiples of ``step``, up or down by ``noise``: unbiased in expectation.

    Parameters
    ----------
    values : float32, shape (n,)
        One flattened delta, dimensionless.
    step : float
        Width of one level, > 0, in the unit of ``values``.
    noise : float64, shape (n,)
        Uniform in (0, 1), from ``rounding_noise``.

    Returns
    -------
    int32, shape (n,)
        Level index of each value. Nothing is clipped: a clipped symbol would be a bias that no averaging removes.

    Raises
    ------
    LocalMisuseError
        If the shapes differ, ``step`` is not positive, or a symbol is not within ``MAGNITUDE_MAX`` (which NaN and
        infinity never are).

    References
    ----------
    Alistarh et al., "QSGD", NeurIPS 2017. arXiv:1610.02132

    Examples
    --------
    >>> quantize(np.float32([0.0, 1.0, -2.5]), 1.0, np.array([0.9, 0.1, 0.6])).tolist()
    [0, 1, -2]
    """
    if values.shape != noise.shape:
        raise LocalMisuseError(f"expected noise of shape {values.shape}, got {noise.shape}")
    if not 0 < step < np.inf:
        raise LocalMisuseError(f"step: expected a positive number, got {step}")
    levels = np.floor(values.astype(np.float64) / step + noise)
    if not (np.abs(levels) <= MAGNITUDE_MAX).all():
        raise LocalMisuseError(f"expected symbols within {MAGNITUDE_MAX}, got a value beyond at step {step}")
    return levels.astype(np.int32)


def dequantize(symbols: Symbols, step: float) -> NDArray[np.float32]:
    """Turn level indices back into values.

    Parameters
    ----------
    symbols : int32, shape (n,)
        Level indices within ``MAGNITUDE_MAX``, so that float32 holds them exactly.
    step : float
        Width of one level, a float32 number.

    Returns
    -------
    float32, shape (n,)
        One product each, rounded once: the same bits on every platform.

    Examples
    --------
    >>> dequantize(np.int32([0, 1, -2]), 0.5).tolist()
    [0.0, 0.5, -1.0]
    """
    return np.float32(step) * symbols.astype(np.float32)
