"""The task that both sides of the comparison train: scikit-learn's digits, an MLP 64-128-10, ten clients.

9,610 float32 parameters (38 kB); a round is one epoch in batches of 10 by plain SGD. numpy only.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

BATCH_SIZE = 10
LEARNING_RATE = 0.05
HELD_OUT_COUNT = 297


def load(path: Path) -> tuple[Floats, Integers]:
    """Return all images, shape (1797, 64) in [0, 1], and their labels, in an order that is the same for everyone."""
    with np.load(path, allow_pickle=False) as file:
        images, labels = file["images"].astype(np.float32) / np.float32(16), file["labels"].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    return images[order], labels[order]


def held_out(path: Path) -> tuple[Floats, Integers]:
    """Return the examples that no client holds."""
    images, labels = load(path)
    return images[:HELD_OUT_COUNT], labels[:HELD_OUT_COUNT]


def client_part(path: Path, client: int, client_count: int) -> tuple[Floats, Integers]:
    """Return the examples of one client: every ``client_count``-th one that is not held out."""
    images, labels = load(path)
    return images[HELD_OUT_COUNT + client :: client_count], labels[HELD_OUT_COUNT + client :: client_count]


def initial_parameters() -> list[Floats]:
    """Return hidden weight (64, 128) and bias, output weight (128, 10) and bias, the same for everyone."""
    rng = np.random.default_rng(1)
    hidden = rng.normal(0, np.sqrt(2 / 64), (64, 128)).astype(np.float32)
    output = rng.normal(0, np.sqrt(1 / 128), (128, 10)).astype(np.float32)
    return [hidden, np.zeros(128, np.float32), output, np.zeros(10, np.float32)]


def forward(parameters: list[Floats], images: Floats) -> tuple[Floats, Floats]:
    """Return the hidden activations and the class probabilities."""
    hidden = np.maximum(images @ parameters[0] + parameters[1], 0)
    scores = hidden @ parameters[2] + parameters[3]
    exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
    return hidden, exponents / exponents.sum(axis=1, keepdims=True)


def train_epoch(parameters: list[Floats], images: Floats, labels: Integers) -> list[Floats]:
    """Return the parameters after one epoch of SGD on softmax cross-entropy, batch by batch in order."""
    weight_1, bias_1, weight_2, bias_2 = (array.copy() for array in parameters)
    for start in range(0, len(labels), BATCH_SIZE):
        batch, label = images[start : start + BATCH_SIZE], labels[start : start + BATCH_SIZE]
        hidden, error = forward([weight_1, bias_1, weight_2, bias_2], batch)
        error[np.arange(len(label)), label] -= 1
        error /= len(label)
        hidden_error = (error @ weight_2.T) * (hidden > 0)
        weight_2 -= LEARNING_RATE * hidden.T @ error
        bias_2 -= LEARNING_RATE * error.sum(axis=0)
        weight_1 -= LEARNING_RATE * batch.T @ hidden_error
        bias_1 -= LEARNING_RATE * hidden_error.sum(axis=0)
    return [weight_1, bias_1, weight_2, bias_2]


def accuracy(parameters: list[Floats], images: Floats, labels: Integers) -> float:
    """Return the share of ``images`` that the model classifies as ``labels``."""
    predicted: NDArray[Any] = forward(parameters, images)[1].argmax(axis=1)
    return float(np.mean(predicted == labels))
