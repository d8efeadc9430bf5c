"""Alistarh et al., "QSGD: communication-efficient SGD via gradient quantization and encoding". arXiv:1610.02132."""

from __future__ import annotations

import numpy as np
import pytest

from federated_core.learning.clipping import l2_norm
from federated_core.learning.quantization import dequantize, quantize, rounding_noise


@pytest.mark.parametrize("levels", [1, 4, 16])
def test_lemma_3_1_quantization_to_levels_of_the_norm_is_unbiased_with_bounded_variance(levels: int) -> None:
    rng = np.random.default_rng(levels)
    values = rng.standard_normal(256).astype(np.float32)
    step = float(np.float32(l2_norm(values) / levels))
    draws = np.stack(
        [
            dequantize(quantize(values, step, rounding_noise(k.to_bytes(16, "little"), 256)), step).astype(np.float64)
            for k in range(4096)
        ]
    )
    errors = draws - values
    # (i) E[Q(v)] = v: the mean of 4096 draws is within five standard errors (and three draws, where few differ).
    chances = np.abs(values) / step % 1
    standard_errors = step * np.sqrt(chances * (1 - chances) / 4096)
    assert (np.abs(errors.mean(0)) < 5 * standard_errors + 3 * step / 4096).all()
    # (ii) E|Q(v) - v|^2 <= min(n / s^2, sqrt(n) / s) |v|^2
    variance = np.square(errors).sum(1).mean()
    assert variance <= min(256 / levels**2, 16 / levels) * l2_norm(values) ** 2


def test_lemma_3_1_at_one_level_few_values_are_not_zero() -> None:
    # (iii) sparsity: E|Q(v)|_0 <= s (s + sqrt(n)) = 1 (1 + 16) = 17 of 256.
    values = np.random.default_rng(0).standard_normal(256).astype(np.float32)
    step = float(np.float32(l2_norm(values)))
    counts = [np.count_nonzero(quantize(values, step, rounding_noise(bytes([k]) * 16, 256))) for k in range(256)]
    assert np.mean(counts) <= 17
