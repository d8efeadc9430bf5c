"""Weighted sums of updates in fixed point: exact, independent of order, mergeable across workers."""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from federated_core.errors import LocalMisuseError, RemoteProtocolError
from federated_core.learning.quantization import Symbols

_SUM_BITS: Final = 62
"""An int64 holds 63; one stays free for the halves that rounding adds."""
_CAP_MAX: Final = (1 << 32) - 1
_MAGIC: Final = b"FWSM"
_FORMAT_VERSION: Final = 1
_HEADER: Final = struct.Struct("<4sBIIdIIQI")


@dataclass(frozen=True, slots=True)
class SumCaps:
    """What one report and one sum may hold; from these follows that no sum ever overflows.

    Raises
    ------
    LocalMisuseError
        If a cap is out of bounds, or all together leave fewer than 0 bits after the point.
    """

    example_count_max: int = 10_000
    """Largest weight of one report."""
    step_max: float = 1.0
    """Largest step of one report."""
    magnitude_max: int = 127
    """Largest symbol of one report."""
    report_count_max: int = 1000
    """Most reports in one sum."""

    def __post_init__(self) -> None:
        counts = (self.example_count_max, self.magnitude_max, self.report_count_max)
        if min(counts) < 1 or max(counts) > _CAP_MAX or not 0 < self.step_max < math.inf:
            raise LocalMisuseError(f"expected positive caps of at most {_CAP_MAX} and a finite step, got {self}")
        if self.fraction_bits < 0:
            raise LocalMisuseError(f"expected caps whose product is below 2^{_SUM_BITS}, got {self}")

    @property
    def fraction_bits(self) -> int:
        """``G``, bits after the binary point: the largest sum stays below 2^62."""
        largest_sum = self.example_count_max * self.step_max * self.magnitude_max * self.report_count_max
        return _SUM_BITS - math.frexp(largest_sum)[1]


