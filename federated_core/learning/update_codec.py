"""The uplink blob: one delta as 34 bytes of frame, fields and checksum around its entropy coded symbols.

Fields: codec u8, step f32, and 8 bytes each of the layout's and the base checkpoint's digest. The prefixes find a
mix-up early; what binds an update to its model and base is the signed report, which holds the whole digests and the
SHA-256 of this blob.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from federated_core.errors import LocalMisuseError, RemoteProtocolError
from federated_core.learning.blob import BlobKind, decode_blob, encode_blob
from federated_core.learning.entropy import decode_scaled_symbols, encode_symbols
from federated_core.learning.quantization import MAGNITUDE_MAX, Symbols, quantize, rounding_noise, step_for

STEP_PER_RMS: Final = 4.0
"""``a``: the step of an update over the root mean square of its delta."""

_UPDATE: Final = BlobKind(b"FWUP", struct.Struct("<Bf8s8s"))
_STOCHASTIC_ONE_STEP: Final = 1
"""Codec id; later codecs get their own."""


@dataclass(frozen=True, slots=True, eq=False)
class DecodedUpdate:
    """A delta as ``step * symbols``; an all-zero delta has step 0."""

    step: float
    symbols: Symbols


def encode_update(
    delta: NDArray[np.float32],
    *,
    layout_digest: bytes,
    base_digest: bytes,
    noise_key: bytes,
    step_per_rms: float = STEP_PER_RMS,
) -> bytes:
    """Quantize and write a delta with one step for all of it, unbiased.

    Parameters
    ----------
    delta : float32, shape (n,)
        Local minus global parameters (the update part), clipped if the plan says so.
    layout_digest, base_digest : bytes
        Digests of the layout and of the checkpoint that training started from, at least 8 bytes each.
    noise_key : bytes
        16 bytes, private and new for every round; the same key and delta give the same symbols after a crash.
    step_per_rms : float
        ``a`` of the plan.

    Returns
    -------
    bytes
        The blob. NMSE of one decoded update is about 1.5 at ``a = 4``, and its expectation is ``delta``.

    Raises
    ------
    LocalMisuseError
        If ``delta`` is not finite or an argument is out of bounds.

    References
    ----------
    Alistarh et al., "QSGD", NeurIPS 2017. arXiv:1610.02132
    Mitchell et al., "Optimizing the communication-accuracy trade-off in federated learning with rate-distortion
    theory", 2022. arXiv:2201.02664

    Examples
    --------
    >>> where = {"layout_digest": bytes(32), "base_digest": bytes(32)}
    >>> blob = encode_update(np.float32([0.5, -0.5, 0, 0]), noise_key=bytes(16), **where)
    >>> decode_update(blob, parameter_count=4, size_max=1000, **where).step
    1.4142135381698608
    """
    if min(len(layout_digest), len(base_digest)) < 8:
        raise LocalMisuseError("expected digests of at least 8 bytes")
    step = step_for(delta, step_per_rms)
    symbols = quantize(delta, step, rounding_noise(noise_key, delta.size)) if step else np.zeros(delta.size, np.int32)
    fields = (_STOCHASTIC_ONE_STEP, step, layout_digest[:8], base_digest[:8])
    return encode_blob(_UPDATE, delta.size, fields, encode_symbols(symbols))


def decode_update(
    data: bytes,
    *,
    parameter_count: int,
    layout_digest: bytes,
    base_digest: bytes,
    size_max: int,
    step_per_rms: float = STEP_PER_RMS,
) -> DecodedUpdate:
    """Read an update; every size is bounded by the arguments before it is allocated.

    Parameters
    ----------
    data : bytes
        What a device sent.
    parameter_count : int
        Floats of the update part.
    layout_digest, base_digest : bytes
        What the round expects.
    size_max : int
        Largest blob accepted, in bytes.
    step_per_rms : float
        ``a`` of the plan: no honest symbol exceeds ``sqrt(n) / a + 1``.

    Returns
    -------
    DecodedUpdate
        A finite step and ``parameter_count`` symbols.

    Raises
    ------
    RemoteProtocolError
        If ``data`` is anything else.

    Examples
    --------
    >>> decode_update(b"", parameter_count=4, layout_digest=bytes(32), base_digest=bytes(32), size_max=100)
    Traceback (most recent call last):
    federated_core.errors.RemoteProtocolError: $: expected 34 to 100 bytes, got 0
    """
    fields, body = decode_blob(data, _UPDATE, parameter_count=parameter_count, size_max=size_max)
    codec, step, layout_prefix, base_prefix = fields
    for path, expected, got in (
        ("codec", _STOCHASTIC_ONE_STEP, codec),
        ("layout_digest", layout_digest[:8].hex(), layout_prefix.hex()),
        ("base_digest", base_digest[:8].hex(), base_prefix.hex()),
    ):
        if got != expected:
            raise RemoteProtocolError(f"$.{path}: expected {expected}, got {got}")
    magnitude_max = largest_symbol(parameter_count, step_per_rms)
    return DecodedUpdate(step, decode_scaled_symbols(step, body, parameter_count, magnitude_max=magnitude_max))


def largest_symbol(parameter_count: int, step_per_rms: float) -> int:
    """Largest magnitude that an honest encoder can reach: all of the delta's norm in one value, rounded up."""
    return min(int(math.sqrt(parameter_count) / step_per_rms * (1 + 1e-6)) + 1, MAGNITUDE_MAX)
