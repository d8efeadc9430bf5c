"""Messages to bytes and back: bounded, versioned, signed.

A payload is one MessagePack array: a signed frame ``["s", version, body, signature]`` or a chunk ``["c", digest prefix,
index, crc32, data]``. The signature covers the topic, so that a message that a broker moves to another topic, device or
direction is no longer signed. Chunks carry no signature: the blob's digest stands in a signed message.
"""

import zlib
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from federated_core.errors import LocalMisuseError, RemoteProtocolError
from federated_core.protocol import keys
from federated_core.protocol.messages import PROTOCOL_VERSION

PAYLOAD_BYTES_MAX = 64 * 1024
CHUNK_BYTES = 60 * 1024
DIGEST_PREFIX_BYTES = 8

M = TypeVar("M")


class SignedFrame(msgspec.Struct, frozen=True, array_like=True, tag="s"):
    """A message as it travels: its MessagePack, and the sender's signature over topic and body."""

    version: int
    body: Annotated[bytes, Meta(max_length=PAYLOAD_BYTES_MAX)]
    signature: Annotated[bytes, Meta(min_length=keys.SIGNATURE_BYTES, max_length=keys.SIGNATURE_BYTES)]


class ChunkFrame(msgspec.Struct, frozen=True, array_like=True, tag="c"):
    """A piece of a blob, named by the first bytes of the blob's digest."""

    digest_prefix: Annotated[bytes, Meta(min_length=DIGEST_PREFIX_BYTES, max_length=DIGEST_PREFIX_BYTES)]
    index: Annotated[int, Meta(ge=0, lt=2**20)]
    crc32: Annotated[int, Meta(ge=0, lt=2**32)]
    data: Annotated[bytes, Meta(min_length=1, max_length=CHUNK_BYTES)]


Frame = SignedFrame | ChunkFrame

_ENCODER = msgspec.msgpack.Encoder()
_FRAME_DECODER: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Frame)


def encode_frame(frame: Frame) -> bytes:
    """Return ``frame`` as a payload; LocalMisuseError beyond `PAYLOAD_BYTES_MAX`."""
    payload = _ENCODER.encode(frame)
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise LocalMisuseError(f"payload: expected at most {PAYLOAD_BYTES_MAX} bytes, got {len(payload)}")
    return payload


def decode_frame(payload: bytes) -> Frame:
    """Return the frame in ``payload``, its shape and a chunk's checksum verified, its signature not yet."""
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise RemoteProtocolError(f"payload: expected at most {PAYLOAD_BYTES_MAX} bytes, got {len(payload)}")
    try:
        frame = _FRAME_DECODER.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"frame: {error}") from error
    if isinstance(frame, SignedFrame) and frame.version != PROTOCOL_VERSION:
        raise RemoteProtocolError(f"frame: expected protocol version {PROTOCOL_VERSION}, got {frame.version}")
    if isinstance(frame, ChunkFrame) and zlib.crc32(frame.data) != frame.crc32:
        raise RemoteProtocolError(
            f"chunk {frame.index}: expected crc32 {frame.crc32:08x}, got {zlib.crc32(frame.data):08x}"
        )
    return frame


def sign_message(key: keys.SigningKey, topic: str, message: msgspec.Struct) -> bytes:
    """Return ``message`` as a signed payload for ``topic``."""
    body = _ENCODER.encode(message)
    return encode_frame(SignedFrame(PROTOCOL_VERSION, body, key.sign(_signed_bytes(topic, body))))


def open_message(frame: SignedFrame, topic: str, public: bytes, decoder: msgspec.msgpack.Decoder[M]) -> M:
    """Return the message in ``frame`` if ``public`` signed it for ``topic``, else raise RemoteProtocolError."""
    if not keys.is_signed_by(public, frame.signature, _signed_bytes(topic, frame.body)):
        raise RemoteProtocolError(f"signature: expected one by the key on record for {topic}, got another")
    return decode_body(frame.body, decoder)


def decode_body(body: bytes, decoder: msgspec.msgpack.Decoder[M]) -> M:
    """Return the message in ``body``; the error names the field that is wrong."""
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(str(error)) from error


def chunk_payload(digest: bytes, index: int, data: bytes) -> bytes:
    """Return one chunk of the blob ``digest`` as a payload."""
    return encode_frame(ChunkFrame(digest[:DIGEST_PREFIX_BYTES], index, zlib.crc32(data), data))


def chunk_count(size_bytes: int) -> int:
    """Number of chunks of a blob."""
    return -(-size_bytes // CHUNK_BYTES)


def _signed_bytes(topic: str, body: bytes) -> bytes:
    return b"fallow/v1\0" + topic.encode() + b"\0" + body
