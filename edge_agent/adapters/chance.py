"""Randomness from the operating system."""

import random
import secrets
from typing import Protocol


class Chance(Protocol):
    """Where randomness comes from: the operating system, or a simulation's seed."""

    def uniform(self, low: float, high: float) -> float:
        """Draw from an interval."""

    def token_bytes(self, count: int) -> bytes:
        """Draw bytes that nobody can guess."""


class SystemChance:
    """Draws that nobody can foresee."""

    def __init__(self) -> None:
        self._random = random.SystemRandom()

    def uniform(self, low: float, high: float) -> float:
        """Draw from an interval."""
        return self._random.uniform(low, high)

    def token_bytes(self, count: int) -> bytes:
        """Draw bytes that nobody can guess."""
        return secrets.token_bytes(count)
