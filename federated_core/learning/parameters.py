"""The parameters of a model: their layout, one flat vector, and the checkpoint that carries it.

A *vector* is the flat float32 array of all parameters in layout order. The *update part* is what a device reports:
trainable and state parameters; personal ones never leave the device and frozen ones never change.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Final, Literal, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from federated_core.errors import LocalMisuseError, RemoteProtocolError

Role = Literal["trainable", "personal", "state", "frozen"]
Vector = NDArray[np.float32]
_Float = TypeVar("_Float", np.float32, np.float64)

PARAMETER_COUNT_MAX: Final = 1 << 26
"""Floats in one model: 256 MiB of parameters, far above what a small device trains."""
TENSOR_COUNT_MAX: Final = 4096
DIGEST_BYTES: Final = 32

_REPORTED_ROLES: Final = frozenset({"trainable", "state"})
_MAGIC: Final = b"FWCK"
_FORMAT_VERSION: Final = 1
_PREFIX: Final = struct.Struct("<4sBH")


class ParameterSpec(msgspec.Struct, frozen=True):
    """One float32 tensor: its name in the graph, its shape and who may change it."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    shape: tuple[int, ...]
    role: Role

    @property
    def size(self) -> int:
        """How many floats it has; a scalar has one."""
        return math.prod(self.shape)


class Layout(msgspec.Struct, frozen=True, dict=True):
    """The parameters of a model in the order of its description.

    Raises
    ------
    ValueError
        If two parameters share a name, or a shape or the total is out of bounds. msgspec turns it into a validation
        error with a path where the layout comes from outside.
    """

    parameters: tuple[ParameterSpec, ...]

    def __post_init__(self) -> None:
        if len(self.parameters) > TENSOR_COUNT_MAX:
            raise ValueError(f"expected at most {TENSOR_COUNT_MAX} parameters, got {len(self.parameters)}")
        names = [spec.name for spec in self.parameters]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"expected each parameter once, got {twice!r} twice")
        for spec in self.parameters:
            if len(spec.shape) > 8 or any(not 1 <= dimension <= PARAMETER_COUNT_MAX for dimension in spec.shape):
                raise ValueError(f"{spec.name!r}: expected at most 8 dimensions of 1 or more, got {spec.shape}")
        if self.size > PARAMETER_COUNT_MAX:
            raise ValueError(f"expected at most {PARAMETER_COUNT_MAX} floats, got {self.size}")

    @cached_property
    def size(self) -> int:
        """Floats in a vector."""
        return sum(spec.size for spec in self.parameters)

    @cached_property
    def update_size(self) -> int:
        """Floats in the update part."""
        return sum(spec.size for spec in self.parameters if spec.role in _REPORTED_ROLES)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the canonical encoding: names, shapes and roles, in order."""
        return hashlib.sha256(msgspec.msgpack.encode(self)).digest()

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each parameter lies in a vector."""
        slices: dict[str, slice] = {}
        start = 0
        for spec in self.parameters:
            slices[spec.name] = slice(start, start + spec.size)
            start += spec.size
        return slices

    @cached_property
    def update_slices(self) -> tuple[slice, ...]:
        """Where the reported parameters lie in a vector, in order."""
        return tuple(self.slices[spec.name] for spec in self.parameters if spec.role in _REPORTED_ROLES)


class Checkpoint(msgspec.Struct, frozen=True, eq=False):
    """The parameters of ``task`` at one ``version``."""

    task: str
    version: int
    vector: Vector


class _CheckpointHeader(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    layout_digest: Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
    task: Annotated[str, msgspec.Meta(pattern="^[a-z0-9_-]{1,48}$")]
    version: Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]


