"""The journal: what was saved is found again, and what another version wrote is passed over."""

import sqlite3
from pathlib import Path

import msgspec
import pytest

from edge_agent import session
from edge_agent.adapters.journal import FORMAT_VERSION, HELD, Journal
from federated_core.errors import AdapterError
from federated_core.protocol.messages import CheckpointReference, HeldCheckpoint

HELD_TASK = HeldCheckpoint("gestures", bytes(32), CheckpointReference(3, bytes(32)))
STATE = session.CheckedIn(b"check-in")


def reopened(path: Path, journal: Journal) -> Journal:
    journal.close()
    return Journal(path)


def test_what_was_saved_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path)
    assert journal.load("session", session.STATES) is None
    journal.save("session", session.Resting())
    journal.save("session", STATE)
    journal.save("held/gestures", HELD_TASK)
    journal.count("protocol_errors", 2)
    journal = reopened(path, journal)
    journal.count("protocol_errors", 3)
    assert journal.load("session", session.STATES) == STATE
    assert journal.load("held/gestures", HELD) == HELD_TASK
    assert journal.counters() == {"protocol_errors": 5}


def test_what_was_saved_is_there_for_who_opens_it_after_a_kill(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    journal.save("session", STATE)
    other = Journal(tmp_path / "journal.db")  # The first was never closed.
    assert other.load("session", session.STATES) == STATE


def test_keys_are_listed_by_their_prefix_and_forgotten(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    for key in ("held/a", "held/b", "heldover", "session"):
        journal.save(key, STATE)
    assert sorted(journal.keys("held/")) == ["held/a", "held/b"]
    journal.forget("held/a")
    journal.forget("held/never-there")
    assert journal.keys("held/") == ("held/b",)


def test_a_state_of_another_format_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path)
    journal.save("session", STATE)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE journal SET format_version = ?", (FORMAT_VERSION + 1,))
    assert reopened(path, journal).load("session", session.STATES) is None


@pytest.mark.parametrize("value", [msgspec.msgpack.encode({"type": "Dreaming"}), b"\xc1", b"", b"\xa1\xff"])
def test_a_state_that_this_version_cannot_read_is_passed_over(tmp_path: Path, value: bytes) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path)
    journal.save("session", STATE)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE journal SET value = ?", (value,))
    assert reopened(path, journal).load("session", session.STATES) is None


def test_transitions_are_counted(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    for _ in range(3):
        journal.save("session", STATE)
    with sqlite3.connect(tmp_path / "journal.db") as connection:
        assert connection.execute("SELECT transition_count FROM journal").fetchall() == [(3,)]


def test_a_folder_that_is_not_there_is_the_world_s_fault(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="journal"):
        Journal(tmp_path / "nowhere" / "journal.db")
