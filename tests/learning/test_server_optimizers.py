"""Server optimizers descend the pseudo-gradient."""

from __future__ import annotations

import numpy as np
import pytest

from federated_core.errors import LocalMisuseError
from federated_core.learning.server_optimizers import momentum, sgd

PARAMETERS = np.array([1, -2], np.float32)
PSEUDO_GRADIENT = np.array([0.5, 0.25])


def test_sgd_takes_one_scaled_step() -> None:
    parameters, state = sgd(2.0).apply(PSEUDO_GRADIENT, (), PARAMETERS)
    assert parameters.tolist() == [0.0, -2.5]
    assert parameters.dtype == np.float32
    assert state == ()


def test_momentum_without_decay_is_sgd() -> None:
    optimizer = momentum(0.5, decay=0.0)
    parameters, _ = optimizer.apply(PSEUDO_GRADIENT, optimizer.init(PARAMETERS), PARAMETERS)
    np.testing.assert_array_equal(parameters, sgd(0.5).apply(PSEUDO_GRADIENT, (), PARAMETERS)[0])


def test_momentum_approaches_the_geometric_sum() -> None:
    optimizer = momentum(1.0, decay=0.5)
    state = optimizer.init(PARAMETERS)
    parameters = PARAMETERS
    for _ in range(30):
        before = parameters
        parameters, state = optimizer.apply(PSEUDO_GRADIENT, state, before)
    np.testing.assert_allclose(before - parameters, 2 * PSEUDO_GRADIENT, rtol=1e-5)  # 1 / (1 - 0.5) = 2.


def test_an_optimizer_changes_none_of_its_arguments() -> None:
    optimizer = momentum(1.0)
    state = optimizer.init(PARAMETERS)
    optimizer.apply(PSEUDO_GRADIENT, state, PARAMETERS)
    assert PARAMETERS.tolist() == [1, -2]
    assert state[0].tolist() == [0, 0]


@pytest.mark.parametrize("learning_rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_learning_rate_is_positive(learning_rate: float) -> None:
    with pytest.raises(LocalMisuseError):
        sgd(learning_rate)
    with pytest.raises(LocalMisuseError):
        momentum(learning_rate)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_velocity_that_never_decays_is_refused(decay: float) -> None:
    with pytest.raises(LocalMisuseError):
        momentum(1.0, decay=decay)