def flatten(layout: Layout, tensors: Mapping[str, NDArray[np.float32]]) -> Vector:
    """Lay ``tensors`` end to end in layout order.

    Parameters
    ----------
    layout : Layout
        Names and shapes, in order.
    tensors : mapping of str to float32 array
        Exactly the parameters of ``layout``.

    Returns
    -------
    float32, shape (layout.size,)
        A new vector.

    Raises
    ------
    LocalMisuseError
        If a parameter is missing, unknown, of another shape or not float32.

    Examples
    --------
    >>> layout = Layout((ParameterSpec("w", (1, 2), "trainable"), ParameterSpec("b", (), "trainable")))
    >>> flatten(layout, {"b": np.float32(3), "w": np.float32([[1, 2]])}).tolist()
    [1.0, 2.0, 3.0]
    """
    if tensors.keys() != layout.slices.keys():
        difference = sorted(tensors.keys() ^ layout.slices.keys())
        raise LocalMisuseError(f"expected the {len(layout.slices)} parameters of the layout, differs in {difference}")
    vector = np.empty(layout.size, np.float32)
    for spec in layout.parameters:
        tensor = tensors[spec.name]
        if tensor.shape != spec.shape or tensor.dtype != np.float32:
            raise LocalMisuseError(
                f"{spec.name!r}: expected float32 of shape {spec.shape}, got {tensor.dtype} of shape {tensor.shape}"
            )
        vector[layout.slices[spec.name]] = tensor.reshape(-1)
    return vector


def unflatten(layout: Layout, vector: Vector) -> dict[str, NDArray[np.float32]]:
    """Cut ``vector`` into its named tensors.

    Parameters
    ----------
    layout : Layout
        Names and shapes, in order.
    vector : float32, shape (layout.size,)
        All parameters.

    Returns
    -------
    dict of str to float32 array
        Views of ``vector``, in layout order.

    Raises
    ------
    LocalMisuseError
        If ``vector`` is not a vector of ``layout``.

    Examples
    --------
    >>> layout = Layout((ParameterSpec("w", (1, 2), "trainable"), ParameterSpec("b", (), "trainable")))
    >>> unflatten(layout, np.float32([1, 2, 3]))["w"].tolist()
    [[1.0, 2.0]]
    """
    _check_vector(vector, layout.size, "a vector of the layout")
    return {spec.name: vector[layout.slices[spec.name]].reshape(spec.shape) for spec in layout.parameters}


def update_part(layout: Layout, vector: Vector) -> Vector:
    """Take the reported part of ``vector``: trainable and state parameters, in layout order.

    Parameters
    ----------
    layout : Layout
        Names, shapes and roles, in order.
    vector : float32, shape (layout.size,)
        All parameters.

    Returns
    -------
    float32, shape (layout.update_size,)
        A new array.

    Raises
    ------
    LocalMisuseError
        If ``vector`` is not a vector of ``layout``.

    Examples
    --------
    >>> layout = Layout((ParameterSpec("mean", (2,), "personal"), ParameterSpec("w", (2,), "trainable")))
    >>> update_part(layout, np.float32([1, 2, 3, 4])).tolist()
    [3.0, 4.0]
    """
    _check_vector(vector, layout.size, "a vector of the layout")
    parts = [vector[where] for where in layout.update_slices]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def from_update_part(layout: Layout, part: NDArray[_Float]) -> NDArray[_Float]:
    """Put a reported part back in its places; parameters that are not reported get zeros.

    Parameters
    ----------
    layout : Layout
        Names, shapes and roles, in order.
    part : float32 or float64, shape (layout.update_size,)
        A reported part, or the aggregate of many.

    Returns
    -------
    the type of ``part``, shape (layout.size,)
        A new array.

    Raises
    ------
    LocalMisuseError
        If ``part`` is not an update part of ``layout``.

    Examples
    --------
    >>> layout = Layout((ParameterSpec("mean", (2,), "personal"), ParameterSpec("w", (2,), "trainable")))
    >>> from_update_part(layout, np.float32([3, 4])).tolist()
    [0.0, 0.0, 3.0, 4.0]
    """
    if part.shape != (layout.update_size,):
        raise LocalMisuseError(f"expected an update part of shape ({layout.update_size},), got {part.shape}")
    vector = np.zeros(layout.size, part.dtype)
    start = 0
    for where in layout.update_slices:
        end = start + where.stop - where.start
        vector[where] = part[start:end]
        start = end
    return vector


