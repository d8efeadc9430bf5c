"""Bytes of the downlink: deltas, keyframes, and the position that a device keeps on disk. All little-endian."""

from __future__ import annotations

import struct
from typing import Final

import numpy as np

from federated_core.errors import RemoteProtocolError
from federated_core.learning.blob import BlobKind, decode_blob, encode_blob
from federated_core.learning.entropy import decode_scaled_symbols, deflate, encode_symbols, inflate
from federated_core.learning.lattice import HALVING_COUNT_MAX, LEVEL_MAX, Keyframe, LatticeDelta, LatticePosition
from federated_core.learning.quantization import MAGNITUDE_MAX

_DELTA: Final = BlobKind(b"FWLD", struct.Struct("<8sQQBf8s"))
_POSITION: Final = BlobKind(b"FWLP", struct.Struct("<8sQf"))
_KEYFRAME: Final = BlobKind(b"FWLK", struct.Struct("<Q"))
_FLOAT_BYTES: Final = 4


def encode_delta(delta: LatticeDelta) -> bytes:
    """Write a delta: 50 bytes around its symbols; the signed assignment binds it by its digest and the result's."""
    fields = (delta.epoch, delta.from_version, delta.to_version, delta.halving_count, delta.step, delta.result)
    return encode_blob(_DELTA, delta.symbols.size, fields, encode_symbols(delta.symbols))


def decode_delta(data: bytes, *, parameter_count: int, size_max: int) -> LatticeDelta:
    """Read a delta.

    Parameters
    ----------
    data : bytes
        What the aggregator sent.
    parameter_count : int
        Floats of the model.
    size_max : int
        Largest blob accepted, in bytes.

    Returns
    -------
    LatticeDelta
        Forward in versions, with a step that goes with its symbols; ``apply_delta`` judges the rest.

    Raises
    ------
    RemoteProtocolError
        If ``data`` is anything else, damaged, or too large.

    Examples
    --------
    >>> delta = LatticeDelta(bytes(8), 3, 4, 0, 0.5, np.int32([0, -2]), bytes(8))
    >>> decode_delta(encode_delta(delta), parameter_count=2, size_max=100).symbols.tolist()
    [0, -2]
    """
    fields, body = decode_blob(data, _DELTA, parameter_count=parameter_count, size_max=size_max)
    epoch, from_version, to_version, halving_count, step, result = fields
    if not from_version < to_version:
        raise RemoteProtocolError(f"$.to_version: expected more than {from_version}, got {to_version}")
    if halving_count > HALVING_COUNT_MAX:
        raise RemoteProtocolError(f"$.halving_count: expected at most {HALVING_COUNT_MAX}, got {halving_count}")
    symbols = decode_scaled_symbols(step, body, parameter_count, magnitude_max=MAGNITUDE_MAX)
    return LatticeDelta(epoch, from_version, to_version, halving_count, step, symbols, result)


def encode_position(position: LatticePosition) -> bytes:
    """Write a position: what a device needs beside the keyframe to rebuild its version after a reboot."""
    fields = (position.epoch, position.version, position.step)
    return encode_blob(_POSITION, position.k.size, fields, encode_symbols(position.k))


def decode_position(data: bytes, *, parameter_count: int, size_max: int) -> LatticePosition:
    """Read a position.

    Parameters
    ----------
    data : bytes
        What the device wrote.
    parameter_count : int
        Floats of the model.
    size_max : int
        Largest blob accepted, in bytes.

    Returns
    -------
    LatticePosition
        Belongs to the keyframe of its epoch.

    Raises
    ------
    RemoteProtocolError
        If ``data`` is anything else, damaged, or too large.

    Examples
    --------
    >>> position = LatticePosition(bytes(8), 4, 0.5, np.int32([0, -2]))
    >>> decode_position(encode_position(position), parameter_count=2, size_max=100).version
    4
    """
    (epoch, version, step), body = decode_blob(data, _POSITION, parameter_count=parameter_count, size_max=size_max)
    k = decode_scaled_symbols(step, body, parameter_count, magnitude_max=LEVEL_MAX)
    return LatticePosition(epoch, version, step, k)


def encode_keyframe(keyframe: Keyframe) -> bytes:
    """Write a keyframe exactly: the four bytes of every float in planes, as only signs and exponents repeat.

    Parameters
    ----------
    keyframe : Keyframe
        Version and parameters.

    Returns
    -------
    bytes
        About 26.8 bits a parameter where zstandard needs 29.7; parameters that were rounded to bfloat16 before the
        lattice was opened cost 11.

    Examples
    --------
    >>> len(encode_keyframe(Keyframe(3, np.zeros(1000, np.float32)))) < 100
    True
    """
    planes = keyframe.vector.astype("<f4", copy=False).view(np.uint8).reshape(-1, _FLOAT_BYTES).T
    body = b"".join(deflate(plane.tobytes()) for plane in planes)
    return encode_blob(_KEYFRAME, keyframe.vector.size, (keyframe.version,), body)


def decode_keyframe(data: bytes, *, parameter_count: int, size_max: int) -> Keyframe:
    """Read a keyframe.

    Parameters
    ----------
    data : bytes
        What the aggregator sent.
    parameter_count : int
        Floats of the model.
    size_max : int
        Largest blob accepted, in bytes.

    Returns
    -------
    Keyframe
        Its parameters are finite.

    Raises
    ------
    RemoteProtocolError
        If ``data`` is anything else, damaged, or too large.

    Examples
    --------
    >>> keyframe = Keyframe(3, np.float32([0.5, -1]))
    >>> decode_keyframe(encode_keyframe(keyframe), parameter_count=2, size_max=100).vector.tolist()
    [0.5, -1.0]
    """
    (version,), rest = decode_blob(data, _KEYFRAME, parameter_count=parameter_count, size_max=size_max)
    planes = np.empty((parameter_count, _FLOAT_BYTES), np.uint8)
    for place in range(_FLOAT_BYTES):
        planes[:, place], rest = inflate(rest, parameter_count, parameter_count)
    if rest:
        raise RemoteProtocolError(f"$: expected nothing after the last plane, got {len(rest)} bytes")
    vector = planes.reshape(-1).view("<f4").astype(np.float32)
    if not np.isfinite(vector).all():
        raise RemoteProtocolError("$.vector: expected finite parameters, got NaN or infinity")
    return Keyframe(version, vector)
