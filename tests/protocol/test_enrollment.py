"""Enrollment tokens as text, and what their secret proves."""

import base64
import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federated_core.errors import RemoteProtocolError
from federated_core.protocol import enrollment
from federated_core.protocol.messages import EnrollmentRequest
from tests.protocol.signed_messages import DEVICE_KEY, ENROLLMENT_REQUEST, OTHER_KEY

SECRET = b"sixteen bytes or more"
TOKEN = enrollment.Token("broker.example", 8883, "fleet", "t1", SECRET, bytes(32), bytes(32), bytes(32), "PEM")
TEXT = enrollment.encode_token(TOKEN)
KEYS = st.binary(min_size=32, max_size=32)
IDENTIFIERS = st.text("abcdefghijklmnopqrstuvwxyz0123456789_-", min_size=1, max_size=48)
TOKENS = st.builds(
    enrollment.Token,
    host=st.text(min_size=1, max_size=255),
    port=st.integers(1, 65535),
    fleet=IDENTIFIERS,
    token=IDENTIFIERS,
    secret=st.binary(min_size=16, max_size=64),
    verify_key=KEYS,
    seal_key=KEYS,
    model_key=KEYS,
    ca_pem=st.text(max_size=200),
)


def proven(request: EnrollmentRequest) -> EnrollmentRequest:
    return msgspec.structs.replace(request, proof=enrollment.prove(SECRET, "fleet", request))


@given(TOKENS)
def test_a_token_survives_being_copied_as_text(token: enrollment.Token) -> None:
    text = enrollment.encode_token(token)
    assert text.isascii()
    assert not set(text) & set(" \n'\"$`\\&;|<>")  # It goes through shells and mails.
    assert enrollment.decode_token(f"  {text}\n") == token


@pytest.mark.parametrize(
    "text",
    ["", "fallow1-", "fallow2-" + TEXT[8:], TEXT[:-5], TEXT[1:], TEXT[:40], TEXT[:20] + TEXT[24:], TEXT + "AAAA", "ä"],
)
def test_a_token_that_was_not_copied_in_full_is_refused_in_words(text: str) -> None:
    with pytest.raises(RemoteProtocolError, match="enrollment token: "):
        enrollment.decode_token(text)


@given(st.integers(0, len(TEXT) - 1), st.characters())
def test_a_changed_letter_is_refused_or_gives_another_token(position: int, letter: str) -> None:
    with contextlib.suppress(RemoteProtocolError):
        enrollment.decode_token(TEXT[:position] + letter + TEXT[position + 1 :])


@given(st.text(max_size=200), st.binary(max_size=200))
def test_any_text_gives_a_token_or_a_protocol_error(text: str, data: bytes) -> None:
    for candidate in (text, "fallow1-" + text, "fallow1-" + base64.urlsafe_b64encode(data).decode()):
        with pytest.raises(RemoteProtocolError):
            enrollment.decode_token(candidate)


@pytest.mark.parametrize(
    "changed",
    [
        {"port": 0},
        {"fleet": "fleet/+"},
        {"fleet": "fleet\n"},
        {"token": "#"},
        {"secret": b"short"},
        {"verify_key": bytes(31)},
        {"host": ""},
    ],
)
def test_a_token_with_a_value_out_of_bounds_is_refused(changed: dict[str, object]) -> None:
    fields = {**msgspec.to_builtins(TOKEN, builtin_types=(bytes,)), **changed}
    text = "fallow1-" + base64.urlsafe_b64encode(msgspec.msgpack.encode(fields)).decode()
    with pytest.raises(RemoteProtocolError, match=next(iter(changed))):
        enrollment.decode_token(text)


def test_who_knows_the_secret_can_prove_it() -> None:
    assert enrollment.is_proven(SECRET, "fleet", proven(ENROLLMENT_REQUEST))
    assert not enrollment.is_proven(b"another secret of the same", "fleet", proven(ENROLLMENT_REQUEST))
    assert not enrollment.is_proven(SECRET, "fleet", ENROLLMENT_REQUEST)


@pytest.mark.parametrize(
    "changed",
    [
        {"token": "t2"},
        {"verify_key": OTHER_KEY.public},
        {"seal_key": bytes(32)},
        {"nonce": b"another."},
        {"machine": bytes(range(16))},
    ],
)
def test_a_proof_is_for_one_request_only(changed: dict[str, object]) -> None:
    stolen = msgspec.structs.replace(proven(ENROLLMENT_REQUEST), **changed)
    assert not enrollment.is_proven(SECRET, "fleet", stolen)
    assert not enrollment.is_proven(SECRET, "another-fleet", proven(ENROLLMENT_REQUEST))


def test_the_broker_learns_a_password_and_not_the_secret() -> None:
    password = enrollment.broker_password(SECRET)
    assert password == enrollment.broker_password(SECRET)
    assert password != enrollment.broker_password(SECRET[::-1])
    assert len(password) == 32
    assert bytes.fromhex(password) not in SECRET
    assert enrollment.broker_username("t1") == "enroll-t1"


def test_the_same_key_is_always_the_same_device() -> None:
    name = enrollment.device_name(DEVICE_KEY.public)
    assert name == enrollment.device_name(DEVICE_KEY.public)
    assert name != enrollment.device_name(OTHER_KEY.public)
    assert len(name) == 17
    assert name.isalnum()
    assert name.islower()
