"""Versions on a lattice: the same bits by every path, never far from the truth, and cheap to follow."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federated_core.errors import LocalMisuseError, RemoteProtocolError
from federated_core.learning.clipping import l2_norm
from federated_core.learning.entropy import encode_symbols
from federated_core.learning.lattice import (
    COARSE_ROUND_COUNT_MAX,
    LEVEL_MAX,
    Keyframe,
    LatticeDelta,
    LatticePosition,
    LatticePublisher,
    apply_delta,
    compose,
    open_lattice,
    publish,
    start_of,
    vector_at,
)
from federated_core.learning.parameters import Vector

COUNT = 500


def published(publisher: LatticePublisher) -> Vector:
    return vector_at(publisher.keyframe, publisher.position)


def training_run(round_count: int, *, shrink: float, seed: int = 0, count: int = COUNT) -> list[Vector]:
    """True parameters of a run whose changes shrink by a factor each round."""
    rng = np.random.default_rng(seed)
    parameters = rng.standard_normal(count).astype(np.float32) * np.float32(0.1)
    run = [parameters]
    for turn in range(round_count):
        change = 0.01 * shrink**turn * rng.standard_t(4, count)
        run.append((run[-1] + change).astype(np.float32))
    return run


def publish_all(run: list[Vector]) -> tuple[list[LatticePublisher], list[LatticeDelta]]:
    publishers, deltas = [open_lattice(run[0], version=0)], []
    for parameters in run[1:]:
        publisher, delta = publish(publishers[-1], parameters)
        publishers.append(publisher)
        deltas.append(delta)
    return publishers, deltas


@given(st.floats(0.5, 1.1), st.integers(0, 100), st.lists(st.integers(1, 6), min_size=1, max_size=8))
@settings(deadline=None)
def test_composed_deltas_lead_to_the_same_bits_as_the_chain(shrink: float, seed: int, jumps: list[int]) -> None:
    publishers, deltas = publish_all(training_run(sum(jumps), shrink=shrink, seed=seed, count=40))
    keyframe = publishers[0].keyframe
    one_by_one = by_jumps = start_of(keyframe)
    version = 0
    for jump in jumps:
        for delta in deltas[version : version + jump]:
            one_by_one, chained = apply_delta(keyframe, one_by_one, delta)
        by_jumps, jumped = apply_delta(keyframe, by_jumps, compose(deltas[version : version + jump]))
        version += jump
        assert jumped.tobytes() == chained.tobytes() == published(publishers[version]).tobytes()
        assert by_jumps.version == version
        np.testing.assert_array_equal(by_jumps.k, one_by_one.k)
    _, newcomer = apply_delta(keyframe, start_of(keyframe), compose(deltas))
    assert newcomer.tobytes() == published(publishers[-1]).tobytes()


def test_deltas_compose_across_a_halving() -> None:
    publishers, deltas = publish_all(training_run(20, shrink=0.5))
    halved = [index for index, delta in enumerate(deltas) if delta.halving_count]
    assert halved
    keyframe = publishers[0].keyframe
    before = publishers[halved[0] - 1]
    _, vector = apply_delta(keyframe, before.position, compose(deltas[halved[0] - 1 :]))
    assert vector.tobytes() == published(publishers[-1]).tobytes()


def test_halving_the_step_moves_no_version() -> None:
    keyframe = open_lattice(training_run(0, shrink=1.0)[0], version=0).keyframe
    k = np.random.default_rng(0).integers(-1000, 1000, COUNT).astype(np.int32)
    coarse = LatticePosition(keyframe.epoch, 1, float(np.float32(0.0123)), k)
    fine = replace(coarse, step=coarse.step / 2, k=2 * k)
    assert vector_at(keyframe, coarse).tobytes() == vector_at(keyframe, fine).tobytes()


@pytest.mark.parametrize("shrink", [1.0, 0.9, 0.6])
def test_what_is_published_stays_within_half_a_step_of_the_truth(shrink: float) -> None:
    for publisher in publish_all(training_run(60, shrink=shrink))[0][1:]:
        error = np.abs(published(publisher).astype(np.float64) - publisher.parameters)
        assert error.max() <= publisher.position.step / 2 * (1 + 1e-6) + 1e-7


def test_error_feedback_publishes_in_the_end_what_single_rounds_are_too_small_for() -> None:
    # Step 4 x rms of the first change. The same small change, a tenth of a step, ten times is one whole step.
    start = np.zeros(16, np.float32)
    first = start.copy()
    first[0] = 1.0  # rms 1/4, step 1.
    publisher, _ = publish(open_lattice(start, version=0), first)
    assert publisher.position.step == 1.0
    parameters = first
    for _ in range(10):
        parameters = (parameters + np.float32(0.1)).astype(np.float32)
        publisher, _ = publish(publisher, parameters)
    np.testing.assert_array_equal(published(publisher), np.rint(parameters))
    assert published(publisher)[1] == 1.0


def test_without_error_feedback_the_errors_would_grow_and_with_it_they_do_not() -> None:
    run = training_run(100, shrink=1.0)
    publishers, _ = publish_all(run)
    step = publishers[-1].position.step
    bound = step / np.sqrt(12) * np.sqrt(COUNT)  # A uniform error of one step.
    residuals = [l2_norm(p.parameters - published(p)) for p in publishers[20:]]
    assert max(residuals) < 1.2 * bound
    rounded = run[0].astype(np.float64)
    for before, after in pairwise(run):
        rounded += np.rint((after.astype(np.float64) - before) / step) * step
    assert np.linalg.norm(run[-1] - rounded) > 3 * bound


def test_the_step_is_chosen_at_the_first_change_and_kept() -> None:
    run = training_run(30, shrink=1.0)
    publishers, deltas = publish_all(run)
    change = run[1].astype(np.float64) - run[0]
    assert publishers[1].position.step == pytest.approx(4 * np.sqrt(np.mean(change**2)), rel=1e-6)
    assert {delta.step for delta in deltas} == {publishers[1].position.step}


def test_a_round_without_change_publishes_an_empty_delta_and_chooses_no_step() -> None:
    parameters = training_run(0, shrink=1.0)[0]
    publisher, delta = publish(open_lattice(parameters, version=7), parameters)
    assert (delta.from_version, delta.to_version, delta.step) == (7, 8, 0.0)
    assert not delta.symbols.any()
    position, vector = apply_delta(publisher.keyframe, start_of(publisher.keyframe), delta)
    assert vector.tobytes() == parameters.tobytes()
    publisher, delta = publish(publisher, training_run(1, shrink=1.0)[1])
    assert delta.step > 0
    apply_delta(publisher.keyframe, position, delta)


def test_the_step_is_halved_after_three_coarse_rounds_and_not_before() -> None:
    # The first change is 1 in 16 values: rms 1/4, step 1. A change of 0.03 everywhere makes that coarse
    # (1 > 32 x 0.03), one of 0.04 does not (1 < 32 x 0.04).
    def step_after(changes: list[float]) -> float:
        parameters = np.zeros(16, np.float32)
        publisher = open_lattice(parameters, version=0)
        parameters = parameters.copy()
        parameters[0] = 1.0
        publisher, _ = publish(publisher, parameters)
        for change in changes:
            parameters = (parameters + np.float32(change)).astype(np.float32)
            publisher, _ = publish(publisher, parameters)
        return publisher.position.step

    assert COARSE_ROUND_COUNT_MAX == 3
    assert step_after([0.04] * 9) == 1.0
    assert step_after([0.03] * 2) == 1.0
    assert step_after([0.03, 0.03, 0.04, 0.03, 0.03]) == 1.0
    assert step_after([0.03] * 3) == 0.5
    assert step_after([0.03, 0.0, 0.0, 0.0]) == 1.0


def test_a_new_lattice_flushes_to_the_last_bit() -> None:
    publishers, _ = publish_all(training_run(10, shrink=0.9))
    true = publishers[-1].parameters
    assert published(publishers[-1]).tobytes() != true.tobytes()
    flushed = open_lattice(true, version=11)
    assert published(flushed).tobytes() == true.tobytes()
    assert flushed.keyframe.epoch != publishers[-1].keyframe.epoch


def test_the_same_parameters_published_again_later_are_another_lattice() -> None:
    parameters = training_run(0, shrink=1.0)[0]
    assert open_lattice(parameters, version=0).keyframe.epoch != open_lattice(parameters, version=9).keyframe.epoch


def test_a_negative_zero_in_the_keyframe_does_not_depend_on_the_path() -> None:
    publisher = open_lattice(np.array([-0.0, 1.0], np.float32), version=0)
    assert publisher.keyframe.vector.tobytes() == published(publisher).tobytes()


def test_product_and_sum_are_rounded_one_after_the_other() -> None:
    rng = np.random.default_rng(1)
    base = rng.standard_normal(1000).astype(np.float32)
    k = rng.integers(-5000, 5000, 1000).astype(np.int32)
    step = float(np.float32(0.00123))
    keyframe = Keyframe(0, base)
    vector = vector_at(keyframe, LatticePosition(keyframe.epoch, 1, step, k))
    separately = [np.float32(base[i] + np.float32(np.float32(step) * np.float32(k[i]))) for i in range(1000)]
    np.testing.assert_array_equal(vector, separately)
    fused = (base.astype(np.float64) + step * k).astype(np.float32)
    assert (vector != fused).any()  # What a fused multiply-add would give on some platforms.


def test_a_publisher_rebuilt_from_what_was_stored_publishes_the_same_bytes() -> None:
    run = training_run(12, shrink=0.6)
    publishers, deltas = publish_all(run)
    for turn in range(11):
        stored = publishers[turn + 1]
        rebuilt = LatticePublisher(
            Keyframe(0, stored.keyframe.vector.copy()),
            replace(stored.position, k=stored.position.k.copy()),
            run[turn + 1].copy(),
            stored.coarse_round_count,
        )
        _, delta = publish(rebuilt, run[turn + 2])
        assert delta.result == deltas[turn + 1].result
        np.testing.assert_array_equal(delta.symbols, deltas[turn + 1].symbols)


def test_a_catch_up_costs_much_less_than_the_chain_it_replaces() -> None:
    # The note's figure for participation 0.1 is 0.66 against 2.5 bits; here nine rounds of independent changes.
    _, deltas = publish_all(training_run(10, shrink=0.9, count=50_000))
    composed = 8 * len(encode_symbols(compose(deltas[1:]).symbols)) / 50_000
    chain = sum(8 * len(encode_symbols(delta.symbols)) / 50_000 for delta in deltas[1:])
    assert composed < chain / 2


@pytest.mark.parametrize(
    "parameters", [np.zeros(3, np.float32), np.full(4, np.nan, np.float32), np.array([3e38, 0, 0, 0], np.float32)]
)
def test_parameters_that_no_lattice_holds_are_refused(parameters: Vector) -> None:
    publisher, _ = publish(open_lattice(np.zeros(4, np.float32), version=0), np.full(4, 1e-6, np.float32))
    with pytest.raises(LocalMisuseError):
        publish(publisher, parameters)


def test_deltas_that_do_not_follow_each_other_do_not_compose() -> None:
    _, deltas = publish_all(training_run(3, shrink=1.0))
    for wrong in ([], [deltas[0], deltas[2]], [deltas[1], deltas[0]]):
        with pytest.raises(LocalMisuseError):
            compose(wrong)
    with pytest.raises(LocalMisuseError):
        compose([deltas[0], replace(deltas[1], epoch=bytes(8))])
    wide = replace(deltas[1], symbols=np.full(COUNT, LEVEL_MAX, np.int32), halving_count=1)
    with pytest.raises(LocalMisuseError, match="start over"):
        compose([replace(deltas[0], symbols=np.full(COUNT, LEVEL_MAX, np.int32)), wide])


def test_a_delta_that_is_not_for_this_position_is_refused_by_name() -> None:
    publishers, deltas = publish_all(training_run(3, shrink=1.0))
    keyframe, position, delta = publishers[0].keyframe, publishers[2].position, deltas[2]
    apply_delta(keyframe, position, delta)
    for path, wrong in (
        ("epoch", replace(delta, epoch=bytes(8))),
        ("from_version", deltas[1]),
        ("symbols", replace(delta, symbols=delta.symbols[1:])),
        ("step", replace(delta, step=delta.step / 2)),
        ("step", replace(delta, halving_count=1)),
        ("symbols", replace(delta, symbols=np.full(COUNT, LEVEL_MAX, np.int32))),
        ("result", replace(delta, result=bytes(8))),
        ("result", replace(delta, symbols=-delta.symbols)),
    ):
        with pytest.raises(RemoteProtocolError, match=rf"\$\.{path}"):
            apply_delta(keyframe, position, wrong)
    with pytest.raises(RemoteProtocolError, match="epoch"):
        apply_delta(Keyframe(0, keyframe.vector + np.float32(1)), position, delta)


def test_a_delta_cannot_lead_to_infinity() -> None:
    keyframe = Keyframe(0, np.full(2, 3e38, np.float32))
    delta = LatticeDelta(keyframe.epoch, 0, 1, 0, 3e38, np.ones(2, np.int32), bytes(8))
    with pytest.raises(RemoteProtocolError, match="result"), np.errstate(over="ignore"):
        apply_delta(keyframe, start_of(keyframe), delta)
