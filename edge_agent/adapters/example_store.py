"""The device's examples: labelled tensors with their time, each assigned for life to training or holdout.

The split is by blocks of time with a gap, because neighbours in time are near copies of each other: a random split
would let a model be tested on what it has all but seen.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_agent.config import StoreSettings
from federated_core.errors import AdapterError, LocalMisuseError

Partition = Literal["train", "holdout", "gap"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS examples (
    id INTEGER PRIMARY KEY, time_s REAL NOT NULL, label INTEGER NOT NULL, partition TEXT NOT NULL, data BLOB NOT NULL,
    UNIQUE (time_s, label, data)
);
CREATE INDEX IF NOT EXISTS by_partition ON examples (partition, id);
CREATE TABLE IF NOT EXISTS tensors (name TEXT PRIMARY KEY, shape TEXT NOT NULL) WITHOUT ROWID;
"""


def assign_partitions(time_s: NDArray[np.float64], settings: StoreSettings) -> tuple[Partition, ...]:
    """Return the partition of each example by its time alone, so that it is the same for life.

    Blocks of ``block_s`` alternate: one in ``holdout_every`` is holdout. An example within ``gap_s`` of a border
    between training and holdout is in neither.
    """
    period_s = settings.holdout_every * settings.block_s
    border_s = period_s - settings.block_s  # The last block of each period is holdout.
    phase_s = time_s % period_s
    is_holdout = phase_s >= border_s
    since_border_s = np.where(is_holdout, phase_s - border_s, phase_s)
    until_border_s = np.where(is_holdout, period_s - phase_s, border_s - phase_s)
    is_gap = (since_border_s < settings.gap_s) | (until_border_s <= settings.gap_s)
    return tuple(
        "gap" if gap else "holdout" if holdout else "train" for gap, holdout in zip(is_gap, is_holdout, strict=True)
    )


class ExampleStore:
    """One input tensor ``x`` (float32, all examples of one shape) and one integer label an example."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._connect() as connection:
            connection.executescript(_SCHEMA)

    def add(
        self, x: NDArray[np.float32], label: NDArray[np.int64], time_s: NDArray[np.float64], settings: StoreSettings
    ) -> int:
        """Store examples, shape (n, ...); return how many were new. All or nothing."""
        if not (len(x) == len(label) == len(time_s)):
            raise LocalMisuseError(
                f"examples: expected as many labels and times as inputs, got {len(x)}, {len(label)}, {len(time_s)}"
            )
        if not (np.isfinite(x).all() and np.isfinite(time_s).all()):
            raise LocalMisuseError("examples: expected finite numbers, got NaN or infinity")
        shape = ",".join(str(size) for size in x.shape[1:])
        data = np.ascontiguousarray(x, dtype="<f4")
        rows = [
            (float(at), int(value), partition, tensor.tobytes())
            for at, value, partition, tensor in zip(
                time_s, label, assign_partitions(time_s, settings), data, strict=True
            )
        ]
        with self._connect() as connection:
            known = connection.execute("SELECT shape FROM tensors WHERE name = 'x'").fetchone()
            if known is not None and known[0] != shape:
                raise LocalMisuseError(f"examples: expected shape ({known[0]}) as stored before, got ({shape})")
            connection.execute("INSERT OR IGNORE INTO tensors VALUES ('x', ?)", (shape,))
            count_before = connection.total_changes
            connection.executemany(
                "INSERT OR IGNORE INTO examples (time_s, label, partition, data) VALUES (?, ?, ?, ?)", rows
            )
            return connection.total_changes - count_before

    def load(self, partition: Partition, count_max: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the newest ``count_max`` examples of a partition in order of arrival: x (n, ...) and labels (n,)."""
        with self._connect() as connection:
            known = connection.execute("SELECT shape FROM tensors WHERE name = 'x'").fetchone()
            shape = tuple(int(size) for size in known[0].split(",") if size) if known else ()
            (stored_count,) = connection.execute(
                "SELECT count(*) FROM examples WHERE partition = ?", (partition,)
            ).fetchone()
            count = min(stored_count, count_max)
            x, label = np.empty((count, *shape), np.float32), np.empty(count, np.int64)
            rows = connection.execute(
                "SELECT label, data FROM (SELECT id, label, data FROM examples WHERE partition = ? "
                "ORDER BY id DESC LIMIT ?) ORDER BY id",
                (partition, count),
            )
            for place, (value, data) in enumerate(rows):  # One at a time: a board has no room for them twice.
                label[place] = value
                x[place] = np.frombuffer(data, "<f4").reshape(shape)
        return x, label

    def counts(self) -> dict[str, int]:
        """Return the number of examples by partition."""
        with self._connect() as connection:
            return dict(connection.execute("SELECT partition, count(*) FROM examples GROUP BY partition").fetchall())

    @contextlib.contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = sqlite3.connect(self._path, timeout=30.0)
            connection.execute("PRAGMA journal_mode=WAL")
            try:
                with connection:
                    yield connection
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise AdapterError(f"example store {self._path}: {error}") from error


def read_examples_file(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64]]:
    """Return ``x``, ``y`` and ``time_s`` of an .npz file; without ``time_s`` examples are a second apart."""
    arrays = _read_arrays(path, {"x", "y"}, {"time_s"})
    x, y = arrays["x"].astype(np.float32), arrays["y"].astype(np.int64)
    return x, y, arrays.get("time_s", np.arange(len(x))).astype(np.float64)


def read_inputs_file(path: Path) -> NDArray[np.float32]:
    """Return ``x`` of an .npz file, which may lack the rest."""
    return _read_arrays(path, {"x"}, set())["x"].astype(np.float32)


def _read_arrays(path: Path, needed: set[str], optional: set[str]) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if needed - set(archive.files):
                names = " and ".join(f"'{name}'" for name in sorted(needed))
                found = ", ".join(archive.files) or "none"
                raise LocalMisuseError(f"{path}: expected arrays {names}, got {found}")
            return {name: archive[name] for name in needed | optional if name in archive.files}
    except (OSError, ValueError) as error:
        raise LocalMisuseError(f"{path}: not an .npz file of plain arrays ({error})") from error
