"""The device's memory across power cuts: the session's state, what is held, the outbox and the traffic counters.

SQLite with ``synchronous=FULL``: what `save` returned from is on disk.
"""

import sqlite3
from pathlib import Path
from typing import TypeVar

import msgspec

from federated_core.errors import AdapterError
from federated_core.protocol.messages import HeldCheckpoint

FORMAT_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS journal (
    key TEXT PRIMARY KEY, format_version INTEGER NOT NULL, value BLOB NOT NULL, transition_count INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""

V = TypeVar("V")

HELD = msgspec.msgpack.Decoder(HeldCheckpoint)  # Under "held/<task>": what the device has of a task's model.
REASONS = msgspec.msgpack.Decoder(tuple[float, tuple[str, ...]])  # Under "reasons": when judged, and why not eligible.


class Journal:
    """Values by key, written one at a time and found again after a crash."""

    def __init__(self, path: Path) -> None:
        try:
            self._connection = sqlite3.connect(path, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise AdapterError(f"journal {path}: {error}") from error

    def save(self, key: str, value: object) -> None:
        """Write ``value`` under ``key``; on disk when this returns."""
        try:
            self._connection.execute(
                "INSERT INTO journal VALUES (?, ?, ?, 1) ON CONFLICT (key) DO UPDATE SET format_version = "
                "excluded.format_version, value = excluded.value, transition_count = transition_count + 1",
                (key, FORMAT_VERSION, msgspec.msgpack.encode(value)),
            )
        except sqlite3.Error as error:
            raise AdapterError(f"journal: cannot save {key!r}: {error}") from error

    def load(self, key: str, decoder: msgspec.msgpack.Decoder[V]) -> V | None:
        """Return what was saved under ``key``; None if nothing was, or if it is of another format."""
        row = self._connection.execute("SELECT format_version, value FROM journal WHERE key = ?", (key,)).fetchone()
        if row is None or row[0] != FORMAT_VERSION:
            return None
        try:
            return decoder.decode(row[1])
        except msgspec.DecodeError:
            return None  # Written by another version of the agent: begin anew rather than never.

    def keys(self, prefix: str) -> tuple[str, ...]:
        """Return the keys that begin with ``prefix``."""
        rows = self._connection.execute("SELECT key FROM journal WHERE substr(key, 1, ?) = ?", (len(prefix), prefix))
        return tuple(row[0] for row in rows)

    def forget(self, key: str) -> None:
        """Remove a key; one that is not there is no error."""
        try:
            self._connection.execute("DELETE FROM journal WHERE key = ?", (key,))
        except sqlite3.Error as error:
            raise AdapterError(f"journal: cannot forget {key!r}: {error}") from error

    def count(self, name: str, by: int) -> None:
        """Add to a counter."""
        try:
            self._connection.execute(
                "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
                (name, by),
            )
        except sqlite3.Error as error:
            raise AdapterError(f"journal: cannot count {name!r}: {error}") from error

    def counters(self) -> dict[str, int]:
        """Return all counters."""
        return dict(self._connection.execute("SELECT name, value FROM counters").fetchall())

    def close(self) -> None:
        """Close the database."""
        self._connection.close()
