"""The contract of the aggregator's database, kept by the real one and by the one in memory alike."""

from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy.exc

from cloud_aggregator.adapters.database import Database, Transaction
from cloud_aggregator.adapters.schema import CheckpointRow, DeviceRow, RoundRow, TaskRow
from federated_core.errors import LocalMisuseError
from tests.simulation.memory_database import MemoryDatabase, MemoryTransaction

MAKERS: dict[str, Callable[[Path], Database]] = {
    "sqlite": lambda folder: Database(f"sqlite:///{folder / 'a.db'}", lambda: 1000.0),
    "memory": lambda _folder: MemoryDatabase(lambda: 1000.0),
}


@pytest.fixture(params=MAKERS)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    return MAKERS[request.param](tmp_path)


def device(name: str) -> DeviceRow:
    return DeviceRow(
        name=name,
        verify_key=name.encode().ljust(32),
        seal_key=bytes(32),
        machine=bytes(16),
        broker_password="secret",
        token="t",
        enrolled_at=1.0,
    )


def task() -> TaskRow:
    return TaskRow(
        name="t", settings=b"", bundle=b"b", bundle_signature=b"s", model=b"m", state=b"state", created_at=1.0
    )


def round_row(number: int) -> RoundRow:
    return RoundRow(task="t", number=number, kind="train", phase="selecting", state=b"0", base_version=0, opened_at=1.0)


def checkpoint(version: int) -> CheckpointRow:
    return CheckpointRow(task="t", version=version, digest=b"d", keyframe=b"k", state=b"s", created_at=1.0)


def test_what_was_committed_is_found_again(database: Database) -> None:
    with database.transaction() as tx:
        tx.add_device(device("b"))
        tx.add_device(device("a"))
        tx.add_task(task())
        tx.add_round(round_row(1))
        tx.add_checkpoint(checkpoint(0))
    with database.transaction() as tx:
        assert [row.name for row in tx.devices()] == ["a", "b"]
        assert tx.device_count() == 2
        assert tx.get_task("t").state == b"state"
        assert (tx.get_round("t", 1).transition_count, tx.get_round("t", 1).closed_at) == (0, None)
        assert tx.round("t", 2) is None
        assert [row.version for row in tx.checkpoints("t")] == [0]
        assert tx.now_s == 1000.0


def test_a_row_that_is_changed_is_written(database: Database) -> None:
    with database.transaction() as tx:
        tx.add_task(task())
        tx.add_round(round_row(1))
    with database.transaction() as tx:
        row = tx.get_round("t", 1)
        row.state = b"1"
        row.transition_count += 1
    with database.transaction() as tx:
        assert (tx.get_round("t", 1).state, tx.get_round("t", 1).transition_count) == (b"1", 1)


def fail_in_the_middle(database: Database) -> None:
    with database.transaction() as tx:
        tx.get_task("t").state = b"other"
        tx.add_device(device("a"))
        raise KeyboardInterrupt


def test_a_transaction_that_fails_leaves_nothing(database: Database) -> None:
    with database.transaction() as tx:
        tx.add_task(task())
    with pytest.raises(KeyboardInterrupt):
        fail_in_the_middle(database)
    with database.transaction() as tx:
        assert tx.get_task("t").state == b"state"
        assert tx.device_count() == 0


def test_a_key_that_is_taken_is_refused(database: Database) -> None:
    with database.transaction() as tx:
        tx.add_task(task())
        tx.add_round(round_row(1))
    with pytest.raises((LocalMisuseError, sqlalchemy.exc.IntegrityError)), database.transaction() as tx:
        tx.add_round(round_row(1))


def test_rounds_and_checkpoints_come_in_order(database: Database) -> None:
    with database.transaction() as tx:
        assert tx.newest_round("t") is None
        tx.add_task(task())
        for number in (2, 1, 3):
            tx.add_round(round_row(number))
            tx.add_checkpoint(checkpoint(number))
    with database.transaction() as tx:
        newest = tx.newest_round("t")
        assert newest is not None
        assert newest.number == 3
        assert [row.number for row in tx.rounds("t")] == [1, 2, 3]
        assert [row.version for row in tx.checkpoints("t", 2)] == [2, 3]
        found = tx.newest_checkpoint("t")
        assert found is not None
        assert found.version == 3


def test_commands_are_open_until_they_are_concluded(database: Database) -> None:
    with database.transaction() as tx:
        first = tx.add_command(b"one", "anna").number
    with database.transaction() as tx:
        tx.add_command(b"two", "ben")
    with database.transaction() as tx:
        assert [(row.number, row.actor) for row in tx.open_commands()] == [(first, "anna"), (first + 1, "ben")]
        tx.conclude_command(first, "no")
    with database.transaction() as tx:
        assert [row.body for row in tx.open_commands()] == [b"two"]
        assert (tx.command(first).error, tx.command(first).body) == ("no", b"")


def test_counters_add_up(database: Database) -> None:
    for _ in range(2):
        with database.transaction() as tx:
            tx.count("errors", 2)
    with database.transaction() as tx:
        assert (tx.counter("errors"), tx.counter("other")) == (4, 0)


def test_tokens_and_last_words_are_kept(database: Database) -> None:
    with database.transaction() as tx:
        tx.add_device(device("a"))
        tx.add_token("t1", b"secret", 3, 60.0)
    with database.transaction() as tx:
        tx.see_device("a", "0.1", "numpy")
    with database.transaction() as tx:
        row, token = tx.device("a"), tx.token("t1")
        assert row is not None
        assert token is not None
        assert (row.last_seen_at, row.engine, token.expires_at) == (1000.0, "numpy", 1060.0)
        assert [one.name for one in tx.tokens()] == ["t1"]


def test_events_are_handed_on(database: Database) -> None:
    with database.transaction() as tx:
        tx.record("x", task=None, device="a", why="so")
    assert [(event.kind, event.device, event.detail) for event in tx.recorded] == [("x", "a", {"why": "so"})]


def test_nothing_of_a_transaction_is_left_to_sql() -> None:
    names = {name for name in vars(Transaction) if not name.startswith("_")}
    assert names <= set(vars(MemoryTransaction))
