"""Payload bytes, by what they were for: nothing is left out, keyframes and bundles have columns of their own."""

from typing import Literal

import msgspec

Purpose = Literal["up", "down", "keyframe", "bundle"]


class Traffic(msgspec.Struct, frozen=True):
    """Payload bytes of one round: what devices sent, and what was delivered to them."""

    up: int = 0
    down: int = 0
    keyframe: int = 0
    bundle: int = 0


class TrafficMeter:
    """Counts between the close of one round and that of the next."""

    def __init__(self) -> None:
        self._counts: dict[Purpose, int] = {}

    def note(self, purpose: Purpose, size_bytes: int) -> None:
        """Count payload bytes."""
        self._counts[purpose] = self._counts.get(purpose, 0) + size_bytes

    def take(self) -> Traffic:
        """Return what was counted, and begin anew."""
        traffic = Traffic(**self._counts)
        self._counts = {}
        return traffic
