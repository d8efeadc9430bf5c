"""Who takes part in a round: a sample that nobody outside can predict, and that a restart repeats exactly."""

import hashlib
import math
from collections.abc import Iterable

import msgspec

from federated_core.protocol.messages import HeldCheckpoint


class Candidate(msgspec.Struct, frozen=True):
    """A device that checked in: under which id to answer it, and what it already holds of the task."""

    device: str
    check_in_id: bytes
    held: HeldCheckpoint | None = None


def cohort_size(goal: int, overselection_ratio: float, population: int) -> int:
    """Devices to invite so that ``goal`` of them report although some drop out; never more than there are."""
    return min(population, math.ceil(goal * overselection_ratio))


def round_seed(secret: bytes, task: str, round_number: int) -> bytes:
    """Seed of one round's sample; ``secret`` never leaves the aggregator."""
    return hashlib.blake2b(f"selection\0{task}\0{round_number}".encode(), key=secret, digest_size=32).digest()


def select_cohort(candidates: Iterable[Candidate], size: int, seed: bytes) -> tuple[Candidate, ...]:
    """Return ``size`` of ``candidates``: uniform over devices, whatever the order in which they checked in."""
    return tuple(sorted(candidates, key=lambda candidate: _lot(candidate.device, seed))[:size])


def _lot(device: str, seed: bytes) -> bytes:
    return hashlib.blake2b(device.encode(), key=seed, digest_size=16).digest()


def release_seed(secret: bytes, number: int) -> bytes:
    """Seed of a release's canary: each release has another, so that no device always goes first."""
    return hashlib.blake2b(f"release\0{number}".encode(), key=secret, digest_size=32).digest()


def draw_devices(devices: Iterable[str], size: int, seed: bytes) -> tuple[str, ...]:
    """Return ``size`` of ``devices``, uniformly and always the same for one seed."""
    return tuple(sorted(devices, key=lambda device: _lot(device, seed))[:size])
