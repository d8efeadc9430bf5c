"""Federated averaging as a pair of pure functions."""

from __future__ import annotations

import numpy as np
import pytest

from federated_core.errors import LocalMisuseError
from federated_core.learning.algorithms import federated_averaging
from federated_core.learning.server_optimizers import momentum

PARAMETERS = np.array([1, 2], np.float32)


def test_the_same_aggregate_gives_the_same_parameters_and_leaves_the_state_alone() -> None:
    algorithm = federated_averaging()
    state = algorithm.init(PARAMETERS)
    one, other = (algorithm.next(state, np.array([0.1, -0.1])) for _ in range(2))
    assert one.parameters.tobytes() == other.parameters.tobytes()
    assert state.parameters.tolist() == [1, 2]


def test_another_server_optimizer_is_a_value_and_not_a_subclass() -> None:
    algorithm = federated_averaging(server_optimizer=momentum(1.0, decay=0.5))
    state = algorithm.init(PARAMETERS)
    for _ in range(2):
        state = algorithm.next(state, np.array([1.0, 0.0]))
    assert state.parameters.tolist() == [3.5, 2.0]  # 1 + 1, then 1.5 more.


@pytest.mark.parametrize("aggregate", [[0.0], [0.0, np.nan], [0.0, np.inf]])
def test_an_aggregate_that_does_not_fit_is_refused(aggregate: list[float]) -> None:
    algorithm = federated_averaging()
    with pytest.raises(LocalMisuseError):
        algorithm.next(algorithm.init(PARAMETERS), np.array(aggregate))


def test_parameters_do_not_leave_float32() -> None:
    algorithm = federated_averaging()
    with pytest.raises(LocalMisuseError, match="learning rate"), np.errstate(over="ignore"):
        algorithm.next(algorithm.init(PARAMETERS), np.array([1e300, 0.0]))
