"""Norms of deltas: what a device bounds before it encodes, and what the aggregator may conclude from the symbols."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from federated_core.errors import LocalMisuseError, RemoteProtocolError
from federated_core.learning.quantization import Symbols


def l2_norm(values: NDArray[np.float32]) -> float:
    """Euclidean norm, accumulated in float64."""
    return math.sqrt(float(np.square(values, dtype=np.float64).sum()))


def clip_to_norm(delta: NDArray[np.float32], norm_max: float) -> NDArray[np.float32]:
    """Scale ``delta`` down to ``norm_max`` if it is longer.

    Parameters
    ----------
    delta : float32, shape (n,)
        Local minus global parameters, finite.
    norm_max : float
        Largest norm allowed, > 0.

    Returns
    -------
    float32, shape (n,)
        ``delta`` itself, or a shorter copy of the same direction.

    Raises
    ------
    LocalMisuseError
        If ``norm_max`` is not positive or ``delta`` is not finite.

    References
    ----------
    McMahan et al., "Learning differentially private recurrent language models", ICLR 2018. arXiv:1710.06963

    Examples
    --------
    >>> clip_to_norm(np.float32([3, 4]), 1.0).tolist()
    [0.6000000238418579, 0.800000011920929]
    """
    if not norm_max > 0:
        raise LocalMisuseError(f"norm bound: expected a positive number, got {norm_max}")
    norm = l2_norm(delta)
    if not math.isfinite(norm):
        raise LocalMisuseError("expected a finite delta, got NaN or infinity")
    return delta if norm <= norm_max else (delta * (norm_max / norm)).astype(np.float32)


def norm_bound_factor(step_per_rms: float) -> float:
    """How much longer a decoded update may be than the delta it encodes, for any delta, in expectation.

    Stochastic rounding adds variance: ``|decoded|^2 = |delta|^2 (1 + NMSE)`` in the mean. With ``x`` the values over
    the step and ``f`` their fractions, ``NMSE = a^2 mean(f (1 - f))`` where ``mean(x^2) = 1 / a^2``; as ``f (1 - f)``
    is at most 1/4 and, below one step, the concave ``sqrt(x^2) - x^2``, ``NMSE <= a - 1`` from ``a = 2`` on and
    ``a^2 / 4`` below. Equal magnitudes reach it. A gate without this factor clips honest devices.

    Parameters
    ----------
    step_per_rms : float
        ``a``, > 0.

    Returns
    -------
    float
        At least 1. Real deltas reach 1.4 at a = 4 and 2.7 at a = 16.

    Examples
    --------
    >>> round(norm_bound_factor(4.0), 2), round(norm_bound_factor(16.0), 2)
    (2.0, 4.0)
    """
    return math.sqrt(step_per_rms if step_per_rms >= 2 else 1 + step_per_rms**2 / 4)


def decoded_norm(step: float, symbols: Symbols) -> float:
    """Euclidean norm of ``step * symbols``; the sum of squares is exact."""
    wide = symbols.astype(np.int64)
    return step * math.sqrt(int(wide @ wide))


def gate_step(step: float, symbols: Symbols, *, norm_max: float, step_per_rms: float, refusal_multiple: float) -> float:
    """Bound the norm of a decoded update: clip it by a smaller step, or refuse it when it is far beyond.

    Parameters
    ----------
    step : float
        Step of the update.
    symbols : int32, shape (n,)
        Symbols of the update.
    norm_max : float
        What honest devices clip their deltas to before encoding, > 0.
    step_per_rms : float
        ``a`` of the plan.
    refusal_multiple : float
        How many times the bound is no longer believed, >= 1.

    Returns
    -------
    float
        ``step``, or the smaller one that brings the norm to ``norm_max * norm_bound_factor(step_per_rms)``.

    Raises
    ------
    RemoteProtocolError
        If the norm exceeds ``refusal_multiple`` times the bound.

    Examples
    --------
    >>> step = gate_step(1.0, np.int32([0, 10]), norm_max=2.0, step_per_rms=2.0, refusal_multiple=8.0)
    >>> round(step, 3)  # 2 sqrt(1 + 1) over a decoded norm of 10
    0.283
    """
    norm_bound = norm_max * norm_bound_factor(step_per_rms)
    norm = decoded_norm(step, symbols)
    if norm > refusal_multiple * norm_bound:
        raise RemoteProtocolError(
            f"$.update: expected a norm of at most {refusal_multiple:g} x {norm_bound:.3g}, got {norm:.3g}"
        )
    return step if norm <= norm_bound else step * (norm_bound / norm)
