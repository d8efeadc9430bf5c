"""What happened, from the append-only table of events."""

import msgspec
from sqlalchemy import ColumnElement, func, or_, select

from cloud_aggregator.adapters.schema import EventRow
from cloud_aggregator.console import records
from cloud_aggregator.console.queries.reading import PAGE_SIZE, Reading

AUDIT_KINDS = (
    "command",
    "user-created",
    "user-deleted",
    "password-changed",
    "role-changed",
    "signed-in",
    "signed-out",
    "sign-in-refused",
    "enrolled",
    "enrollment-refused",
    "identity-alert",
    "task-created",
    "task-finished",
    "release-promoted",
    "release-halted",
    "release-completed",
    "release-superseded",
    "release-way-back",
)


def audit(reading: Reading, *, kind: str = "", text: str = "", page: int = 1) -> records.Page[records.Happening]:
    """Return a page of what people did and of who came in, newest first; ``text`` is looked for in the details."""
    conditions: list[ColumnElement[bool]] = [EventRow.kind.in_([kind] if kind in AUDIT_KINDS else AUDIT_KINDS)]
    if text:
        columns = (EventRow.detail, EventRow.device, EventRow.task)
        conditions.append(or_(*(column.icontains(text, autoescape=True) for column in columns)))
    total = reading.session.scalar(select(func.count()).select_from(EventRow).where(*conditions)) or 0
    items = find_events(reading, *conditions, limit=PAGE_SIZE, offset=(page - 1) * PAGE_SIZE)
    return records.Page(items, page, PAGE_SIZE, total)


def events_after(reading: Reading, number: int, limit: int = 200) -> tuple[records.Happening, ...]:
    """Return what happened after event ``number``, oldest first: for clients that poll."""
    rows = reading.session.scalars(
        select(EventRow).where(EventRow.number > number).order_by(EventRow.number).limit(limit)
    )
    return tuple(describe_event(row) for row in rows)


def newest(reading: Reading, limit: int) -> tuple[records.Happening, ...]:
    """Return what happened last, newest first."""
    return find_events(reading, limit=limit)


def count_recent(reading: Reading, kind: str, within_s: float) -> int:
    """Return how many events of ``kind`` the last ``within_s`` seconds brought."""
    recent = select(func.count()).where(EventRow.kind == kind, EventRow.at > reading.now_s - within_s)
    return reading.session.scalar(recent) or 0


def find_events(
    reading: Reading, *conditions: ColumnElement[bool], limit: int, offset: int = 0
) -> tuple[records.Happening, ...]:
    """Return the events for which ``conditions`` hold, newest first."""
    newest = select(EventRow).where(*conditions).order_by(EventRow.number.desc())
    return tuple(describe_event(row) for row in reading.session.scalars(newest.offset(offset).limit(limit)))


def describe_event(row: EventRow) -> records.Happening:
    """Return an event as it was recorded."""
    detail = msgspec.json.decode(row.detail)
    return records.Happening(row.number, row.at, row.kind, row.task, row.round, row.device, detail)
