"""Bytes on the wire: bounded, versioned, signed for one topic; whatever else arrives is a protocol error."""

import contextlib
import zlib
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from federated_core.errors import LocalMisuseError, RemoteProtocolError
from federated_core.protocol import keys, messages, wire
from tests.protocol.message_strategies import classes_of, messages_of
from tests.protocol.signed_messages import DEVICE_KEY, DIGEST, OTHER_KEY, REPORT

TOPIC = "fallow/v1/fleet/d/d1/up"
UNIONS: dict[str, Any] = {
    "device": messages.DeviceMessage,
    "aggregator": messages.AggregatorMessage,
    "request": messages.EnrollmentRequest,
    "answer": messages.EnrollmentAnswer,
}
DECODERS: dict[str, msgspec.msgpack.Decoder[Any]] = {
    speaker: msgspec.msgpack.Decoder(union) for speaker, union in UNIONS.items()
}
SPOKEN = st.sampled_from(sorted(UNIONS)).flatmap(
    lambda speaker: st.tuples(st.just(speaker), messages_of(UNIONS[speaker]))
)


def signed_frame(payload: bytes) -> wire.SignedFrame:
    frame = wire.decode_frame(payload)
    assert isinstance(frame, wire.SignedFrame)
    return frame


def body_of(message: messages.Message, **changed: object) -> bytes:
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(message))
    return msgspec.msgpack.encode({**fields, **changed})


def test_every_message_has_one_speaker() -> None:
    spoken = [kind for union in UNIONS.values() for kind in classes_of(union)]
    assert set(spoken) == set(classes_of(messages.Message))
    assert len(set(spoken)) == len(spoken)


@given(SPOKEN)
def test_a_signed_message_arrives_as_it_was(spoken: tuple[str, messages.Message]) -> None:
    speaker, message = spoken
    frame = signed_frame(wire.sign_message(DEVICE_KEY, TOPIC, message))
    assert wire.open_message(frame, TOPIC, DEVICE_KEY.public, DECODERS[speaker]) == message


@given(SPOKEN)
def test_a_message_of_the_other_side_is_refused(spoken: tuple[str, messages.Message]) -> None:
    speaker, message = spoken
    frame = signed_frame(wire.sign_message(DEVICE_KEY, TOPIC, message))
    for other in set(DECODERS) - {speaker}:
        with pytest.raises(RemoteProtocolError):
            wire.open_message(frame, TOPIC, DEVICE_KEY.public, DECODERS[other])


def test_a_message_that_another_key_signed_is_refused() -> None:
    frame = signed_frame(wire.sign_message(OTHER_KEY, TOPIC, REPORT))
    with pytest.raises(RemoteProtocolError, match=f"signature: expected one by the key on record for {TOPIC}"):
        wire.open_message(frame, TOPIC, DEVICE_KEY.public, DECODERS["device"])


@pytest.mark.parametrize(
    "topic",
    ["fallow/v1/fleet/d/d2/up", "fallow/v1/fleet/d/d1/down", "fallow/v1/other/d/d1/up", "fallow/v1/fleet/d/d1/up/", ""],
)
def test_a_message_that_was_moved_to_another_topic_is_refused(topic: str) -> None:
    frame = signed_frame(wire.sign_message(DEVICE_KEY, TOPIC, REPORT))
    with pytest.raises(RemoteProtocolError, match="signature: expected"):
        wire.open_message(frame, topic, DEVICE_KEY.public, DECODERS["device"])


def test_a_body_that_was_exchanged_under_a_signature_is_refused() -> None:
    frame = signed_frame(wire.sign_message(DEVICE_KEY, TOPIC, REPORT))
    forged = msgspec.structs.replace(frame, body=body_of(REPORT, example_count=10_000))
    with pytest.raises(RemoteProtocolError, match="signature: expected"):
        wire.open_message(forged, TOPIC, DEVICE_KEY.public, DECODERS["device"])


@pytest.mark.parametrize("version", [0, 2, -1])
def test_another_protocol_version_is_named(version: int) -> None:
    frame = signed_frame(wire.sign_message(DEVICE_KEY, TOPIC, REPORT))
    payload = wire.encode_frame(msgspec.structs.replace(frame, version=version))
    with pytest.raises(RemoteProtocolError, match=f"frame: expected protocol version 1, got {version}"):
        wire.decode_frame(payload)


def test_fields_of_a_newer_version_are_passed_over() -> None:
    body = body_of(REPORT, invented_later="value")
    assert wire.decode_body(body, DECODERS["device"]) == REPORT


