"""What both sides of an enrollment compute: the token's text, the proof, the broker credential of the token."""

import base64
import binascii
import hashlib
import hmac
from typing import Annotated

import msgspec
from msgspec import Meta

from federated_core.errors import RemoteProtocolError
from federated_core.protocol.messages import EnrollmentRequest, Identifier

TOKEN_PREFIX = "fallow1-"  # noqa: S105 - what every token begins with.


class Token(msgspec.Struct, frozen=True):
    """What a device must know to join: where the broker is, whom to trust, and a secret that proves the invitation."""

    host: Annotated[str, Meta(min_length=1, max_length=255)]
    port: Annotated[int, Meta(ge=1, le=65535)]
    fleet: Identifier
    token: Identifier
    secret: Annotated[bytes, Meta(min_length=16, max_length=64)]
    verify_key: Annotated[bytes, Meta(min_length=32, max_length=32)]  # The aggregator's: signs what it says.
    seal_key: Annotated[bytes, Meta(min_length=32, max_length=32)]  # The aggregator's: updates are sealed to it.
    model_key: Annotated[bytes, Meta(min_length=32, max_length=32)]  # Offline: signs what a device may run.
    ca_pem: Annotated[str, Meta(max_length=16_384)] = ""  # The broker's authority; empty means no TLS.


def encode_token(token: Token) -> str:
    """Return the text that an operator hands to a device."""
    return TOKEN_PREFIX + base64.urlsafe_b64encode(msgspec.msgpack.encode(token)).rstrip(b"=").decode()


def decode_token(text: str) -> Token:
    """Return the token in ``text``, or raise RemoteProtocolError."""
    text = text.strip()
    if not text.startswith(TOKEN_PREFIX):
        raise RemoteProtocolError(f"enrollment token: expected text from {TOKEN_PREFIX!r} on, got {text[:12]!r}")
    encoded = text.removeprefix(TOKEN_PREFIX)
    try:
        return msgspec.msgpack.decode(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)), type=Token)
    except (msgspec.DecodeError, binascii.Error, UnicodeDecodeError, ValueError) as error:
        raise RemoteProtocolError(f"enrollment token: damaged, copy it again in full ({error})") from error


def broker_username(token: str) -> str:
    """Broker user under which the holder of a token may enroll, and do nothing else."""
    return f"enroll-{token}"


def broker_password(secret: bytes) -> str:
    """Broker password of that user: derived, so that the broker never learns the secret itself."""
    return hmac.new(secret, b"fallow/v1 broker password", hashlib.sha256).hexdigest()[:32]


def prove(secret: bytes, fleet: str, request: EnrollmentRequest) -> bytes:
    """Return the proof that belongs into ``request`` (its own proof field is not read)."""
    named = [b"fallow/v1 enroll", fleet.encode(), request.token.encode()]
    parts = [*named, request.verify_key, request.seal_key, request.nonce, request.machine]
    return hmac.new(secret, msgspec.msgpack.encode(parts), hashlib.sha256).digest()


def is_proven(secret: bytes, fleet: str, request: EnrollmentRequest) -> bool:
    """Whether the sender of ``request`` knows the token's secret."""
    return hmac.compare_digest(prove(secret, fleet, request), request.proof)


def device_name(verify_key: bytes) -> str:
    """Name of the device that holds a key: the same key is always the same device."""
    return "d" + base64.b32encode(hashlib.blake2b(verify_key, digest_size=10).digest()).decode().lower()
