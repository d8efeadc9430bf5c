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
    """Frame ``body``."""
    content = _FRAME.pack(kind.magic, _FORMAT_VERSION, parameter_count) + kind.fields.pack(*fields) + body
    return content + _CHECKSUM.pack(zlib.crc32(content))


def decode_blob(data: bytes, kind: BlobKind, *, parameter_count: int, size_max: int) -> tuple[tuple[Any, ...], bytes]:
    """Read the fields and the body of a blob of ``kind`` about ``parameter_count`` parameters.

    Raises
    ------
    RemoteProtocolError
        If ``data`` is anything else, damaged, or larger than ``size_max``.
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
