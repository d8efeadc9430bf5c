"""The example store: a split by blocks of time, for life; nothing twice, nothing broken."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_agent.adapters.example_store import ExampleStore, Partition, assign_partitions, read_examples_file
from edge_agent.config import StoreSettings
from federated_core.errors import LocalMisuseError

BLOCKS = StoreSettings(block_s=10.0, holdout_every=3, gap_s=2.0)
NO_GAP = StoreSettings(block_s=10.0, holdout_every=2, gap_s=0.0)


def times(*seconds: float) -> NDArray[np.float64]:
    return np.array(seconds, np.float64)


def examples(count: int, value: float = 1.0) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64]]:
    """Make ``count`` examples of shape (2, 3), a second apart; the first number of each is its place."""
    x = np.full((count, 2, 3), value, np.float32)
    x[:, 0, 0] = np.arange(count)
    return x, np.arange(count) % 4, np.arange(count, dtype=np.float64)


def test_one_block_in_three_is_held_out_with_a_gap_on_both_sides_of_its_borders() -> None:
    #            |train    |train      |gap        holdout      gap        |train
    assert assign_partitions(
        times(0, 2.5, 9, 10, 17.5, 18.5, 19, 20, 21.5, 22.5, 27.5, 28.5, 30, 31.5, 32.5), BLOCKS
    ) == (
        *("gap", "train", "train", "train", "train", "gap", "gap"),  # Before 0 s lies a holdout block as well.
        *("gap", "gap", "holdout", "holdout", "gap"),
        *("gap", "gap", "train"),
    )


def test_a_border_between_two_training_blocks_has_no_gap() -> None:
    assert set(assign_partitions(times(9.9, 10.0, 10.1), BLOCKS)) == {"train"}


def test_without_a_gap_every_example_is_used() -> None:
    assert assign_partitions(times(0, 9.9, 10, 19.9, 20), NO_GAP) == ("train", "train", "holdout", "holdout", "train")


SETTINGS = st.builds(
    StoreSettings,
    block_s=st.sampled_from([1.0, 5.0, 8.0]),
    holdout_every=st.integers(2, 5),
    gap_s=st.sampled_from([0.0, 1.0, 4.0, 6.0, 20.0]),
)


@given(SETTINGS, st.lists(st.integers(0, 400).map(lambda quarter: quarter / 4), min_size=1, max_size=60))
def test_no_trained_example_is_within_twice_the_gap_of_a_held_out_one(settings: StoreSettings, at: list[float]) -> None:
    partitions = assign_partitions(times(*at), settings)
    trained, held_out = (
        times(*(second for second, partition in zip(at, partitions, strict=True) if partition == wanted))
        for wanted in ("train", "holdout")
    )
    distances = np.abs(trained[:, None] - held_out[None, :])
    assert distances.size == 0 or distances.min() >= 2 * settings.gap_s


@given(SETTINGS, st.lists(st.floats(0, 1e6), min_size=2, max_size=30))
def test_an_example_s_partition_depends_on_its_own_time_alone(settings: StoreSettings, at: list[float]) -> None:
    together = assign_partitions(times(*at), settings)
    assert together == tuple(assign_partitions(times(second), settings)[0] for second in at)


def test_examples_come_back_as_they_were_and_where_they_belong(tmp_path: Path) -> None:
    store = ExampleStore(tmp_path / "examples.db")
    x, label, time_s = examples(20)
    assert store.add(x, label, time_s, NO_GAP) == 20
    assert store.counts() == {"train": 10, "holdout": 10}
    store = ExampleStore(tmp_path / "examples.db")
    placed: tuple[tuple[Partition, slice], ...] = (("train", slice(0, 10)), ("holdout", slice(10, 20)))
    for partition, place in placed:
        loaded, loaded_label = store.load(partition, 1000)
        assert loaded.dtype == np.float32
        np.testing.assert_array_equal(loaded, x[place])
        np.testing.assert_array_equal(loaded_label, label[place])


def test_the_newest_examples_are_taken_in_order_of_arrival(tmp_path: Path) -> None:
    store = ExampleStore(tmp_path / "examples.db")
    store.add(*examples(10), NO_GAP)
    loaded, label = store.load("train", 3)
    assert loaded[:, 0, 0].tolist() == [7.0, 8.0, 9.0]
    assert label.tolist() == [3, 0, 1]


def test_an_example_that_comes_again_is_stored_once(tmp_path: Path) -> None:
    store = ExampleStore(tmp_path / "examples.db")
    x, label, time_s = examples(6)
    assert store.add(x, label, time_s, NO_GAP) == 6
    assert store.add(x, label, time_s, NO_GAP) == 0
    assert store.add(x + 1, label, time_s, NO_GAP) == 6


def test_an_example_keeps_its_partition_when_the_settings_change(tmp_path: Path) -> None:
    store = ExampleStore(tmp_path / "examples.db")
    store.add(*examples(20), NO_GAP)
    before = store.counts()
    store.add(*examples(20), BLOCKS)
    assert store.counts() == before


def test_an_empty_store_gives_no_examples(tmp_path: Path) -> None:
    x, label = ExampleStore(tmp_path / "examples.db").load("train", 10)
    assert (len(x), len(label)) == (0, 0)


def test_a_partition_without_examples_keeps_their_shape(tmp_path: Path) -> None:
    store = ExampleStore(tmp_path / "examples.db")
    store.add(*examples(5), NO_GAP)
    x, _ = store.load("holdout", 10)
    assert x.shape == (0, 2, 3)


def test_another_shape_is_refused_whole(tmp_path: Path) -> None:
    store = ExampleStore(tmp_path / "examples.db")
    x, label, time_s = examples(5)
    store.add(x, label, time_s, NO_GAP)
    with pytest.raises(LocalMisuseError, match=r"expected shape \(2,3\) as stored before, got \(2,2\)"):
        store.add(x[:, :, :2], label, time_s, NO_GAP)
    assert store.counts() == {"train": 5}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_examples_that_are_not_finite_are_refused_whole(tmp_path: Path, bad: float) -> None:
    store = ExampleStore(tmp_path / "examples.db")
    x, label, time_s = examples(5)
    x[3, 1, 1] = bad
    with pytest.raises(LocalMisuseError, match="expected finite numbers"):
        store.add(x, label, time_s, NO_GAP)
    time_s[2] = bad
    with pytest.raises(LocalMisuseError, match="expected finite"):
        store.add(np.zeros_like(x), label, time_s, NO_GAP)
    assert store.counts() == {}


def test_as_many_labels_and_times_as_inputs_are_expected(tmp_path: Path) -> None:
    x, label, time_s = examples(5)
    with pytest.raises(LocalMisuseError, match="got 5, 4, 5"):
        ExampleStore(tmp_path / "examples.db").add(x, label[:4], time_s, NO_GAP)


def test_a_file_of_examples_is_read(tmp_path: Path) -> None:
    x, label, time_s = examples(4)
    np.savez(tmp_path / "some.npz", x=x, y=label, time_s=time_s + 7)
    np.savez(tmp_path / "timeless.npz", x=x, y=label)
    for name, expected in (("some.npz", time_s + 7), ("timeless.npz", time_s)):
        loaded = read_examples_file(tmp_path / name)
        for one, other in zip(loaded, (x, label, expected), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_file_of_anything_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", inputs=np.zeros(3))
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object), y=np.zeros(1))
    with pytest.raises(LocalMisuseError, match=r"not an \.npz file"):
        read_examples_file(tmp_path / "text.npz")
    with pytest.raises(LocalMisuseError, match="expected arrays 'x' and 'y', got inputs"):
        read_examples_file(tmp_path / "other.npz")
    with pytest.raises(LocalMisuseError, match=r"not an \.npz file of plain arrays"):  # Objects are pickles.
        read_examples_file(tmp_path / "objects.npz")
    with pytest.raises(LocalMisuseError, match="absent"):
        read_examples_file(tmp_path / "absent.npz")
