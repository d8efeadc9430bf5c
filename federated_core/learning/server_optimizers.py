"""Server optimizers: pairs of pure functions that descend the pseudo-gradient (minus the aggregate)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from federated_core.errors import LocalMisuseError
from federated_core.learning.parameters import Vector

OptimizerState = tuple[Vector, ...]
"""Zero or more vectors of the model's size, so that they are stored like checkpoints."""


@dataclass(frozen=True, slots=True)
class ServerOptimizer:
    """``init(parameters) -> state`` and ``apply(pseudo_gradient, state, parameters) -> (parameters', state')``.

    The pseudo-gradient is float64; parameters and state are rounded to float32 once a round, so that a restart from
    what was stored continues with the same bits.
    """

    init: Callable[[Vector], OptimizerState]
    apply: Callable[[NDArray[np.float64], OptimizerState, Vector], tuple[Vector, OptimizerState]]


def sgd(learning_rate: float = 1.0) -> ServerOptimizer:
    """Plain descent: with a learning rate of 1, federated averaging itself.

    Parameters
    ----------
    learning_rate : float
        Share of the aggregate that is applied, > 0.

    Returns
    -------
    ServerOptimizer
        A stateless optimizer.

    Raises
    ------
    LocalMisuseError
        If ``learning_rate`` is not positive and finite.

    Examples
    --------
    >>> parameters = np.float32([1, 2])
    >>> sgd(0.5).apply(np.array([1.0, -1.0]), (), parameters)[0].tolist()
    [0.5, 2.5]
    """
    _check_rate(learning_rate)

    def apply(
        pseudo_gradient: NDArray[np.float64], state: OptimizerState, parameters: Vector
    ) -> tuple[Vector, OptimizerState]:
        return (parameters - learning_rate * pseudo_gradient).astype(np.float32), state

    return ServerOptimizer(lambda _: (), apply)


def momentum(learning_rate: float = 1.0, *, decay: float = 0.9) -> ServerOptimizer:
    """Heavy ball: ``velocity = decay * velocity + pseudo_gradient``, and a step along the velocity.

    Parameters
    ----------
    learning_rate : float
        Step along the velocity, > 0.
    decay : float
        Share of the velocity that survives a round, in [0, 1).

    Returns
    -------
    ServerOptimizer
        Its state is the velocity.

    Raises
    ------
    LocalMisuseError
        If a setting is out of bounds.

    References
    ----------
    Hsu et al., "Measuring the effects of non-identical data distribution for federated visual classification", 2019
    (FedAvgM). arXiv:1909.06335

    Examples
    --------
    >>> optimizer = momentum(1.0, decay=0.5)
    >>> parameters = np.float32([0])
    >>> parameters, state = optimizer.apply(np.array([-1.0]), optimizer.init(parameters), parameters)
    >>> optimizer.apply(np.array([-1.0]), state, parameters)[0].tolist()  # 1, then 1 + 0.5 * 1 more
    [2.5]
    """
    _check_rate(learning_rate)
    if not 0 <= decay < 1:
        raise LocalMisuseError(f"decay: expected a share in [0, 1), got {decay}")

    def apply(
        pseudo_gradient: NDArray[np.float64], state: OptimizerState, parameters: Vector
    ) -> tuple[Vector, OptimizerState]:
        (velocity,) = state
        velocity = (decay * velocity.astype(np.float64) + pseudo_gradient).astype(np.float32)
        return (parameters - learning_rate * velocity.astype(np.float64)).astype(np.float32), (velocity,)

    return ServerOptimizer(lambda parameters: (np.zeros_like(parameters),), apply)


def _check_rate(learning_rate: float) -> None:
    if not 0 < learning_rate < np.inf:
        raise LocalMisuseError(f"learning rate: expected a positive number, got {learning_rate}")