@pytest.mark.parametrize(
    ("changed", "path"),
    [
        ({"task": "Gestures"}, r"\$\.task"),
        ({"task": "gestures\n"}, r"\$\.task"),
        ({"task": "a" * 49}, r"\$\.task"),
        ({"round": -1}, r"\$\.round"),
        ({"round": 2**31 + 1}, r"\$\.round"),
        ({"base": b"short"}, r"\$\.base"),
        ({"kind": "statistic"}, r"\$\.kind"),
        ({"example_count": "40"}, r"\$\.example_count"),
        ({"training_s": float("nan")}, r"\$\.training_s"),
        ({"training_s": -1.0}, r"\$\.training_s"),
        ({"update": {"digest": DIGEST, "size_bytes": 0}}, r"\$\.update\.size_bytes"),
        ({"update": {"digest": DIGEST, "size_bytes": 2**40}}, r"\$\.update\.size_bytes"),
        ({"metrics": {"example_count": 1, "correct_count": 1, "loss_sum": -1.0}}, r"\$\.metrics\.loss_sum"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_its_path(changed: dict[str, object], path: str) -> None:
    with pytest.raises(RemoteProtocolError, match=path):
        wire.decode_body(body_of(REPORT, **changed), DECODERS["device"])


def test_a_request_names_at_most_32_chunks() -> None:
    request = messages.ChunkRequest(DIGEST, (0,))
    for indices in ((), tuple(range(33)), (2**20,), (-1,)):
        with pytest.raises(RemoteProtocolError, match=r"\$\.indices"):
            wire.decode_body(body_of(request, indices=indices), DECODERS["device"])


# --- Chunks


@given(st.binary(min_size=1, max_size=500), st.integers(0, 2**20 - 1))
def test_a_chunk_arrives_as_it_was(data: bytes, index: int) -> None:
    frame = wire.decode_frame(wire.chunk_payload(DIGEST, index, data))
    assert frame == wire.ChunkFrame(DIGEST[:8], index, zlib.crc32(data), data)


def test_the_largest_chunk_fits_into_a_payload_and_a_larger_one_does_not() -> None:
    payload = wire.chunk_payload(DIGEST, 2**20 - 1, bytes(wire.CHUNK_BYTES))
    assert wire.CHUNK_BYTES < len(payload) <= wire.CHUNK_BYTES + 32 <= wire.PAYLOAD_BYTES_MAX
    with pytest.raises(RemoteProtocolError, match="frame"):
        wire.decode_frame(wire.chunk_payload(DIGEST, 0, bytes(wire.CHUNK_BYTES + 1)))
    with pytest.raises(LocalMisuseError, match="payload: expected at most 65536 bytes"):
        wire.chunk_payload(DIGEST, 0, bytes(wire.PAYLOAD_BYTES_MAX))


def test_a_payload_beyond_the_bound_is_not_even_parsed() -> None:
    with pytest.raises(RemoteProtocolError, match="payload: expected at most 65536 bytes, got 65537"):
        wire.decode_frame(bytes(65537))


@given(st.binary(min_size=1, max_size=100), st.integers(0, 799), st.integers(0, 2**20 - 1))
def test_a_flipped_bit_in_a_chunk_is_noticed(data: bytes, bit: int, index: int) -> None:
    payload = bytearray(wire.chunk_payload(DIGEST, index, data))
    position = len(payload) - 1 - bit // 8 % len(data)
    payload[position] ^= 1 << bit % 8
    with pytest.raises(RemoteProtocolError, match="crc32"):
        wire.decode_frame(bytes(payload))


@pytest.mark.parametrize(("size_bytes", "count"), [(1, 1), (61_440, 1), (61_441, 2), (122_880, 2), (122_881, 3)])
def test_all_chunks_are_full_but_the_last(size_bytes: int, count: int) -> None:
    assert wire.chunk_count(size_bytes) == count


# --- Whatever arrives

PAYLOADS = st.one_of(
    SPOKEN.map(lambda spoken: wire.sign_message(DEVICE_KEY, TOPIC, spoken[1])),
    st.just(wire.chunk_payload(DIGEST, 5, b"content")),
)


def receive(payload: bytes) -> None:
    """Do all that a receiver does with a payload."""
    frame = wire.decode_frame(payload)
    if isinstance(frame, wire.SignedFrame):
        keys.is_signed_by(DEVICE_KEY.public, frame.signature, frame.body)
        for decoder in DECODERS.values():
            wire.decode_body(frame.body, decoder)


@given(st.binary(max_size=300))
@example(b"\x91" * 5000)  # Arrays within arrays: the recursion limit.
@example(b"\x94\xa1s\x01\xc4\x00\xc4\x00")
@example(b"\xdd\xff\xff\xff\xff")  # An array of four billion entries, none of which follows.
@example(b"\xc6\xff\xff\xff\xff")
def test_arbitrary_bytes_give_only_protocol_errors(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        receive(payload)


@given(PAYLOADS, st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=8), st.data())
def test_damaged_payloads_give_only_protocol_errors(
    payload: bytes, changes: list[tuple[int, int]], data: st.DataObject
) -> None:
    damaged = bytearray(payload)
    for position, value in changes:
        damaged[position % len(damaged)] = value
    cut = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    for candidate in (bytes(damaged), cut, cut + payload):
        with contextlib.suppress(RemoteProtocolError):
            receive(candidate)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=40) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


@given(messages_of(messages.Message), st.data())
def test_a_body_of_the_right_shape_with_wrong_values_gives_only_protocol_errors(
    message: messages.Message, data: st.DataObject
) -> None:
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(message))
    name = data.draw(st.sampled_from(sorted(fields)))
    body = msgspec.msgpack.encode({**fields, name: data.draw(VALUES)})
    for decoder in DECODERS.values():
        with contextlib.suppress(RemoteProtocolError):
            wire.decode_body(body, decoder)
