"""A release's manifest: what it is, in canonical bytes, signed by the model key under a statement of its own."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from federated_core.errors import LocalMisuseError, RemoteProtocolError
from federated_core.protocol.keys import SigningKey
from federated_core.protocol.messages import BlobReference, Count, Identifier, ReleaseNumber, SignedManifest

KEY_ID_BYTES = 8
UnixTime = Annotated[int, Meta(ge=0, le=2**40)]


class ReleaseManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One release: a bundle and a checkpoint as one unit. Times are whole seconds since 1970."""

    format: Literal[1]
    fleet: Identifier
    family: Identifier  # Name of the model: what an application asks for.
    number: ReleaseNumber  # Rises strictly within a family, whatever bytes it points at.
    task: Identifier
    version: Count
    bundle: BlobReference
    checkpoint: BlobReference  # As `learning.parameters.encode_checkpoint` writes it.
    issued_at: UnixTime
    expires_at: UnixTime
    accuracy_drop_max: Annotated[float, Meta(ge=0.0, le=1.0)]  # How much worse than what runs a trial may be.


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(ReleaseManifest)


def encode_manifest(manifest: ReleaseManifest) -> bytes:
    """Return the canonical bytes of ``manifest``; LocalMisuseError if a device would not read them."""
    body = _ENCODER.encode(manifest)
    try:
        decode_manifest(body)
    except RemoteProtocolError as error:
        raise LocalMisuseError(f"release manifest: {error}") from error
    return body


def decode_manifest(body: bytes) -> ReleaseManifest:
    """Return the manifest in ``body``, whose signature the caller has verified; RemoteProtocolError if it is none."""
    try:
        manifest = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(str(error)) from error
    if _ENCODER.encode(manifest) != body:
        raise RemoteProtocolError("$: expected canonical bytes, got another encoding of the same manifest")
    if manifest.expires_at <= manifest.issued_at:
        raise RemoteProtocolError(
            f"$.expires_at: expected a time after {manifest.issued_at}, got {manifest.expires_at}"
        )
    return manifest


def statement(body: bytes) -> bytes:
    """What the model key signs: no signature over anything else is one over a release."""
    return b"fallow/v1 release\0" + body


def sign_manifest(key: SigningKey, manifest: ReleaseManifest) -> SignedManifest:
    """Return ``manifest`` as the model key's holder signs it."""
    body = encode_manifest(manifest)
    return SignedManifest(body, key_id(key.public), key.sign(statement(body)))


def key_id(public: bytes) -> bytes:
    """The short name of a public key: tells another key from a damaged signature."""
    return public[:KEY_ID_BYTES]
