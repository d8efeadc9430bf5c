"""The aggregator's database without SQL: the same transactions on dictionaries, many times as fast.

It passes the same tests as the real one; ``scripts/simulate --database sqlite`` plays worlds on the real one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import msgspec

from cloud_aggregator.adapters.database import Database, Event, Transaction
from cloud_aggregator.adapters.schema import (
    Base,
    CheckpointRow,
    CommandRow,
    CounterRow,
    DeviceRow,
    EventRow,
    RoundRow,
    TaskRow,
    TokenRow,
)
from federated_core.errors import LocalMisuseError

Row = TypeVar("Row", bound=Base)
Key = tuple[Any, ...]
Tables = dict[type[Base], dict[Key, dict[str, Any]]]

_KEYS: dict[type[Base], tuple[str, ...]] = {
    table: tuple(column.name for column in table.__table__.primary_key)
    for table in (CheckpointRow, CommandRow, CounterRow, DeviceRow, EventRow, RoundRow, TaskRow, TokenRow)
}
_COLUMNS = {table: tuple(column.name for column in table.__table__.columns) for table in _KEYS}
_DEFAULTS = {
    table: {
        column.name: column.default.arg
        for column in table.__table__.columns
        if column.default is not None and column.default.is_scalar
    }
    for table in _KEYS
}


class MemoryDatabase(Database):
    """Committed rows as plain values; a transaction works on copies and writes them back when it ends well."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._tables: Tables = {table: {} for table in _KEYS}

    @contextmanager
    def transaction(self) -> Iterator["MemoryTransaction"]:
        tx = MemoryTransaction(self._tables, self._now_s())
        yield tx
        tx.write_back()

    def close(self) -> None:
        pass


