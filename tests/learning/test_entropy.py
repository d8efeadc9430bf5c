"""Symbols come back exactly, cost about their entropy, and nonsense costs a typed error and little memory."""

from __future__ import annotations

import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from federated_core.errors import LocalMisuseError, RemoteProtocolError
from federated_core.learning.entropy import decode_symbols, encode_symbols
from federated_core.learning.quantization import MAGNITUDE_MAX, Symbols

small_symbols = st_numpy.arrays(
    np.int32,
    st.integers(0, 400),
    elements=st.one_of(st.integers(-2, 2), st.integers(-300, 300), st.integers(-MAGNITUDE_MAX, MAGNITUDE_MAX)),
    fill=st.just(0),
)


def entropy_bits(symbols: Symbols) -> float:
    """Order-0 entropy of one symbol."""
    share = np.unique(symbols, return_counts=True)[1] / symbols.size
    return float(-(share * np.log2(share)).sum())


def heavy_tailed_symbols(count: int, scale: float) -> Symbols:
    rng = np.random.default_rng(7)
    return np.rint(scale * rng.standard_t(3, count)).astype(np.int32)


@given(small_symbols)
def test_symbols_come_back_exactly(symbols: Symbols) -> None:
    data = encode_symbols(symbols)
    decoded = decode_symbols(data, symbols.size, magnitude_max=MAGNITUDE_MAX)
    assert decoded.dtype == np.int32
    np.testing.assert_array_equal(decoded, symbols)


@pytest.mark.parametrize(("scale", "form"), [(0.35, 0), (0.15, 1)])
def test_each_form_is_the_smaller_one_somewhere_and_comes_back(scale: float, form: int) -> None:
    symbols = heavy_tailed_symbols(20_000, scale)
    data = encode_symbols(symbols)
    assert data[0] == form
    np.testing.assert_array_equal(decode_symbols(data, symbols.size, magnitude_max=10_000), symbols)


@pytest.mark.parametrize(("scale", "excess"), [(0.35, 1.03), (0.2, 1.08), (0.12, 1.08), (2.0, 1.08)])
def test_the_bits_are_close_to_the_order_0_entropy(scale: float, excess: float) -> None:
    symbols = heavy_tailed_symbols(110_000, scale)
    bits = len(encode_symbols(symbols)) * 8 / symbols.size
    assert bits <= excess * entropy_bits(symbols)


def test_a_hundred_thousand_zeros_cost_nothing() -> None:
    assert len(encode_symbols(np.zeros(100_000, np.int32))) <= 9


def test_symbols_that_float32_cannot_count_are_refused() -> None:
    with pytest.raises(LocalMisuseError):
        encode_symbols(np.array([MAGNITUDE_MAX + 1], np.int32))
    with pytest.raises(LocalMisuseError):
        encode_symbols(np.array([-(2**31)], np.int32))


@given(small_symbols, st.integers(0, 500))
def test_another_count_is_refused_or_reads_the_same_symbols(symbols: Symbols, count: int) -> None:
    # The gaps form does not know how many zeros follow; nothing else may pass.
    try:
        decoded = decode_symbols(encode_symbols(symbols), count, magnitude_max=MAGNITUDE_MAX)
    except RemoteProtocolError:
        return
    shared = min(count, symbols.size)
    np.testing.assert_array_equal(decoded[:shared], symbols[:shared])
    assert not decoded[shared:].any()
    assert not symbols[shared:].any()


def test_a_magnitude_beyond_the_readers_bound_is_refused() -> None:
    data = encode_symbols(np.array([0, 3, 0, -84], np.int32))
    decode_symbols(data, 4, magnitude_max=84)
    with pytest.raises(RemoteProtocolError, match="at most 83, got 84"):
        decode_symbols(data, 4, magnitude_max=83)


@given(st.binary(max_size=200), st.integers(0, 1000))
def test_any_bytes_give_symbols_or_one_typed_error(data: bytes, count: int) -> None:
    try:
        decoded = decode_symbols(data, count, magnitude_max=127)
    except RemoteProtocolError:
        return
    assert decoded.shape == (count,)
    assert np.abs(decoded).max(initial=0) <= 127


@given(small_symbols, st.data())
def test_damaged_symbols_give_symbols_or_one_typed_error(symbols: Symbols, data: st.DataObject) -> None:
    damaged = bytearray(encode_symbols(symbols))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_symbols(bytes(damaged), symbols.size, magnitude_max=MAGNITUDE_MAX)
    except RemoteProtocolError:
        return
    assert decoded.shape == symbols.shape


def test_nothing_may_follow_the_last_stream() -> None:
    with pytest.raises(RemoteProtocolError, match="nothing after"):
        decode_symbols(encode_symbols(np.array([1, 0], np.int32)) + b"\0", 2, magnitude_max=1)


@pytest.mark.parametrize("form", [0, 1])
def test_a_bomb_is_not_inflated(form: int) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = packer.compress(bytes(50_000_000)) + packer.flush()
    data = bytes([form]) + (b"\1\0\0\0" if form == 1 else b"") + bomb
    tracemalloc.start()
    with pytest.raises(RemoteProtocolError):
        decode_symbols(data, 100, magnitude_max=127)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 4 * len(bomb) + 100_000
