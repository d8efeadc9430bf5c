"""Layouts, vectors and checkpoints."""

from __future__ import annotations

import hashlib
import struct

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federated_core.errors import LocalMisuseError, RemoteProtocolError
from federated_core.learning.parameters import (
    Layout,
    ParameterSpec,
    checkpoint_digest,
    decode_checkpoint,
    encode_checkpoint,
    flatten,
    from_update_part,
    unflatten,
    update_part,
)

LAYOUT = Layout(
    (
        ParameterSpec("mean", (2,), "personal"),
        ParameterSpec("kernel", (2, 3), "trainable"),
        ParameterSpec("embedding", (1,), "frozen"),
        ParameterSpec("variance", (), "state"),
    )
)
VECTOR = np.arange(10, dtype=np.float32)


def test_a_vector_is_cut_in_layout_order_and_laid_back() -> None:
    tensors = unflatten(LAYOUT, VECTOR)
    assert tensors["kernel"].tolist() == [[2, 3, 4], [5, 6, 7]]
    assert tensors["variance"].shape == ()
    np.testing.assert_array_equal(flatten(LAYOUT, tensors), VECTOR)


def test_only_trainable_and_state_parameters_are_reported() -> None:
    part = update_part(LAYOUT, VECTOR)
    assert part.tolist() == [2, 3, 4, 5, 6, 7, 9]
    assert LAYOUT.update_size == 7
    assert from_update_part(LAYOUT, part).tolist() == [0, 0, 2, 3, 4, 5, 6, 7, 0, 9]


def test_a_model_whose_parameters_are_all_personal_reports_nothing() -> None:
    layout = Layout((ParameterSpec("mean", (2,), "personal"),))
    assert update_part(layout, np.array([1, 2], np.float32)).shape == (0,)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {**unflatten(LAYOUT, VECTOR), "unknown": np.zeros(1, np.float32)},
        {**unflatten(LAYOUT, VECTOR), "kernel": np.zeros((3, 2), np.float32)},
        {**unflatten(LAYOUT, VECTOR), "kernel": np.zeros((2, 3), np.float64)},
    ],
)
def test_tensors_of_another_layout_are_refused(tensors: dict[str, np.ndarray]) -> None:
    with pytest.raises(LocalMisuseError):
        flatten(LAYOUT, tensors)


@pytest.mark.parametrize("shape", [(0,), (-1,), (1 << 27,), (1 << 20, 1 << 20), (1,) * 9])
def test_a_layout_from_outside_is_bounded(shape: tuple[int, ...]) -> None:
    data = msgspec.msgpack.encode({"parameters": [{"name": "w", "shape": shape, "role": "trainable"}]})
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(data, type=Layout)


def test_a_layout_names_each_parameter_once() -> None:
    with pytest.raises(ValueError, match="'w' twice"):
        Layout((ParameterSpec("w", (1,), "trainable"), ParameterSpec("w", (2,), "trainable")))


def test_layouts_that_differ_in_a_role_differ_in_digest() -> None:
    one, other = (Layout((ParameterSpec("w", (1,), role),)) for role in ("trainable", "frozen"))
    assert one.digest != other.digest
    assert one.digest == Layout((ParameterSpec("w", (1,), "trainable"),)).digest


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=10, max_size=10))
def test_a_checkpoint_round_trips_bit_for_bit(values: list[float]) -> None:
    vector = np.array(values, np.float32)
    checkpoint = decode_checkpoint(encode_checkpoint(LAYOUT, "gestures", 7, vector), LAYOUT)
    assert (checkpoint.task, checkpoint.version) == ("gestures", 7)
    assert checkpoint.vector.tobytes() == vector.tobytes()


def test_the_digest_of_a_checkpoint_is_the_sha256_of_all_its_bytes() -> None:
    data = encode_checkpoint(LAYOUT, "gestures", 7, VECTOR)
    assert checkpoint_digest(data) == hashlib.sha256(data).digest()


@pytest.mark.parametrize("task", ["", "UPPER", "a/b", "x" * 49])
def test_a_checkpoint_is_not_written_under_a_task_that_no_topic_can_carry(task: str) -> None:
    with pytest.raises(LocalMisuseError):
        encode_checkpoint(LAYOUT, task, 1, VECTOR)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_parameters_that_are_not_finite_are_neither_written_nor_read(value: float) -> None:
    vector = VECTOR.copy()
    vector[4] = value
    with pytest.raises(LocalMisuseError):
        encode_checkpoint(LAYOUT, "gestures", 7, vector)
    data = bytearray(encode_checkpoint(LAYOUT, "gestures", 7, VECTOR))
    data[-24:-20] = struct.pack("<f", value)
    with pytest.raises(RemoteProtocolError, match="'kernel'"):
        decode_checkpoint(bytes(data), LAYOUT)


def test_a_checkpoint_of_another_layout_is_refused() -> None:
    other = Layout((ParameterSpec("w", (10,), "trainable"),))
    with pytest.raises(RemoteProtocolError, match="layout_digest"):
        decode_checkpoint(encode_checkpoint(other, "gestures", 7, VECTOR), LAYOUT)


@given(st.integers(0, 120), st.binary(max_size=8))
def test_a_damaged_checkpoint_gives_one_typed_error_or_reads(position: int, garbage: bytes) -> None:
    data = encode_checkpoint(LAYOUT, "gestures", 7, VECTOR)
    for damaged in (data[:position], data[:position] + garbage + data[position + len(garbage) :], data + b"\0"):
        try:
            decoded = decode_checkpoint(damaged, LAYOUT)
        except RemoteProtocolError:
            continue
        assert decoded.vector.shape == (10,)
