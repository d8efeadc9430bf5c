"""The database: migrations give exactly the schema, and a transaction is all or nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from cloud_aggregator.adapters import console_schema, schema
from cloud_aggregator.adapters.database import Database, Event, Transaction, open_engine
from cloud_aggregator.adapters.schema import CheckpointRow, DeviceRow, RoundRow, TaskRow


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'aggregator.db'}")
    yield database
    database.close()


def device(name: str, key: int = 1) -> DeviceRow:
    return DeviceRow(
        name=name,
        verify_key=bytes([key]) * 32,
        seal_key=bytes(32),
        machine=bytes(16),
        broker_password="password",
        token="t1",
        enrolled_at=1.0,
        agent_version="",
        engine="",
    )


def add_task(tx: Transaction, name: str = "task") -> None:
    tx.add_task(
        TaskRow(
            name=name,
            settings=b"",
            bundle=bytes(32),
            bundle_signature=bytes(64),
            model=bytes(32),
            state=b"",
            created_at=1.0,
        )
    )


def add_round(tx: Transaction, number: int) -> None:
    tx.add_round(
        RoundRow(task="task", number=number, kind="train", phase="selecting", state=b"", base_version=0, opened_at=1.0)
    )


def test_the_migrations_give_exactly_the_schema(database: Database) -> None:
    assert console_schema.UserRow.metadata is schema.Base.metadata  # Both halves of the schema are loaded.
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.Base.metadata) == []


def test_a_database_is_opened_again_as_it_was_left(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'aggregator.db'}"
    for expected in (5, 10):
        database = Database(url)
        with database.transaction() as tx:
            tx.count("bytes_enrollment", 5)
            assert tx.counter("bytes_enrollment") == expected
        database.close()


def test_what_is_committed_is_on_disk(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'aggregator.db'}")
    with engine.connect() as connection:
        pragmas = [connection.execute(text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous")]
        assert pragmas == ["wal", 2]  # 2 is FULL.
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1
    engine.dispose()


def test_a_transaction_that_fails_leaves_nothing_behind(database: Database) -> None:
    def enroll_and_fail() -> None:
        with database.transaction() as tx:
            tx.add_device(device("d1"))
            tx.count("protocol_errors", 1)
            tx.record("enrolled", device="d1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        enroll_and_fail()
    with database.transaction() as tx:
        assert (tx.devices(), tx.counter("protocol_errors")) == ([], 0)
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM events")).scalar() == 0


def test_two_devices_cannot_hold_one_key(database: Database) -> None:
    with database.transaction() as tx:
        tx.add_device(device("d1", key=1))
    with pytest.raises(IntegrityError), database.transaction() as tx:
        tx.add_device(device("d2", key=1))


def test_devices_are_counted_listed_by_name_and_seen(database: Database) -> None:
    with database.transaction() as tx:
        tx.add_device(device("d2", key=2))
        tx.add_device(device("d1", key=1))
    with database.transaction() as tx:
        tx.see_device("d1", "1.0", "ort")
        seen_at = tx.now_s
    with database.transaction() as tx:
        assert [row.name for row in tx.devices()] == ["d1", "d2"]
        assert tx.device_count() == 2
        row = tx.device("d1")
        assert row is not None
        assert (row.agent_version, row.engine, row.last_seen_at) == ("1.0", "ort", seen_at)
        assert tx.device("d3") is None


def test_a_token_is_valid_from_now_on_for_its_lifetime(database: Database) -> None:
    with database.transaction() as tx:
        row = tx.add_token("t1", bytes(32), uses_max=3, lifetime_s=60.0)
        assert row.expires_at == tx.now_s + 60.0
    with database.transaction() as tx:
        found = tx.token("t1")
        assert found is not None
        assert (found.uses, found.uses_max, found.revoked_at) == (0, 3, None)
        assert [one.name for one in tx.tokens()] == ["t1"]


def test_rounds_and_checkpoints_belong_to_a_task_and_come_in_order(database: Database) -> None:
    with pytest.raises(IntegrityError), database.transaction() as tx:
        add_round(tx, 1)
    with database.transaction() as tx:
        add_task(tx)
        for number in (2, 1, 3):
            add_round(tx, number)
            tx.add_checkpoint(
                CheckpointRow(
                    task="task",
                    version=number,
                    digest=bytes(32),
                    keyframe=bytes(32),
                    delta=None,
                    state=bytes(32),
                    created_at=1.0,
                )
            )
    with database.transaction() as tx:
        assert [row.number for row in tx.rounds("task")] == [1, 2, 3]
        newest = tx.newest_round("task")
        assert newest is not None
        assert newest.number == 3
        assert [row.version for row in tx.checkpoints("task", first_version=2)] == [2, 3]
        newest_checkpoint = tx.newest_checkpoint("task")
        assert newest_checkpoint is not None
        assert newest_checkpoint.version == 3
        assert tx.round("task", 9) is None
        assert tx.newest_round("another") is None


def test_a_command_is_open_until_it_is_concluded_and_then_forgets_its_body(database: Database) -> None:
    with database.transaction() as tx:
        first, second = (tx.add_command(body, "operator").number for body in (b"one", b"two"))
    with database.transaction() as tx:
        assert [row.body for row in tx.open_commands()] == [b"one", b"two"]
        tx.conclude_command(first, "no such task")
    with database.transaction() as tx:
        assert [row.number for row in tx.open_commands()] == [second]
        done = tx.command(first)
        assert (done.body, done.error, done.actor, done.done_at is None) == (b"", "no such task", "operator", False)


def test_an_event_is_recorded_and_announced_in_the_same_words(database: Database) -> None:
    with database.transaction() as tx:
        tx.record("round-opened", task="task", round_number=3, device="d1", plan="train")
        tx.record("started")
    opened, started = tx.recorded
    assert opened == Event(tx.now_s, "round-opened", "task", 3, "d1", {"plan": "train"})
    assert started == Event(tx.now_s, "started", None, None, None, {})
    with database.engine.connect() as connection:
        rows = connection.execute(text("SELECT kind, task, round, device, detail FROM events ORDER BY number")).all()
    assert [tuple(row) for row in rows] == [
        ("round-opened", "task", 3, "d1", '{"plan":"train"}'),
        ("started", None, None, None, "{}"),
    ]
