"""The frame that updates, lattice deltas, keyframes and positions share.

::

    magic 4 | format version u8 | parameter count u32 | fields of the kind | body | crc32 u32

All little-endian. The checksum finds damage early; what is trusted is the SHA-256 of the whole in a signed message.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any, Final

from federated_core.errors import RemoteProtocolError

_FORMAT_VERSION: Final = 1
_FRAME: Final = struct.Struct("<4sBI")
_CHECKSUM: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class BlobKind:
    """One kind of blob: its magic, and its own fields after the frame."""

    magic: bytes
    fields: struct.Struct

    @property
    def size_min(self) -> int:
        """Bytes around an empty body."""
        return _FRAME.size + self.fields.size + _CHECKSUM.size


def encode_blob(kind: BlobKind, parameter_count: int, fields: tuple[object, ...], body: bytes) -> bytes:
    """Frame a body.

    Parameters
    ----------
    kind : BlobKind
        What the blob is.
    parameter_count : int
        Floats of the model, or of the part of it, that the blob is about.
    fields : tuple
        Values of the kind's own fields.
    body : bytes
        What follows them.

    Returns
    -------
    bytes
        The whole blob.

    Examples
    --------
    >>> kind = BlobKind(b"NOTE", struct.Struct("<H"))
    >>> decode_blob(encode_blob(kind, 10, (7,), b"body"), kind, parameter_count=10, size_max=100)
    ((7,), b'body')
    """
    content = _FRAME.pack(kind.magic, _FORMAT_VERSION, parameter_count) + kind.fields.pack(*fields) + body
    return content + _CHECKSUM.pack(zlib.crc32(content))


def decode_blob(data: bytes, kind: BlobKind, *, parameter_count: int, size_max: int) -> tuple[tuple[Any, ...], bytes]:
    """Take a blob apart.

    Parameters
    ----------
    data : bytes
        What arrived.
    kind : BlobKind
        What it must be.
    parameter_count : int
        What it must be about.
    size_max : int
        Largest blob accepted, in bytes.

    Returns
    -------
    tuple of tuple and bytes
        The kind's own fields and the body; neither has been judged.

    Raises
    ------
    RemoteProtocolError
        If ``data`` is anything else, damaged, or too large.

    Examples
    --------
    >>> decode_blob(b"", BlobKind(b"NOTE", struct.Struct("<H")), parameter_count=10, size_max=100)
    Traceback (most recent call last):
    federated_core.errors.RemoteProtocolError: $: expected 15 to 100 bytes, got 0
    """
    if not kind.size_min <= len(data) <= size_max:
        raise RemoteProtocolError(f"$: expected {kind.size_min} to {size_max} bytes, got {len(data)}")
    content, checksum = data[: -_CHECKSUM.size], data[-_CHECKSUM.size :]
    magic, format_version, count = _FRAME.unpack_from(content)
    for path, expected, got in (
        ("magic", kind.magic, magic),
        ("format_version", _FORMAT_VERSION, format_version),
        ("parameter_count", parameter_count, count),
        ("crc32", zlib.crc32(content), _CHECKSUM.unpack(checksum)[0]),
    ):
        if got != expected:
            raise RemoteProtocolError(f"$.{path}: expected {expected!r}, got {got!r}")
    return kind.fields.unpack_from(content, _FRAME.size), content[_FRAME.size + kind.fields.size :]
