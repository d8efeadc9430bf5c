"""The uplink blob: exact after rounding, unbiased, small, and safe to read from a stranger."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray

from federated_core.errors import LocalMisuseError, RemoteProtocolError
from federated_core.learning.quantization import dequantize, quantize, rounding_noise, step_for
from federated_core.learning.update_codec import DecodedUpdate, decode_update, encode_update, largest_symbol

LAYOUT_DIGEST, BASE_DIGEST, KEY = b"l" * 32, b"b" * 32, b"k" * 16

deltas = st_numpy.arrays(np.float32, st.integers(0, 300), elements=st.floats(-(2.0**100), 2.0**100, width=32))


def heavy_tailed_delta(count: int = 95_271) -> NDArray[np.float32]:
    """Layers of different scale with Student tails: what deltas of real models look like to the codec."""
    rng = np.random.default_rng(3)
    layers = [scale * rng.standard_t(4, size) for scale, size in ((3e-3, 960), (2e-3, 10_240), (6e-4, count - 11_200))]
    return np.concatenate(layers).astype(np.float32)


def encode(delta: NDArray[np.float32], key: bytes = KEY, step_per_rms: float = 4.0) -> bytes:
    return encode_update(
        delta, layout_digest=LAYOUT_DIGEST, base_digest=BASE_DIGEST, noise_key=key, step_per_rms=step_per_rms
    )


def decode(data: bytes, parameter_count: int, step_per_rms: float = 4.0) -> DecodedUpdate:
    return decode_update(
        data,
        parameter_count=parameter_count,
        layout_digest=LAYOUT_DIGEST,
        base_digest=BASE_DIGEST,
        size_max=1 << 20,
        step_per_rms=step_per_rms,
    )


@given(deltas, st.sampled_from([0.5, 4.0, 16.0]))
def test_an_update_carries_exactly_the_symbols_that_were_drawn(delta: NDArray[np.float32], step_per_rms: float) -> None:
    update = decode(encode(delta, step_per_rms=step_per_rms), delta.size, step_per_rms)
    assert update.step == step_for(delta, step_per_rms)
    if update.step:
        np.testing.assert_array_equal(update.symbols, quantize(delta, update.step, rounding_noise(KEY, delta.size)))


def test_the_same_key_gives_the_same_bytes_and_another_key_others() -> None:
    delta = heavy_tailed_delta()
    assert encode(delta) == encode(delta)
    assert encode(delta) != encode(delta, bytes(16))


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_a_delta_of_zeros_is_a_small_and_valid_update(size: int) -> None:
    data = encode(np.zeros(size, np.float32))
    update = decode(data, size)
    assert update.step == 0
    assert not update.symbols.any()
    assert update.symbols.shape == (size,)
    assert len(data) < 50


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_delta_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(LocalMisuseError):
        encode(np.array([0, value], np.float32))


def test_one_value_with_all_of_the_norm_is_not_clipped() -> None:
    delta = np.zeros(10_000, np.float32)
    delta[17] = 1.0  # rms = 1/100, step = 1/25: symbol 25, and at most 26 whatever the noise.
    assert decode(encode(delta), 10_000).symbols[17] in {25, 26}
    assert largest_symbol(10_000, 4.0) == 26


def test_the_mean_of_many_updates_approaches_the_delta_as_independent_errors_do() -> None:
    delta = heavy_tailed_delta(20_000)
    energy = float(np.square(delta, dtype=np.float64).sum())
    mean, one = np.zeros(delta.size), []
    for seed in range(64):
        update = decode(encode(delta, seed.to_bytes(16, "little")), delta.size)
        error = dequantize(update.symbols, update.step).astype(np.float64) - delta
        one.append(float(error @ error) / energy)
        mean += error / 64
    assert 0.9 < 64 * (float(mean @ mean) / energy) / np.mean(one) < 1.1


def test_an_update_with_its_header_costs_at_most_a_fiftieth_more_than_the_entropy_of_its_symbols() -> None:
    delta = heavy_tailed_delta()
    data = encode(delta)
    share = np.unique(decode(data, delta.size).symbols, return_counts=True)[1] / delta.size
    entropy_bits = float(-(share * np.log2(share)).sum())
    assert 0.6 < entropy_bits < 0.9
    assert 8 * len(data) / delta.size <= 1.02 * entropy_bits


def test_an_update_of_another_model_base_or_size_is_refused() -> None:
    data = encode(np.ones(10, np.float32))
    expected = {"parameter_count": 10, "layout_digest": LAYOUT_DIGEST, "base_digest": BASE_DIGEST, "size_max": 1000}
    for change in ({"parameter_count": 11}, {"layout_digest": bytes(32)}, {"base_digest": bytes(32)}, {"size_max": 40}):
        with pytest.raises(RemoteProtocolError):
            decode_update(data, **{**expected, **change})  # type: ignore[arg-type]


def resealed(data: bytes, offset: int, part: bytes) -> bytes:
    body = data[:offset] + part + data[offset + len(part) : -4]
    return body + struct.pack("<I", zlib.crc32(body))


@pytest.mark.parametrize("step", [float("nan"), float("inf"), -1.0, 0.0])
def test_a_step_that_no_encoder_writes_is_refused(step: float) -> None:
    data = encode(np.ones(1000, np.float32))
    with pytest.raises(RemoteProtocolError):
        decode(resealed(data, 10, struct.pack("<f", step)), 1000)


def test_an_unknown_version_or_codec_is_refused_by_name() -> None:
    data = encode(np.ones(10, np.float32))
    with pytest.raises(RemoteProtocolError, match=r"\$\.format_version"):
        decode(resealed(data, 4, b"\2"), 10)
    with pytest.raises(RemoteProtocolError, match=r"\$\.codec"):
        decode(resealed(data, 9, b"\7"), 10)


def test_a_symbol_beyond_what_the_norm_allows_is_refused() -> None:
    delta = np.zeros(10_000, np.float32)
    delta[17] = 1.0
    with pytest.raises(RemoteProtocolError, match="magnitudes"):
        decode(encode(delta, step_per_rms=1.0), 10_000, step_per_rms=4.0)


@given(st.binary(max_size=200))
def test_any_bytes_give_one_typed_error(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(data, 100)


@given(deltas, st.integers(0, 10_000), st.integers(1, 255))
def test_a_flipped_byte_is_found(delta: NDArray[np.float32], position: int, flip: int) -> None:
    data = bytearray(encode(delta))
    data[position % len(data)] ^= flip
    with pytest.raises(RemoteProtocolError):
        decode(bytes(data), delta.size)


@given(deltas, st.integers(30, 10_000), st.binary(min_size=1, max_size=4))
def test_symbols_forged_under_a_right_checksum_stay_within_bounds(
    delta: NDArray[np.float32], position: int, forged: bytes
) -> None:
    data = encode(delta)
    offset = min(position, len(data) - 5)
    try:
        update = decode(resealed(data, offset, forged[: len(data) - 4 - offset]), delta.size)
    except RemoteProtocolError:
        return
    assert update.symbols.shape == delta.shape
    assert np.abs(update.symbols).max(initial=0) <= largest_symbol(delta.size, 4.0)
