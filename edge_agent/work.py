"""What the daemon and its trainer say to each other: one piece of work down the pipe, what became of it back up.

Messages are MessagePack, each after its length as four bytes, little-endian. The trainer is told files and keyed noise;
it gets no device key, no credential and no network address.
"""

import struct
from typing import IO

import msgspec

from federated_core.errors import AdapterError
from federated_core.protocol.messages import AbandonReason, CheckpointReference, Metrics, Plan

_LENGTH = struct.Struct("<I")
_MESSAGE_BYTES_MAX = 4 * 1024 * 1024


class Work(msgspec.Struct, frozen=True):
    """One assignment, as files. ``fetched`` are keyframes and deltas in the order in which they apply."""

    work_id: int
    task: str
    round: int
    plan: Plan
    base: CheckpointReference
    bundle_path: str
    model_folder: str
    fetched: tuple[tuple[str, str], ...]  # (kind, path)
    store_path: str
    noise_key: bytes
    order_key: bytes
    update_path: str


class Holding(msgspec.Struct, frozen=True, tag="holding"):
    """The base checkpoint is on disk and proven: what was fetched for it may be deleted."""

    work_id: int
    base: CheckpointReference


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """Steps done and to do."""

    work_id: int
    step_count: int
    step_count_planned: int


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The work is done; for a training plan the encoded update lies at ``update_path``."""

    work_id: int
    example_count: int
    metrics: Metrics
    training_loss: float | None
    training_s: float


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The work cannot be done, and why."""

    work_id: int
    why: AbandonReason
    detail: str


Outcome = Holding | Progress | Done | Failed


def write_message(stream: IO[bytes], message: msgspec.Struct) -> None:
    """Write one message and flush."""
    body = msgspec.msgpack.encode(message)
    stream.write(_LENGTH.pack(len(body)) + body)
    stream.flush()


def read_message(stream: IO[bytes]) -> bytes | None:
    """Return the next message's bytes; None at the end of the stream."""
    header = stream.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        return None
    (size,) = _LENGTH.unpack(header)
    if size > _MESSAGE_BYTES_MAX:
        raise AdapterError(f"trainer pipe: expected a message of at most {_MESSAGE_BYTES_MAX} bytes, got {size}")
    body = stream.read(size)
    return body if len(body) == size else None
