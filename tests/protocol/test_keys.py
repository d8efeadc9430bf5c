"""Signatures and seals: what they bind, and that nothing that arrives raises anything but a protocol error."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federated_core.errors import RemoteProtocolError
from federated_core.protocol import keys
from tests.protocol.signed_messages import DEVICE_KEY, DIGEST, OTHER_KEY, SEALING_KEY

UPDATE_CONTEXT = keys.update_context("fleet", "d1", "gestures", 4, DIGEST)


def test_a_signature_is_by_one_key_over_one_text() -> None:
    signature = DEVICE_KEY.sign(b"text")
    assert len(signature) == keys.SIGNATURE_BYTES
    assert keys.is_signed_by(DEVICE_KEY.public, signature, b"text")
    assert not keys.is_signed_by(DEVICE_KEY.public, signature, b"texts")
    assert not keys.is_signed_by(OTHER_KEY.public, signature, b"text")


@given(st.binary(max_size=80), st.binary(max_size=40))
def test_a_signature_that_is_no_signature_is_false_and_no_error(signature: bytes, public: bytes) -> None:
    assert not keys.is_signed_by(DEVICE_KEY.public, signature, b"text")
    assert not keys.is_signed_by(public, DEVICE_KEY.sign(b"text"), b"text")


@given(st.binary(max_size=2000), st.binary(max_size=100))
def test_what_is_sealed_is_opened_by_the_right_key_under_the_same_context(data: bytes, context: bytes) -> None:
    sealed = keys.seal(SEALING_KEY.public, data, context)
    assert SEALING_KEY.open(sealed, context) == data
    assert len(sealed) == len(data) + keys.SEAL_OVERHEAD_BYTES


def test_two_seals_of_the_same_data_share_no_bytes_that_an_onlooker_could_compare() -> None:
    one, other = (keys.seal(SEALING_KEY.public, b"the same", b"context") for _ in range(2))
    assert one[:32] != other[:32]
    assert one[32:] != other[32:]


@pytest.mark.parametrize(
    "context",
    [
        keys.update_context("fleex", "d1", "gestures", 4, DIGEST),
        keys.update_context("fleet", "d2", "gestures", 4, DIGEST),
        keys.update_context("fleet", "d1", "gesture", 4, DIGEST),
        keys.update_context("fleet", "d1", "gestures", 5, DIGEST),
        keys.update_context("fleet", "d1", "gestures", 4, DIGEST[::-1]),
        keys.grant_context("fleet", "d1", DIGEST),
        b"",
    ],
)
def test_a_seal_opens_for_no_other_fleet_device_task_round_or_base(context: bytes) -> None:
    sealed = keys.seal(SEALING_KEY.public, b"update", UPDATE_CONTEXT)
    with pytest.raises(RemoteProtocolError, match="sealed to this key and context"):
        SEALING_KEY.open(sealed, context)


def test_a_seal_opens_for_no_other_key() -> None:
    sealed = keys.seal(SEALING_KEY.public, b"update", UPDATE_CONTEXT)
    with pytest.raises(RemoteProtocolError, match="sealed to this key and context"):
        keys.SealingKey(bytes(range(3, 35))).open(sealed, UPDATE_CONTEXT)


IDENTIFIERS = st.text("abc-", min_size=1, max_size=3)
CONTEXTS = st.tuples(IDENTIFIERS, IDENTIFIERS, IDENTIFIERS, st.integers(0, 12), st.binary(min_size=32, max_size=32))


@given(CONTEXTS, CONTEXTS)
def test_different_updates_have_different_contexts(
    one: tuple[str, str, str, int, bytes], other: tuple[str, str, str, int, bytes]
) -> None:
    assert (keys.update_context(*one) == keys.update_context(*other)) == (one == other)


@given(st.binary(max_size=200))
def test_sealed_bytes_from_outside_give_only_a_protocol_error(sealed: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        SEALING_KEY.open(sealed, UPDATE_CONTEXT)


@pytest.mark.parametrize("public", [bytes(32), (1).to_bytes(32, "little"), b"short"])
def test_a_key_to_which_nothing_can_be_sealed_is_the_fault_of_who_sent_it(public: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="sealing key"):
        keys.seal(public, b"grant", b"context")


def test_a_bundle_statement_signs_nothing_else() -> None:
    assert keys.bundle_statement(DIGEST) == b"fallow/v1 bundle\0" + DIGEST
    signature = DEVICE_KEY.sign(keys.bundle_statement(DIGEST))
    assert not keys.is_signed_by(DEVICE_KEY.public, signature, DIGEST)