class MemoryTransaction(Transaction):
    """Every method of `Transaction`, on dictionaries."""

    def __init__(self, tables: Tables, now_s: float) -> None:
        self._tables = tables
        self._touched: dict[tuple[type[Base], Key], Base] = {}
        self._added: list[Base] = []
        self.now_s = now_s
        self.recorded: list[Event] = []

    @property
    def session(self) -> Any:
        """Stand in for SQL where releases are asked for: there are none."""
        return NoReleases(self)

    def write_back(self) -> None:
        """Commit."""
        for row in self._added:
            self._insert(row)
        for (table, key), row in self._touched.items():
            self._tables[table][key] = dict(vars(row))

    def _find(self, table: type[Row], key: Key) -> Row | None:
        row = self._touched.get((table, key))
        if row is None:
            values = self._tables[table].get(key)
            if values is None:
                return next((one for one in self._added if isinstance(one, table) and _key(one) == key), None)
            row = self._touched[table, key] = cast(
                "Base", SimpleNamespace(**values)
            )  # A row costs a hundred times more.
        return cast("Row", row)

    def _get(self, table: type[Row], *key: Any) -> Row:
        row = self._find(table, key)
        assert row is not None, f"no {table.__tablename__} {key}"
        return row

    def _all(self, table: type[Row]) -> list[Row]:
        stored = [self._get(table, *key) for key in self._tables[table]]
        return stored + [row for row in self._added if isinstance(row, table)]

    def _insert(self, row: Base) -> None:
        table = type(row)
        for name, value in _DEFAULTS[table].items():
            if getattr(row, name) is None:
                setattr(row, name, value)
        key = _key(row)
        if key in self._tables[table]:
            raise LocalMisuseError(f"{table.__tablename__}: {key} is there already")
        self._tables[table][key] = _values(row)

    # --- Devices and tokens

    def device(self, name: str) -> DeviceRow | None:
        return self._find(DeviceRow, (name,))

    def devices(self) -> list[DeviceRow]:
        return sorted(self._all(DeviceRow), key=lambda row: row.name)

    def device_count(self) -> int:
        return len(self._tables[DeviceRow])

    def add_device(self, row: DeviceRow) -> None:
        self._added.append(row)

    def see_device(self, name: str, agent_version: str, engine: str) -> None:
        row = self._get(DeviceRow, name)
        row.last_seen_at, row.agent_version, row.engine = self.now_s, agent_version, engine

    def token(self, name: str) -> TokenRow | None:
        return self._find(TokenRow, (name,))

    def tokens(self) -> list[TokenRow]:
        return sorted(self._all(TokenRow), key=lambda row: -row.created_at)

    def add_token(self, name: str, secret: bytes, uses_max: int, lifetime_s: float) -> TokenRow:
        row = TokenRow(
            name=name,
            secret=secret,
            uses_max=uses_max,
            uses=0,
            created_at=self.now_s,
            expires_at=self.now_s + lifetime_s,
        )
        self._added.append(row)
        return row

    # --- Tasks and rounds

    def task(self, name: str) -> TaskRow | None:
        return self._find(TaskRow, (name,))

    def tasks(self) -> list[TaskRow]:
        return sorted(self._all(TaskRow), key=lambda row: (row.created_at, row.name))

    def get_task(self, name: str) -> TaskRow:
        return self._get(TaskRow, name)

    def add_task(self, row: TaskRow) -> None:
        self._added.append(row)

    def round(self, task: str, number: int) -> RoundRow | None:
        return self._find(RoundRow, (task, number))

    def get_round(self, task: str, number: int) -> RoundRow:
        return self._get(RoundRow, task, number)

    def newest_round(self, task: str) -> RoundRow | None:
        number = max((key[1] for key in self._tables[RoundRow] if key[0] == task), default=None)
        return None if number is None else self._get(RoundRow, task, number)

    def rounds(self, task: str) -> list[RoundRow]:
        return sorted((row for row in self._all(RoundRow) if row.task == task), key=lambda row: row.number)

    def add_round(self, row: RoundRow) -> None:
        self._added.append(row)

    # --- Checkpoints

    def checkpoint(self, task: str, version: int) -> CheckpointRow | None:
        return self._find(CheckpointRow, (task, version))

    def newest_checkpoint(self, task: str) -> CheckpointRow | None:
        rows = self.checkpoints(task)
        return rows[-1] if rows else None

    def checkpoints(self, task: str, first_version: int = 0) -> list[CheckpointRow]:
        rows = [row for row in self._all(CheckpointRow) if row.task == task and row.version >= first_version]
        return sorted(rows, key=lambda row: row.version)

    def add_checkpoint(self, row: CheckpointRow) -> None:
        self._added.append(row)

    # --- Commands

    def add_command(self, body: bytes, actor: str) -> CommandRow:
        row = CommandRow(number=len(self._tables[CommandRow]) + 1, at=self.now_s, actor=actor, body=body)
        self._added.append(row)
        return row

    def open_commands(self) -> list[CommandRow]:
        open_keys = [key for key, values in self._tables[CommandRow].items() if values["done_at"] is None]
        return [self._get(CommandRow, *key) for key in sorted(open_keys)]

    def command(self, number: int) -> CommandRow:
        return self._get(CommandRow, number)

    def conclude_command(self, number: int, error: str | None) -> None:
        row = self._get(CommandRow, number)
        row.done_at, row.error, row.body = self.now_s, error, b""

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
        msgspec.json.encode(detail)  # What could not be stored must not pass here either.
        self.recorded.append(Event(self.now_s, kind, task, round_number, device, detail))

    def count(self, name: str, by: int) -> None:
        row = self._find(CounterRow, (name,))
        if row is None:
            row = CounterRow(name=name, value=0)
            self._added.append(row)
        row.value += by

    def counter(self, name: str) -> int:
        row = self._find(CounterRow, (name,))
        return row.value if row is not None else 0


class NoReleases:
    """What `ReleaseRecords` finds in a fleet without releases."""

    def __init__(self, tx: MemoryTransaction) -> None:
        self._tx = tx

    def get_one(self, table: type[DeviceRow], name: str) -> DeviceRow:
        return self._tx._get(table, name)

    def scalars(self, _wanted: object) -> tuple[()]:
        return ()


def _key(row: Base) -> Key:
    return tuple(getattr(row, name) for name in _KEYS[type(row)])


def _values(row: Base) -> dict[str, Any]:
    return {name: getattr(row, name) for name in _COLUMNS[type(row)]}
