"""Releases: how far each is, what each device did with it, and what runs where."""

from collections.abc import Iterable, Sequence

from sqlalchemy import func, select

from cloud_aggregator.adapters.release_schema import DeviceReleaseRow, ReleaseRow, RunningReleaseRow
from cloud_aggregator.console import records
from cloud_aggregator.console.queries.reading import PAGE_SIZE, Reading


def find_page(reading: Reading, page: int = 1) -> records.Page[records.ReleaseSummary]:
    """Return a page of releases, newest first."""
    total = reading.session.scalar(select(func.count()).select_from(ReleaseRow)) or 0
    newest = select(ReleaseRow).order_by(ReleaseRow.number.desc()).offset((page - 1) * PAGE_SIZE).limit(PAGE_SIZE)
    rows = reading.session.scalars(newest).all()
    return records.Page(tuple(_describe(reading, rows)), page, PAGE_SIZE, total)


def find(reading: Reading, number: int) -> records.ReleaseSummary | None:
    """Return one release."""
    row = reading.session.get(ReleaseRow, number)
    return None if row is None else next(iter(_describe(reading, [row])))


def device_page(
    reading: Reading, number: int, *, state: str = "", page: int = 1
) -> records.Page[records.DeviceInRelease]:
    """Return a page of the devices that a release was meant for, those that failed first."""
    columns = tuple(getattr(DeviceReleaseRow, name) for name in records.DeviceInRelease.__struct_fields__)
    conditions = [DeviceReleaseRow.release == number, *([DeviceReleaseRow.state == state] if state else [])]
    total = reading.session.scalar(select(func.count()).select_from(DeviceReleaseRow).where(*conditions)) or 0
    wanted = select(*columns).where(*conditions).order_by(DeviceReleaseRow.reason.is_(None), DeviceReleaseRow.device)
    rows = reading.session.execute(wanted.offset((page - 1) * PAGE_SIZE).limit(PAGE_SIZE))
    return records.Page(tuple(records.DeviceInRelease(*row) for row in rows), page, PAGE_SIZE, total)


def running_counts(reading: Reading) -> tuple[records.RunningCount, ...]:
    """Return how many devices run which release, by family and number."""
    row = RunningReleaseRow
    counts = select(row.family, row.number, func.count()).group_by(row.family, row.number)
    ordered = reading.session.execute(counts.order_by(row.family, row.number.desc()))
    return tuple(records.RunningCount(*one) for one in ordered)


def running_on(reading: Reading, devices: Sequence[str]) -> dict[str, tuple[records.RunningRelease, ...]]:
    """Return what each of ``devices`` last said that it runs."""
    rows = reading.session.scalars(
        select(RunningReleaseRow).where(RunningReleaseRow.device.in_(devices)).order_by(RunningReleaseRow.family)
    )
    found: dict[str, tuple[records.RunningRelease, ...]] = {}
    for row in rows:
        running = records.RunningRelease(row.family, row.number, row.reported_at)
        found[row.device] = (*found.get(row.device, ()), running)
    return found


def _describe(reading: Reading, rows: Sequence[ReleaseRow]) -> Iterable[records.ReleaseSummary]:
    numbers = [row.number for row in rows]
    member, running = DeviceReleaseRow, RunningReleaseRow
    by_state = select(member.release, member.state, func.count()).where(member.release.in_(numbers))
    states: dict[int, dict[str, int]] = {}
    for number, state, count in reading.session.execute(by_state.group_by(member.release, member.state)):
        states.setdefault(number, {})[state] = count
    running_numbers = select(running.number, func.count()).where(running.number.in_(numbers)).group_by(running.number)
    running_count = {number: count for number, count in reading.session.execute(running_numbers)}  # noqa: C416
    for row in rows:
        yield records.ReleaseSummary(
            number=row.number,
            family=row.family,
            task=row.task,
            version=row.version,
            kind=row.kind,
            phase=row.phase,
            why=row.why,
            actor=row.actor,
            created_at=row.created_at,
            expires_at=row.expires_at,
            closed_at=row.closed_at,
            replaces=row.replaces,
            restricted_to=row.restricted_to,
            checkpoint=row.checkpoint.hex(),
            bundle=row.bundle.hex(),
            states=states.get(row.number, {}),
            running_count=running_count.get(row.number, 0),
        )
