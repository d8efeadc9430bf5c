"""The aggregator's state in SQL: devices, tokens, tasks, rounds, checkpoints and events.

One writer, the coordinator's thread; readers open sessions of their own. SQLite runs in WAL mode with
``synchronous=FULL``, so that what was committed before an acknowledgement survives a power cut.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import msgspec
from sqlalchemy import Engine, create_engine, event, func, select
from sqlalchemy.orm import Session, sessionmaker

from cloud_aggregator.adapters.schema import (
    CheckpointRow,
    CommandRow,
    CounterRow,
    DeviceRow,
    EventRow,
    RoundRow,
    TaskRow,
    TokenRow,
)


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that happened, as it is recorded and announced; ``at`` in seconds since 1970."""

    at: float
    kind: str
    task: str | None
    round: int | None
    device: str | None
    detail: dict[str, Any]


def open_engine(url: str) -> Engine:
    """Return an engine for ``url``, with the pragmas that SQLite needs to keep its promises."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _set_pragmas(connection: Any, _record: Any) -> None:
            cursor = connection.cursor()
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()

    return engine


def migrate(engine: Engine) -> None:
    """Bring the database to the newest shape."""
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(__file__).parent.parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "head")


class Database:
    """Sessions on one database; times are stamped here, since the machines know no clock."""

    def __init__(self, url: str, now_s: Callable[[], float] = time.time) -> None:
        """Open the database at ``url``; ``now_s`` is the wall clock, in seconds since 1970."""
        self._now_s = now_s
        self._engine = open_engine(url)
        migrate(self._engine)
        self._sessions = sessionmaker(self._engine, expire_on_commit=False)

    @contextmanager
    def transaction(self) -> Iterator["Transaction"]:
        """All or nothing, on disk when the block ends."""
        with self._sessions.begin() as session:
            yield Transaction(session, self._now_s())

    @property
    def engine(self) -> Engine:
        """The connections, for what only reads or keeps tables of its own."""
        return self._engine

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


class Transaction:
    """What the coordinator reads and writes within one transaction."""

    def __init__(self, session: Session, now_s: float | None = None) -> None:
        self._session = session
        self.now_s = time.time() if now_s is None else now_s
        self.recorded: list[Event] = []

    @property
    def session(self) -> Session:
        """The session beneath, for records that are kept in modules of their own."""
        return self._session

    # --- Devices and tokens

    def device(self, name: str) -> DeviceRow | None:
        """Return a device by name."""
        return self._session.get(DeviceRow, name)

    def devices(self) -> list[DeviceRow]:
        """Return all enrolled devices."""
        return list(self._session.scalars(select(DeviceRow).order_by(DeviceRow.name)))

    def device_count(self) -> int:
        """Return how many devices are enrolled."""
        return self._session.scalar(select(func.count()).select_from(DeviceRow)) or 0

    def add_device(self, row: DeviceRow) -> None:
        """Insert a device."""
        self._session.add(row)

    def see_device(self, name: str, agent_version: str, engine: str) -> None:
        """Note that a device was heard of now."""
        row = self._session.get_one(DeviceRow, name)
        row.last_seen_at, row.agent_version, row.engine = self.now_s, agent_version, engine

    def token(self, name: str) -> TokenRow | None:
        """Return an enrollment token by name."""
        return self._session.get(TokenRow, name)

    def tokens(self) -> list[TokenRow]:
        """Return all tokens, newest first."""
        return list(self._session.scalars(select(TokenRow).order_by(TokenRow.created_at.desc())))

    def add_token(self, name: str, secret: bytes, uses_max: int, lifetime_s: float) -> TokenRow:
        """Insert a token that is valid from now on."""
        row = TokenRow(
            name=name,
            secret=secret,
            uses_max=uses_max,
            uses=0,
            created_at=self.now_s,
            expires_at=self.now_s + lifetime_s,
        )
        self._session.add(row)
        return row

    # --- Tasks and rounds

    def task(self, name: str) -> TaskRow | None:
        """Return a task by name."""
        return self._session.get(TaskRow, name)

    def tasks(self) -> list[TaskRow]:
        """Return all tasks, oldest first."""
        return list(self._session.scalars(select(TaskRow).order_by(TaskRow.created_at, TaskRow.name)))

    def get_task(self, name: str) -> TaskRow:
        """Return a task that exists."""
        return self._session.get_one(TaskRow, name)

    def add_task(self, row: TaskRow) -> None:
        """Insert a task, so that what refers to it can follow."""
        self._session.add(row)
        self._session.flush()

    def round(self, task: str, number: int) -> RoundRow | None:
        """Return one round."""
        return self._session.get(RoundRow, (task, number))

    def get_round(self, task: str, number: int) -> RoundRow:
        """Return a round that exists."""
        return self._session.get_one(RoundRow, (task, number))

    def newest_round(self, task: str) -> RoundRow | None:
        """Return the round of ``task`` that was opened last."""
        return self._session.scalars(
            select(RoundRow).where(RoundRow.task == task).order_by(RoundRow.number.desc()).limit(1)
        ).first()

    def rounds(self, task: str) -> list[RoundRow]:
        """Return all rounds of ``task`` in order."""
        return list(self._session.scalars(select(RoundRow).where(RoundRow.task == task).order_by(RoundRow.number)))

    def add_round(self, row: RoundRow) -> None:
        """Insert a round."""
        self._session.add(row)

    # --- Checkpoints

    def checkpoint(self, task: str, version: int) -> CheckpointRow | None:
        """Return one published checkpoint."""
        return self._session.get(CheckpointRow, (task, version))

    def newest_checkpoint(self, task: str) -> CheckpointRow | None:
        """Return the checkpoint of ``task`` that was published last."""
        newest = select(CheckpointRow).where(CheckpointRow.task == task).order_by(CheckpointRow.version.desc()).limit(1)
        return self._session.scalars(newest).first()

    def checkpoints(self, task: str, first_version: int = 0) -> list[CheckpointRow]:
        """Return the checkpoints of ``task`` from ``first_version`` on, in order."""
        wanted = select(CheckpointRow).where(CheckpointRow.task == task, CheckpointRow.version >= first_version)
        return list(self._session.scalars(wanted.order_by(CheckpointRow.version)))

    def add_checkpoint(self, row: CheckpointRow) -> None:
        """Insert a checkpoint."""
        self._session.add(row)

    # --- Commands

    def add_command(self, body: bytes, actor: str) -> CommandRow:
        """Ask the coordinator for something."""
        row = CommandRow(at=self.now_s, actor=actor, body=body)
        self._session.add(row)
        self._session.flush()
        return row

    def open_commands(self) -> list[CommandRow]:
        """Return what was asked for and is not done, oldest first."""
        return list(
            self._session.scalars(select(CommandRow).where(CommandRow.done_at.is_(None)).order_by(CommandRow.number))
        )

    def command(self, number: int) -> CommandRow:
        """Return one command."""
        return self._session.get_one(CommandRow, number)

    def conclude_command(self, number: int, error: str | None) -> None:
        """Note that a command was carried out, or why not."""
        row = self._session.get_one(CommandRow, number)
        row.done_at, row.error = self.now_s, error
        row.body = b""  # A model may be megabytes; what it became is kept elsewhere.

    # --- Events and counters

    def record(
        self,
        kind: str,
        *,
        task: str | None = None,
        round_number: int | None = None,
        device: str | None = None,
        **detail: Any,
    ) -> None:
        """Append an event."""
        text = msgspec.json.encode(detail).decode()
        self.recorded.append(Event(self.now_s, kind, task, round_number, device, detail))
        self._session.add(EventRow(at=self.now_s, kind=kind, task=task, round=round_number, device=device, detail=text))

    def count(self, name: str, by: int) -> None:
        """Add to a counter."""
        row = self._session.get(CounterRow, name)
        if row is None:
            row = CounterRow(name=name, value=0)
            self._session.add(row)
        row.value += by

    def counter(self, name: str) -> int:
        """Return a counter; one that never counted is 0."""
        row = self._session.get(CounterRow, name)
        return row.value if row is not None else 0
