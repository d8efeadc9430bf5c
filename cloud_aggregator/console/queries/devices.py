"""The fleet and its devices."""

from collections.abc import Sequence
from typing import Any, get_args

from sqlalchemy import ColumnElement, case, func, or_, select

from cloud_aggregator import training_round
from cloud_aggregator.adapters.schema import DeviceRow, EventRow
from cloud_aggregator.console import records
from cloud_aggregator.console.queries.events import find_events
from cloud_aggregator.console.queries.reading import DAY_S, HOUR_S, PAGE_SIZE, Reading
from cloud_aggregator.console.queries.releases import running_on
from cloud_aggregator.console.queries.rounds import collecting_rounds

_NAMES_MAX = 30_000  # SQLite takes no more parameters than that in one statement.


def find_page(
    reading: Reading, *, text: str = "", presence: str = "", order: str = "name", page: int = 1
) -> records.Page[records.DeviceSummary]:
    """Return a page of the fleet; ``text`` is looked for in names, engines and versions."""
    working = _working_devices(reading)
    conditions: list[ColumnElement[bool]] = []
    if text:
        columns = (DeviceRow.name, DeviceRow.engine, DeviceRow.agent_version)
        conditions.append(or_(*(column.icontains(text, autoescape=True) for column in columns)))
    if presence:
        conditions.append(_presence(reading, working) == presence)
    orders: dict[str, tuple[ColumnElement[Any], ...]] = {
        "name": (DeviceRow.name.asc(),),
        "seen": (func.coalesce(DeviceRow.last_seen_at, 0.0).desc(), DeviceRow.name.asc()),
        "enrolled": (DeviceRow.enrolled_at.desc(), DeviceRow.name.asc()),
    }
    total = reading.session.scalar(select(func.count()).select_from(DeviceRow).where(*conditions)) or 0
    wanted = select(DeviceRow, _presence(reading, working)).where(*conditions)
    rows = reading.session.execute(
        wanted.order_by(*orders.get(order, orders["name"])).offset((page - 1) * PAGE_SIZE).limit(PAGE_SIZE)
    )
    found = rows.all()
    running = running_on(reading, [row.name for row, _ in found])
    items = tuple(_device(row, state, running.get(row.name, ())) for row, state in found)
    return records.Page(items, page, PAGE_SIZE, total)


def find(reading: Reading, name: str) -> records.DeviceDetail | None:
    """Return one device."""
    in_rounds = tuple(
        records.RoundReference(state.head.task, state.head.number)
        for state in collecting_rounds(reading)
        if name in training_round.outstanding(state)
    )
    found = reading.session.execute(
        select(DeviceRow, _presence(reading, [name] if in_rounds else [])).where(DeviceRow.name == name)
    ).one_or_none()
    if found is None:
        return None
    row, state = found
    running = running_on(reading, [name]).get(name, ())
    twins = reading.session.scalars(
        select(DeviceRow.name).where(DeviceRow.machine == row.machine, DeviceRow.name != name).order_by(DeviceRow.name)
    )
    given_back = find_events(reading, EventRow.device == name, EventRow.kind == "assignment-given-back", limit=1)
    return records.DeviceDetail(
        summary=_device(row, state, running),
        token=row.token,
        verify_key=row.verify_key.hex(),
        also_enrolled_as=tuple(twins),
        open_rounds=in_rounds,
        last_given_back=given_back[0] if given_back else None,
        running=running,
    )


def happenings(reading: Reading, name: str, limit: int = 50) -> tuple[records.Happening, ...]:
    """Return what happened with a device, newest first."""
    return find_events(reading, EventRow.device == name, limit=limit)


def presence_counts(reading: Reading) -> dict[records.Presence, int]:
    """Return how many devices are in which state."""
    presence = _presence(reading, _working_devices(reading))
    rows = reading.session.execute(select(presence, func.count()).select_from(DeviceRow).group_by(presence))
    counts: dict[str, int] = {state: count for state, count in rows}  # noqa: C416 -- a Result is no sequence of pairs to `dict`.
    return {state: counts.get(state, 0) for state in get_args(records.Presence)}


def _working_devices(reading: Reading) -> list[str]:
    names = {device for state in collecting_rounds(reading) for device in training_round.outstanding(state)}
    return sorted(names)[:_NAMES_MAX]


def _presence(reading: Reading, working: Sequence[str]) -> ColumnElement[Any]:
    return case(
        (DeviceRow.name.in_(working), "working"),
        (DeviceRow.last_seen_at.is_(None), "new"),
        (DeviceRow.last_seen_at >= reading.now_s - HOUR_S, "recent"),
        (DeviceRow.last_seen_at >= reading.now_s - DAY_S, "quiet"),
        else_="away",
    )


def _device(
    row: DeviceRow, presence: records.Presence, running: Sequence[records.RunningRelease]
) -> records.DeviceSummary:
    return records.DeviceSummary(
        name=row.name,
        presence=presence,
        enrolled_at=row.enrolled_at,
        last_seen_at=row.last_seen_at,
        engine=row.engine,
        agent_version=row.agent_version,
        running=", ".join(f"{one.family} {one.number}" for one in running if one.number),
    )
