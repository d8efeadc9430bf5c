"""McMahan et al., "Communication-efficient learning of deep networks from decentralized data". arXiv:1602.05629."""

from __future__ import annotations

import numpy as np

from federated_core.learning.aggregation import FixedPointSum
from federated_core.learning.algorithms import federated_averaging


def test_algorithm_1_the_next_model_is_the_example_weighted_mean_of_the_local_models() -> None:
    base = np.array([1.0, -1.0, 0.5], np.float32)
    # Deltas as step * symbols: what a device sends.
    reports = [(0.5, [1, 0, -2], 10), (0.25, [2, 4, 0], 30), (0.125, [0, -8, 8], 60)]
    # By hand, with weights 0.1, 0.3, 0.6 and local models w_k = base + delta_k:
    #   w_1 = (1.5, -1.0, -0.5), w_2 = (1.5, 0.0, 0.5), w_3 = (1.0, -2.0, 1.5)
    #   sum = (0.15 + 0.45 + 0.6, -0.1 + 0 - 1.2, -0.05 + 0.15 + 0.9) = (1.2, -1.3, 1.0)
    total = FixedPointSum(3)
    for step, symbols, example_count in reports:
        total.add(step, np.array(symbols, np.int32), example_count=example_count)
    algorithm = federated_averaging()
    state = algorithm.next(algorithm.init(base), total.mean())
    np.testing.assert_allclose(state.parameters, [1.2, -1.3, 1.0], rtol=1e-6)


def test_with_equal_example_counts_it_is_the_plain_mean() -> None:
    rng = np.random.default_rng(0)
    symbols = rng.integers(-5, 6, (7, 50)).astype(np.int32)
    total = FixedPointSum(50)
    for row in symbols:
        total.add(0.5, row, example_count=12)
    np.testing.assert_allclose(total.mean(), 0.5 * symbols.mean(0), atol=1e-12)
