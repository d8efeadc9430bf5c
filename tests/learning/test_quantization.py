"""Stochastic rounding is unbiased, reproducible and never clips silently."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federated_core.errors import LocalMisuseError
from federated_core.learning.quantization import MAGNITUDE_MAX, dequantize, quantize, rounding_noise, step_for


def test_the_noise_of_a_key_never_changes() -> None:
    word = 0x2F4BA6408E4D89B
    expected = [((word >> shift & 0xFFFF) + 0.5) / 65536 for shift in (0, 16, 32, 48)]  # Low half-words first.
    assert rounding_noise(bytes(16), 4).tolist() == expected


def test_noise_of_different_keys_is_independent() -> None:
    one, other = (rounding_noise(bytes([byte]) * 16, 10_000) for byte in (1, 2))
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.04  # Four standard errors.


@given(st.integers(0, 50))
def test_noise_is_centred_on_half_steps_and_its_prefixes_agree(count: int) -> None:
    noise = rounding_noise(b"0123456789abcdef", count)
    assert noise.shape == (count,)
    assert ((noise * 65536) % 1 == 0.5).all()
    np.testing.assert_array_equal(noise, rounding_noise(b"0123456789abcdef", 50)[:count])


@pytest.mark.parametrize("key", [b"", bytes(15), bytes(32)])
def test_a_key_of_another_length_is_refused(key: bytes) -> None:
    with pytest.raises(LocalMisuseError):
        rounding_noise(key, 1)


def test_a_third_of_a_step_is_rounded_up_a_third_of_the_time() -> None:
    values = np.full(65536, 1 / 3, np.float32)
    every_noise = (np.arange(65536) + 0.5) / 65536
    assert quantize(values, 1.0, every_noise).mean() == pytest.approx(1 / 3, abs=2**-17)


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20),
    st.floats(0.125, 1e3),
    st.binary(min_size=16, max_size=16),
)
def test_a_rounded_value_is_less_than_a_step_away(numbers: list[float], step: float, key: bytes) -> None:
    values = np.array(numbers, np.float32)
    symbols = quantize(values, step, rounding_noise(key, values.size))
    assert (np.abs(symbols * step - values.astype(np.float64)) < step * (1 + 1e-9)).all()


@given(st.lists(st.integers(-MAGNITUDE_MAX, MAGNITUDE_MAX), max_size=20), st.binary(min_size=16, max_size=16))
def test_what_lies_on_the_levels_comes_back_exactly(levels: list[int], key: bytes) -> None:
    symbols = np.array(levels, np.int32)
    values = dequantize(symbols, 2.0**-10)
    np.testing.assert_array_equal(quantize(values, 2.0**-10, rounding_noise(key, values.size)), symbols)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float(MAGNITUDE_MAX + 2)])
def test_what_no_symbol_can_hold_is_refused_and_not_clipped(value: float) -> None:
    with pytest.raises(LocalMisuseError):
        quantize(np.array([value], np.float32), 1.0, np.array([0.5]))


@pytest.mark.parametrize("step", [0.0, -1.0, float("nan"), float("inf")])
def test_a_step_is_positive_and_finite(step: float) -> None:
    with pytest.raises(LocalMisuseError):
        quantize(np.zeros(1, np.float32), step, np.array([0.5]))


def test_the_step_is_a_float32_multiple_of_the_rms() -> None:
    values = np.array([3, -4, 0, 0], np.float32)  # rms = sqrt(25 / 4) = 2.5
    assert step_for(values, 4.0) == 10.0
    assert step_for(values, 0.1) == float(np.float32(0.25))
    assert step_for(np.zeros(3, np.float32), 4.0) == 0.0
    assert step_for(np.zeros(0, np.float32), 4.0) == 0.0


def test_the_smallest_values_get_a_step_that_float32_can_hold() -> None:
    assert step_for(np.array([1e-45, 0], np.float32), 0.5) == float(np.finfo(np.float32).smallest_normal)


@pytest.mark.parametrize(
    ("values", "step_per_rms"),
    [([np.nan], 4.0), ([np.inf], 4.0), ([3e38], 4.0), ([1.0], 0.0), ([1.0], float("nan"))],
)
def test_no_step_is_chosen_for_values_without_one(values: list[float], step_per_rms: float) -> None:
    with pytest.raises(LocalMisuseError):
        step_for(np.array(values, np.float32), step_per_rms)
