"""Gradient rules of operators that only move elements."""

from collections.abc import Mapping
from typing import Final

import numpy as np

from federated_core.learning.gradients.application import Application, Gradients, Rule


def reshaped(at: Application) -> Gradients:
    """Differentiate y = the same elements in another shape (Reshape, Flatten, Squeeze, Unsqueeze)."""
    return [at.g.reshape(at.x.shape, at.x)]


def transpose(at: Application) -> Gradients:
    """Differentiate y = x with its axes permuted; the inverse permutation leads back."""
    order = at.integers("perm") or tuple(reversed(range(at.x.rank)))
    return [at.g.transpose([int(axis) for axis in np.argsort(order)])]


def expand(at: Application) -> Gradients:
    """Differentiate y = x broadcast to a shape."""
    return [at.g.sum_to(at.x.shape)]


RULES: Final[Mapping[str, Rule]] = {
    "Expand": expand,
    "Flatten": reshaped,
    "Reshape": reshaped,
    "Squeeze": reshaped,
    "Transpose": transpose,
    "Unsqueeze": reshaped,
}
"""Rules by operator."""
