"""Federated algorithms: what the aggregator makes of a round's aggregate, as a pair of pure functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from federated_core.errors import LocalMisuseError
from federated_core.learning.parameters import Vector
from federated_core.learning.server_optimizers import OptimizerState, ServerOptimizer, sgd


@dataclass(frozen=True, slots=True, eq=False)
class AlgorithmState:
    """The true parameters and the server optimizer's memory of them."""

    parameters: Vector
    optimizer_state: OptimizerState


@dataclass(frozen=True, slots=True)
class FederatedAlgorithm:
    """``init(parameters) -> state`` and ``next(state, aggregate) -> state'``."""

    init: Callable[[Vector], AlgorithmState]
    next: Callable[[AlgorithmState, NDArray[np.float64]], AlgorithmState]


def federated_averaging(*, server_optimizer: ServerOptimizer | None = None) -> FederatedAlgorithm:
    """Federated averaging: the server optimizer descends minus the weighted mean of the deltas.

    Parameters
    ----------
    server_optimizer : ServerOptimizer, optional
        ``sgd(1.0)`` unless told otherwise: ``w <- w + sum_k (n_k / n) * delta_k``.

    Returns
    -------
    FederatedAlgorithm
        Pure functions of float32 parameters and a float64 aggregate of the same shape.

    Raises
    ------
    LocalMisuseError
        By ``next``, if the aggregate has another shape or is not finite, or parameters leave float32.

    References
    ----------
    McMahan et al., AISTATS 2017. arXiv:1602.05629
    Reddi et al., "Adaptive federated optimization", ICLR 2021, algorithm 1. arXiv:2003.00295

    Examples
    --------
    >>> algorithm = federated_averaging()
    >>> state = algorithm.init(np.float32([1, 2]))
    >>> algorithm.next(state, np.array([0.5, -0.5])).parameters.tolist()
    [1.5, 1.5]
    """
    optimizer = sgd(1.0) if server_optimizer is None else server_optimizer

    def init(parameters: Vector) -> AlgorithmState:
        return AlgorithmState(parameters, optimizer.init(parameters))

    def next_state(state: AlgorithmState, aggregate: NDArray[np.float64]) -> AlgorithmState:
        if aggregate.shape != state.parameters.shape or not np.isfinite(aggregate).all():
            raise LocalMisuseError(f"expected a finite aggregate of shape {state.parameters.shape}")
        parameters, optimizer_state = optimizer.apply(-aggregate, state.optimizer_state, state.parameters)
        if not np.isfinite(parameters).all():
            raise LocalMisuseError("expected finite parameters, got NaN or infinity: the learning rate is too large")
        return AlgorithmState(parameters, optimizer_state)

    return FederatedAlgorithm(init, next_state)
