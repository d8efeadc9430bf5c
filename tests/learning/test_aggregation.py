"""Sums in fixed point: exact, independent of order, within a proven range."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federated_core.errors import LocalMisuseError, RemoteProtocolError
from federated_core.learning.aggregation import FixedPointSum, SumCaps
from federated_core.learning.quantization import Symbols

COUNT = 5
CAPS = SumCaps()
Report = tuple[float, Symbols, int]

reports = st.lists(
    st.tuples(
        st.floats(0, 1, width=32),
        st.lists(st.integers(-127, 127), min_size=COUNT, max_size=COUNT).map(lambda row: np.array(row, np.int32)),
        st.integers(1, 10_000),
    ),
    min_size=1,
    max_size=12,
)


def total_of(some: list[Report], caps: SumCaps = CAPS) -> FixedPointSum:
    total = FixedPointSum(COUNT, caps)
    for step, symbols, example_count in some:
        total.add(step, symbols, example_count=example_count)
    return total


@given(reports, st.integers(0, 1 << 32))
def test_the_sum_is_independent_of_order(some: list[Report], seed: int) -> None:
    shuffled = [some[index] for index in np.random.default_rng(seed).permutation(len(some))]
    assert total_of(shuffled).to_bytes() == total_of(some).to_bytes()


@given(reports, st.integers(0, 12))
def test_the_sum_is_independent_of_how_workers_share_it(some: list[Report], cut: int) -> None:
    total = total_of(some[:cut])
    total.merge(total_of(some[cut:]))
    assert total.to_bytes() == total_of(some).to_bytes()


@given(reports)
def test_the_mean_is_the_weighted_mean_of_the_deltas(some: list[Report]) -> None:
    example_count = sum(count for *_, count in some)
    expected = [
        float(sum(Fraction(step) * int(symbols[i]) * count for step, symbols, count in some) / example_count)
        for i in range(COUNT)
    ]
    error_max = len(some) * 2.0 ** -(CAPS.fraction_bits + 1) / example_count
    np.testing.assert_allclose(total_of(some).mean(), expected, rtol=1e-15, atol=error_max)


@pytest.mark.parametrize(
    "caps", [SumCaps(), SumCaps(1, 1e-3, 1, 1), SumCaps(10_000, 1.0, 127, 64), SumCaps(1 << 20, 3.7, 8192, 1000)]
)
def test_the_fullest_sum_that_the_caps_allow_fits(caps: SumCaps) -> None:
    total = FixedPointSum(1, caps)
    largest = np.array([-caps.magnitude_max], np.int32)
    for _ in range(caps.report_count_max):
        total.add(caps.step_max, largest, example_count=caps.example_count_max)
    assert abs(int(total._sums[0])) <= 2**62 + caps.report_count_max
    assert total.mean()[0] == pytest.approx(-caps.magnitude_max * caps.step_max, rel=1e-12)
    with pytest.raises(LocalMisuseError):
        total.add(0.0, largest, example_count=1)


def test_the_range_follows_from_the_caps() -> None:
    # 10^4 x 1 x 127 x 10^3 = 2^30.24: 31 bits before the point leave 31 of 62 after it.
    assert CAPS.fraction_bits == 31
    with pytest.raises(LocalMisuseError):
        SumCaps(1 << 24, 1e9, 1 << 10, 1000)
    with pytest.raises(LocalMisuseError):
        SumCaps(example_count_max=0)


@pytest.mark.parametrize(
    ("step", "symbol", "example_count"),
    [(1.5, 1, 1), (-0.5, 1, 1), (float("nan"), 1, 1), (0.5, 128, 1), (0.5, -128, 1), (0.5, 1, 0), (0.5, 1, 10_001)],
)
def test_a_report_beyond_a_cap_is_refused_and_leaves_no_trace(step: float, symbol: int, example_count: int) -> None:
    total = total_of([(0.5, np.ones(COUNT, np.int32), 3)])
    before = total.to_bytes()
    with pytest.raises(RemoteProtocolError):
        total.add(step, np.full(COUNT, symbol, np.int32), example_count=example_count)
    assert total.to_bytes() == before


def test_a_mean_needs_a_report() -> None:
    with pytest.raises(LocalMisuseError):
        FixedPointSum(COUNT).mean()


def test_sums_of_other_caps_or_too_many_reports_do_not_merge() -> None:
    one = [(0.5, np.ones(COUNT, np.int32), 3)]
    caps = SumCaps(report_count_max=1)
    for other in (total_of(one), FixedPointSum(COUNT + 1, caps), total_of(one, caps)):
        with pytest.raises(LocalMisuseError):
            total_of(one, caps).merge(other)


@given(reports)
def test_a_sum_survives_the_disk(some: list[Report]) -> None:
    total = total_of(some)
    copy = FixedPointSum.from_bytes(total.to_bytes(), parameter_count=COUNT, caps=CAPS)
    assert copy.to_bytes() == total.to_bytes()
    np.testing.assert_array_equal(copy.mean(), total.mean())


@given(reports, st.integers(0, 1000), st.integers(1, 255))
def test_a_damaged_sum_is_refused(some: list[Report], position: int, flip: int) -> None:
    data = bytearray(total_of(some).to_bytes())
    data[position % len(data)] ^= flip
    for damaged in (bytes(data), bytes(data[:-1]), b""):
        with pytest.raises(RemoteProtocolError):
            FixedPointSum.from_bytes(damaged, parameter_count=COUNT, caps=CAPS)


def test_a_sum_under_other_caps_is_refused() -> None:
    data = total_of([(0.5, np.ones(COUNT, np.int32), 3)]).to_bytes()
    with pytest.raises(RemoteProtocolError, match="caps"):
        FixedPointSum.from_bytes(data, parameter_count=COUNT, caps=SumCaps(report_count_max=7))