def encode_checkpoint(layout: Layout, task: str, version: int, vector: Vector) -> bytes:
    """Write a checkpoint: a header, then all parameters, little-endian, in layout order.

    Parameters
    ----------
    layout : Layout
        Its digest goes into the header.
    task : str
        Id of the task, ``[a-z0-9_-]{1,48}``.
    version : int
        Version of the checkpoint within the task, >= 0.
    vector : float32, shape (layout.size,)
        All parameters, finite.

    Returns
    -------
    bytes
        The same bytes for the same arguments, so that their SHA-256 is the checkpoint's digest.

    Raises
    ------
    LocalMisuseError
        If ``vector`` is not a finite vector of ``layout`` or the header is out of bounds.

    Examples
    --------
    >>> layout = Layout((ParameterSpec("w", (2,), "trainable"),))
    >>> data = encode_checkpoint(layout, "gestures", 3, np.float32([0.5, -1]))
    >>> decode_checkpoint(data, layout).version
    3
    """
    _check_vector(vector, layout.size, "a vector of the layout")
    if not np.isfinite(vector).all():
        raise LocalMisuseError("expected finite parameters, got NaN or infinity")
    header = msgspec.msgpack.encode(_CheckpointHeader(layout.digest, task, version))
    try:
        msgspec.msgpack.decode(header, type=_CheckpointHeader)
    except msgspec.ValidationError as error:
        raise LocalMisuseError(f"checkpoint header: {error}") from error
    return _PREFIX.pack(_MAGIC, _FORMAT_VERSION, len(header)) + header + vector.astype("<f4", copy=False).tobytes()


def decode_checkpoint(data: bytes, layout: Layout) -> Checkpoint:
    """Read a checkpoint of ``layout``; its size is known before anything is allocated.

    Parameters
    ----------
    data : bytes
        What ``encode_checkpoint`` wrote, or anything else.
    layout : Layout
        The model that the parameters must belong to.

    Returns
    -------
    Checkpoint
        Task, version and a new vector.

    Raises
    ------
    RemoteProtocolError
        If ``data`` is not a checkpoint of ``layout`` with finite parameters.

    Examples
    --------
    >>> layout = Layout((ParameterSpec("w", (2,), "trainable"),))
    >>> decode_checkpoint(encode_checkpoint(layout, "gestures", 3, np.float32([0.5, -1])), layout).vector.tolist()
    [0.5, -1.0]
    """
    if len(data) < _PREFIX.size:
        raise RemoteProtocolError(f"$: expected a checkpoint, got {len(data)} bytes")
    magic, format_version, header_bytes = _PREFIX.unpack_from(data)
    if magic != _MAGIC or format_version != _FORMAT_VERSION:
        raise RemoteProtocolError(f"$: expected a checkpoint of format {_FORMAT_VERSION}, got {data[:5]!r}")
    body_start = _PREFIX.size + header_bytes
    try:
        header = msgspec.msgpack.decode(data[_PREFIX.size : body_start], type=_CheckpointHeader)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"$.header: {error}") from error
    if header.layout_digest != layout.digest:
        raise RemoteProtocolError(
            f"$.header.layout_digest: expected {layout.digest.hex()[:16]}..., got {header.layout_digest.hex()[:16]}..."
        )
    if len(data) - body_start != 4 * layout.size:
        raise RemoteProtocolError(
            f"$.vector: expected {4 * layout.size} bytes for {layout.size} parameters, got {len(data) - body_start}"
        )
    vector = np.frombuffer(data, "<f4", offset=body_start).astype(np.float32)
    if not np.isfinite(vector).all():
        name = next(name for name, where in layout.slices.items() if not np.isfinite(vector[where]).all())
        raise RemoteProtocolError(f"$.vector[{name!r}]: expected finite parameters, got NaN or infinity")
    return Checkpoint(header.task, header.version, vector)


def checkpoint_digest(data: bytes) -> bytes:
    """SHA-256 of a whole encoded checkpoint."""
    return hashlib.sha256(data).digest()


def _check_vector(vector: Vector, size: int, what: str) -> None:
    if vector.shape != (size,) or vector.dtype != np.float32:
        raise LocalMisuseError(
            f"expected {what}: float32 of shape ({size},), got {vector.dtype} of shape {vector.shape}"
        )
