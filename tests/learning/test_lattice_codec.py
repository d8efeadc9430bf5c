"""Bytes of the downlink: exact, small, and safe to read from a stranger or a torn disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federated_core.errors import RemoteProtocolError
from federated_core.learning.blob import encode_blob
from federated_core.learning.lattice import (
    HALVING_COUNT_MAX,
    LEVEL_MAX,
    Keyframe,
    LatticeDelta,
    LatticePosition,
    apply_delta,
    open_lattice,
    publish,
    start_of,
    vector_at,
)
from federated_core.learning.lattice_codec import (
    _KEYFRAME,
    decode_delta,
    decode_keyframe,
    decode_position,
    encode_delta,
    encode_keyframe,
    encode_position,
)

COUNT = 2000
SIZE_MAX = 1 << 20


def first_rounds() -> tuple[Keyframe, LatticePosition, LatticeDelta]:
    rng = np.random.default_rng(0)
    start = rng.standard_normal(COUNT).astype(np.float32)
    publisher = open_lattice(start, version=41)
    for _ in range(3):
        change = (0.01 * rng.standard_t(4, COUNT)).astype(np.float32)
        publisher, delta = publish(publisher, publisher.parameters + change)
    return publisher.keyframe, publisher.position, delta


KEYFRAME, POSITION, DELTA = first_rounds()
DATA = {"delta": encode_delta(DELTA), "position": encode_position(POSITION), "keyframe": encode_keyframe(KEYFRAME)}
DECODERS: dict[str, Callable[..., object]] = {
    "delta": decode_delta,
    "position": decode_position,
    "keyframe": decode_keyframe,
}
kinds = pytest.mark.parametrize("kind", ["delta", "position", "keyframe"])


def test_a_device_follows_over_the_wire_and_over_a_reboot() -> None:
    publisher = open_lattice(np.array([0.25, -1, 3], np.float32), version=0)
    keyframe = decode_keyframe(encode_keyframe(publisher.keyframe), parameter_count=3, size_max=SIZE_MAX)
    position = start_of(keyframe)
    for change in ([0.5, 0, 0], [0, 0.125, -0.5], [0.25, 0, 0]):
        publisher, delta = publish(publisher, publisher.parameters + np.array(change, np.float32))
        received = decode_delta(encode_delta(delta), parameter_count=3, size_max=SIZE_MAX)
        position, vector = apply_delta(keyframe, position, received)
        position = decode_position(encode_position(position), parameter_count=3, size_max=SIZE_MAX)
        assert vector_at(keyframe, position).tobytes() == vector.tobytes()
        assert vector.tobytes() == vector_at(publisher.keyframe, publisher.position).tobytes()


def test_every_field_of_a_delta_and_a_position_comes_back() -> None:
    decoded = decode_delta(DATA["delta"], parameter_count=COUNT, size_max=SIZE_MAX)
    np.testing.assert_equal(asdict(decoded), asdict(DELTA))
    kept = decode_position(DATA["position"], parameter_count=COUNT, size_max=SIZE_MAX)
    np.testing.assert_equal(asdict(kept), asdict(POSITION))


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=50), st.integers(0, 2**53))
def test_a_keyframe_comes_back_bit_for_bit(values: list[float], version: int) -> None:
    keyframe = Keyframe(version, np.array(values, np.float32))
    decoded = decode_keyframe(encode_keyframe(keyframe), parameter_count=len(values), size_max=SIZE_MAX)
    assert decoded.vector.tobytes() == keyframe.vector.tobytes()
    assert (decoded.version, decoded.epoch) == (version, keyframe.epoch)


def test_a_keyframe_costs_less_than_its_floats_and_a_rounded_one_a_third() -> None:
    vector = (0.05 * np.random.default_rng(0).standard_normal(50_000)).astype(np.float32)
    rounded = (vector.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)  # bfloat16
    bits, rounded_bits = (8 * len(encode_keyframe(Keyframe(0, each))) / each.size for each in (vector, rounded))
    assert bits < 27.5
    assert rounded_bits < 11.5


def test_a_quiet_round_costs_a_header() -> None:
    quiet = replace(DELTA, symbols=np.zeros(COUNT, np.int32))
    assert len(encode_delta(quiet)) < 70


@kinds
def test_another_model_or_a_larger_blob_is_refused(kind: str) -> None:
    DECODERS[kind](DATA[kind], parameter_count=COUNT, size_max=len(DATA[kind]))
    with pytest.raises(RemoteProtocolError, match="parameter_count"):
        DECODERS[kind](DATA[kind], parameter_count=COUNT + 1, size_max=SIZE_MAX)
    with pytest.raises(RemoteProtocolError, match="bytes"):
        DECODERS[kind](DATA[kind], parameter_count=COUNT, size_max=len(DATA[kind]) - 1)


@kinds
def test_a_blob_of_another_kind_is_refused(kind: str) -> None:
    for other in DATA.keys() - {kind}:
        with pytest.raises(RemoteProtocolError, match="magic"):
            DECODERS[kind](DATA[other], parameter_count=COUNT, size_max=SIZE_MAX)


@kinds
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_flipped_byte_or_a_torn_write_is_found(kind: str, position: int, flip: int) -> None:
    damaged = bytearray(DATA[kind])
    damaged[position % len(damaged)] ^= flip
    for data in (bytes(damaged), DATA[kind][: position % len(DATA[kind])], DATA[kind] + b"\0"):
        with pytest.raises(RemoteProtocolError):
            DECODERS[kind](data, parameter_count=COUNT, size_max=SIZE_MAX)


@given(st.binary(max_size=100), st.sampled_from(["delta", "position", "keyframe"]))
def test_any_bytes_give_one_typed_error(data: bytes, kind: str) -> None:
    with pytest.raises(RemoteProtocolError):
        DECODERS[kind](data, parameter_count=COUNT, size_max=SIZE_MAX)


@pytest.mark.parametrize(
    "wrong",
    [
        replace(DELTA, to_version=DELTA.from_version),
        replace(DELTA, halving_count=HALVING_COUNT_MAX + 1),
        replace(DELTA, step=float("nan")),
        replace(DELTA, step=float("inf")),
        replace(DELTA, step=-1.0),
        replace(DELTA, step=0.0),
    ],
)
def test_a_delta_that_no_publisher_writes_is_refused(wrong: LatticeDelta) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_delta(encode_delta(wrong), parameter_count=COUNT, size_max=SIZE_MAX)


def test_a_position_beyond_what_a_lattice_counts_is_refused() -> None:
    wrong = replace(POSITION, k=np.full(COUNT, LEVEL_MAX + 1, np.int32))
    with pytest.raises(RemoteProtocolError, match="magnitudes"):
        decode_position(encode_position(wrong), parameter_count=COUNT, size_max=SIZE_MAX)


def test_a_keyframe_that_is_not_finite_or_goes_on_is_refused() -> None:
    for value in (np.nan, np.inf):
        data = encode_keyframe(Keyframe(0, np.array([0, value], np.float32)))
        with pytest.raises(RemoteProtocolError, match="finite"):
            decode_keyframe(data, parameter_count=2, size_max=SIZE_MAX)
    body = encode_keyframe(Keyframe(0, np.zeros(2, np.float32)))[_KEYFRAME.size_min - 4 : -4]
    with pytest.raises(RemoteProtocolError, match="nothing after"):
        decode_keyframe(encode_blob(_KEYFRAME, 2, (0,), body + b"\0"), parameter_count=2, size_max=SIZE_MAX)
