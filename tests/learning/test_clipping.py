"""Norms, clipping, and what a gate may conclude from decoded symbols."""

from __future__ import annotations

import math

import numpy as np
import pytest

from federated_core.errors import LocalMisuseError, RemoteProtocolError
from federated_core.learning.clipping import clip_to_norm, decoded_norm, gate_step, l2_norm, norm_bound_factor
from federated_core.learning.quantization import quantize, rounding_noise, step_for


def test_a_delta_within_the_bound_is_left_alone() -> None:
    delta = np.array([3, 4], np.float32)
    assert clip_to_norm(delta, 5.0) is delta


def test_a_longer_delta_keeps_its_direction() -> None:
    clipped = clip_to_norm(np.array([30, 40], np.float32), 5.0)
    np.testing.assert_allclose(clipped, [3, 4], rtol=1e-6)
    assert l2_norm(clipped) == pytest.approx(5.0)


@pytest.mark.parametrize(("values", "norm_max"), [([np.nan], 1.0), ([np.inf], 1.0), ([1.0], 0.0), ([1.0], np.nan)])
def test_what_has_no_norm_is_not_clipped(values: list[float], norm_max: float) -> None:
    with pytest.raises(LocalMisuseError):
        clip_to_norm(np.array(values, np.float32), norm_max)


@pytest.mark.parametrize("step_per_rms", [0.5, 1.0, 4.0, 16.0])
@pytest.mark.parametrize("shape", ["normal", "student", "equal", "sparse"])
def test_the_factor_bounds_the_expected_norm_of_what_is_decoded(step_per_rms: float, shape: str) -> None:
    rng = np.random.default_rng(0)
    values = {
        "normal": rng.standard_normal(20_000),
        "student": rng.standard_t(3, 20_000),
        "equal": np.ones(20_000),
        "sparse": (np.arange(20_000) % 50 == 0) * 1.0,
    }[shape].astype(np.float32)
    step = step_for(values, step_per_rms)
    keys = [bytes([k]) * 16 for k in range(16)]
    norms = [decoded_norm(step, quantize(values, step, rounding_noise(key, values.size))) for key in keys]
    assert np.sqrt(np.mean(np.square(norms))) <= 1.01 * norm_bound_factor(step_per_rms) * l2_norm(values)


@pytest.mark.parametrize(("step_per_rms", "factor"), [(2.0, math.sqrt(2)), (4.0, 2.0), (16.0, 4.0)])
def test_equal_magnitudes_reach_the_factor(step_per_rms: float, factor: float) -> None:
    # Each 1 becomes a step of a with chance 1/a: the mean square is a^2 / a = a, and the norm sqrt(a) times as long.
    values = np.ones(160_000, np.float32)
    symbols = quantize(values, step_per_rms, rounding_noise(bytes(16), values.size))
    assert norm_bound_factor(step_per_rms) == factor
    assert decoded_norm(step_per_rms, symbols) / l2_norm(values) == pytest.approx(factor, rel=0.01)


def test_the_decoded_norm_is_exact() -> None:
    assert decoded_norm(0.5, np.array([3, -4, 0], np.int32)) == 2.5
    assert decoded_norm(1.0, np.full(4, 1 << 23, np.int32)) == float(1 << 24)


def test_a_gate_lets_pass_clips_and_refuses() -> None:
    symbols = np.array([3, 4], np.int32)  # Norm 5 at step 1; the bound is 2 x norm_max at a = 4.
    gate = {"step_per_rms": 4.0, "refusal_multiple": 4.0}
    assert gate_step(1.0, symbols, norm_max=2.5, **gate) == 1.0
    assert decoded_norm(gate_step(1.0, symbols, norm_max=1.0, **gate), symbols) == pytest.approx(2.0)
    with pytest.raises(RemoteProtocolError, match="norm"):
        gate_step(1.0, symbols, norm_max=0.5, **gate)


def test_an_empty_update_passes_any_gate() -> None:
    assert gate_step(0.0, np.zeros(3, np.int32), norm_max=1.0, step_per_rms=4.0, refusal_multiple=1.0) == 0.0
