"""The fleet at a glance, what needs attention, and figures for monitoring."""

from collections.abc import Iterable

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from cloud_aggregator.adapters.schema import CommandRow, CounterRow, EventRow, RoundRow
from cloud_aggregator.console import records
from cloud_aggregator.console.queries import devices, rounds, tasks
from cloud_aggregator.console.queries.events import count_recent
from cloud_aggregator.console.queries.reading import DAY_S, Reading

_SILENT_COMMAND_S = 15.0  # The coordinator looks for commands several times a second.


def look(reading: Reading) -> records.Overview:
    """Return the fleet at a glance."""
    presence = devices.presence_counts(reading)
    known = tasks.find_all(reading)
    return records.Overview(
        device_count=sum(presence.values()),
        presence=presence,
        tasks=known,
        open_rounds=rounds.open_details(reading),
        concerns=tuple(_concerns(reading, presence, known)),
    )


def is_answered(reading: Reading) -> bool:
    """Return whether the database answers at all."""
    try:
        return reading.session.scalar(select(1)) == 1
    except SQLAlchemyError:
        return False


def figures(reading: Reading) -> records.Figures:
    """Return what the monitoring of the aggregator counts."""
    counts = reading.session.execute(
        select(RoundRow.task, RoundRow.phase, func.count()).group_by(RoundRow.task, RoundRow.phase)
    )
    columns = (RoundRow.bytes_up, RoundRow.bytes_down, RoundRow.bytes_keyframe, RoundRow.bytes_bundle)
    sums = reading.session.execute(select(*(func.coalesce(func.sum(column), 0) for column in columns))).one()
    return records.Figures(
        presence=devices.presence_counts(reading),
        rounds={(task, phase): count for task, phase, count in counts},
        accuracy={task.name: task.accuracy for task in tasks.find_all(reading) if task.accuracy is not None},
        counters={row.name: row.value for row in reading.session.scalars(select(CounterRow))},
        bytes={column.key.removeprefix("bytes_"): value for column, value in zip(columns, sums, strict=True)},
        open_command_count=reading.session.scalar(select(func.count()).where(CommandRow.done_at.is_(None))) or 0,
        newest_event=reading.session.scalar(select(func.max(EventRow.number))) or 0,
    )


def _concerns(
    reading: Reading, presence: dict[records.Presence, int], known_tasks: Iterable[records.TaskSummary]
) -> Iterable[records.Concern]:
    waiting = select(func.count()).where(
        CommandRow.done_at.is_(None), CommandRow.at < reading.now_s - _SILENT_COMMAND_S
    )
    if reading.session.scalar(waiting):
        yield records.Concern("serious", "Commands wait, and no aggregator takes them.", "/tasks")
    alerts = count_recent(reading, "identity-alert", DAY_S)
    if alerts:
        text = f"Machines that enrolled with a second key in the last 24 h: {alerts:,}."
        yield records.Concern("serious", text, "/audit?kind=identity-alert")
    for task in known_tasks:
        last = rounds.find_page(reading, task=task.name, size=3).items
        if len(last) == 3 and all(one.phase == "abandoned" for one in last):
            text = f"Task {task.name}: its last three rounds were abandoned."
            yield records.Concern("serious", text, f"/rounds?task={task.name}")
        if task.state == "paused":
            yield records.Concern("notable", f"Task {task.name} is paused.", f"/tasks/{task.name}")
    halted = count_recent(reading, "release-halted", DAY_S)
    if halted:
        yield records.Concern("serious", f"Releases halted in the last 24 h: {halted:,}.", "/releases")
    refused = count_recent(reading, "enrollment-refused", DAY_S)
    if refused:
        text = f"Enrollments refused in the last 24 h: {refused:,}."
        yield records.Concern("notable", text, "/audit?kind=enrollment-refused")
    sign_ins = count_recent(reading, "sign-in-refused", DAY_S)
    if sign_ins:
        text = f"Sign-ins with a wrong password in the last 24 h: {sign_ins:,}."
        yield records.Concern("notable", text, "/audit?kind=sign-in-refused")
    device_count = sum(presence.values())
    if device_count and presence["away"] * 2 > device_count:
        text = f"{presence['away']:,} of {device_count:,} devices were not heard of for a day."
        yield records.Concern("notable", text, "/fleet?presence=away")