class FixedPointSum:
    """The running sum ``sum_k n_k * step_k * q_k`` of one round, as int64 multiples of ``2^-G``.

    Each term is rounded once, by at most ``2^-(G + 1)``; from there on everything is integer addition, so the order
    of reports and the way they are spread over workers leave no trace in the bytes. Memory does not grow with
    the number of reports.

    Parameters
    ----------
    parameter_count : int
        Floats of the update part.
    caps : SumCaps
        Bounds of each report and of their number.

    Examples
    --------
    >>> total = FixedPointSum(2)
    >>> total.add(0.5, np.int32([2, 0]), example_count=1)
    >>> total.add(0.25, np.int32([-4, 4]), example_count=3)
    >>> total.mean().tolist()  # (1 * 1 - 3 * 1) / 4 and (0 + 3 * 1) / 4
    [-0.5, 0.75]
    """

    def __init__(self, parameter_count: int, caps: SumCaps = SumCaps()) -> None:
        self.caps = caps
        self.report_count = 0
        self.example_count = 0
        self._sums = np.zeros(parameter_count, np.int64)

    def add(self, step: float, symbols: Symbols, *, example_count: int) -> None:
        """Add one report, or raise and leave the sum as it was.

        Parameters
        ----------
        step : float
            Step of the update, possibly made smaller by the norm gate.
        symbols : int32, shape (parameter_count,)
            Symbols of the update.
        example_count : int
            Weight of the report.

        Raises
        ------
        RemoteProtocolError
            If the report is beyond a cap.
        LocalMisuseError
            If ``symbols`` have another shape, or the sum is full.
        """
        caps = self.caps
        if symbols.shape != self._sums.shape:
            raise LocalMisuseError(f"expected symbols of shape {self._sums.shape}, got {symbols.shape}")
        if self.report_count >= caps.report_count_max:
            raise LocalMisuseError(f"expected at most {caps.report_count_max} reports in one sum")
        if not 1 <= example_count <= caps.example_count_max:
            raise RemoteProtocolError(f"$.example_count: expected 1 to {caps.example_count_max}, got {example_count}")
        if not 0 <= step <= caps.step_max:
            raise RemoteProtocolError(f"$.step: expected 0 to {caps.step_max}, got {step}")
        lowest, highest = int(symbols.min(initial=0)), int(symbols.max(initial=0))
        if max(-lowest, highest) > caps.magnitude_max:
            raise RemoteProtocolError(f"$.symbols: expected at most {caps.magnitude_max}, got {lowest} to {highest}")
        levels = np.arange(lowest, highest + 1, dtype=np.float64)
        terms = np.rint(np.ldexp(example_count * step * levels, caps.fraction_bits)).astype(np.int64)
        self._sums += terms[symbols - lowest]
        self.report_count += 1
        self.example_count += example_count

    def merge(self, other: FixedPointSum) -> None:
        """Add the reports of ``other``, a sum with the same caps over other reports of the same round.

        Raises
        ------
        LocalMisuseError
            If the two do not belong together, or hold too many reports together.
        """
        if other.caps != self.caps or other._sums.shape != self._sums.shape:
            raise LocalMisuseError("expected a sum with the same caps and parameter count")
        if self.report_count + other.report_count > self.caps.report_count_max:
            raise LocalMisuseError(f"expected at most {self.caps.report_count_max} reports in one sum")
        self._sums += other._sums
        self.report_count += other.report_count
        self.example_count += other.example_count

    def mean(self) -> NDArray[np.float64]:
        """The aggregate: ``sum_k (n_k / n) * delta_k``.

        Returns
        -------
        float64, shape (parameter_count,)
            The same bits for the same set of reports.

        Raises
        ------
        LocalMisuseError
            If there is no report.

        References
        ----------
        McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017,
        algorithm 1. arXiv:1602.05629
        """
        if not self.report_count:
            raise LocalMisuseError("expected at least one report, got none")
        return np.ldexp(self._sums.astype(np.float64), -self.caps.fraction_bits) / self.example_count

    def to_bytes(self) -> bytes:
        """Write the sum, for a worker's answer or for the disk: the same bytes for the same set of reports."""
        caps = self.caps
        header = _HEADER.pack(
            _MAGIC,
            _FORMAT_VERSION,
            self._sums.size,
            caps.example_count_max,
            caps.step_max,
            caps.magnitude_max,
            caps.report_count_max,
            self.example_count,
            self.report_count,
        )
        body = header + self._sums.astype("<i8", copy=False).tobytes()
        return body + hashlib.sha256(body).digest()

    @classmethod
    def from_bytes(cls, data: bytes, *, parameter_count: int, caps: SumCaps) -> FixedPointSum:
        """Read a sum of ``parameter_count`` floats under ``caps``.

        Raises
        ------
        RemoteProtocolError
            If ``data`` is torn, damaged or another sum's.
        """
        total = cls(parameter_count, caps)
        body, digest = data[:-32], data[-32:]
        if len(body) != _HEADER.size + 8 * parameter_count or hashlib.sha256(body).digest() != digest:
            raise RemoteProtocolError(f"$: expected a whole sum of {parameter_count} parameters, got {len(data)} bytes")
        magic, version, count, examples_max, step_max, magnitude_max, reports_max, examples, reports = (
            _HEADER.unpack_from(body)
        )
        if (magic, version, count) != (_MAGIC, _FORMAT_VERSION, parameter_count):
            raise RemoteProtocolError(f"$: expected a sum of format {_FORMAT_VERSION}, got {body[:5]!r}")
        if SumCaps(examples_max, step_max, magnitude_max, reports_max) != caps:
            raise RemoteProtocolError(f"$.caps: expected {caps}, got others")
        if not reports <= examples <= reports * caps.example_count_max or reports > caps.report_count_max:
            raise RemoteProtocolError(f"$.example_count: expected counts within the caps, got {examples} in {reports}")
        total.report_count, total.example_count = reports, examples
        total._sums += np.frombuffer(body, "<i8", offset=_HEADER.size)
        return total
