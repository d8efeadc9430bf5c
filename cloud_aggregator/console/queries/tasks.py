"""Tasks and the checkpoints that they made."""

from typing import Any

import msgspec
from sqlalchemy import func, select

from cloud_aggregator import task_progress
from cloud_aggregator.adapters.schema import CheckpointRow, EventRow, RoundRow, TaskRow
from cloud_aggregator.console import records
from cloud_aggregator.console.queries.events import find_events
from cloud_aggregator.console.queries.reading import PAGE_SIZE, Reading

_SETTINGS = msgspec.msgpack.Decoder(task_progress.TaskSettings)
_STATES: msgspec.msgpack.Decoder[task_progress.TaskState] = msgspec.msgpack.Decoder(task_progress.TaskState)
_STATE_NAMES: dict[type, Any] = {
    task_progress.Training: "training",
    task_progress.Evaluating: "evaluating",
    task_progress.Paused: "paused",
    task_progress.Finished: "finished",
}


def find_all(reading: Reading) -> tuple[records.TaskSummary, ...]:
    """Return all tasks, newest first."""
    rows = reading.session.scalars(select(TaskRow).order_by(TaskRow.created_at.desc(), TaskRow.name))
    return tuple(_describe(reading, row) for row in rows)


def find(reading: Reading, name: str) -> records.TaskSummary | None:
    """Return one task."""
    row = reading.session.get(TaskRow, name)
    return None if row is None else _describe(reading, row)


def checkpoint_page(reading: Reading, task: str, page: int = 1) -> records.Page[records.CheckpointSummary]:
    """Return a page of the versions of ``task``, newest first, each with the round that made it and how it did."""
    total = reading.session.scalar(select(func.count()).where(CheckpointRow.task == task)) or 0
    newest = select(CheckpointRow).where(CheckpointRow.task == task).order_by(CheckpointRow.version.desc())
    rows = reading.session.scalars(newest.offset((page - 1) * PAGE_SIZE).limit(PAGE_SIZE)).all()
    if not rows:
        return records.Page((), page, PAGE_SIZE, total)
    around = RoundRow.base_version.between(rows[-1].version - 1, rows[0].version)
    columns = (
        RoundRow.number,
        RoundRow.kind,
        RoundRow.base_version,
        RoundRow.report_count,
        RoundRow.example_count,
        RoundRow.accuracy,
    )
    completed = select(*columns).where(RoundRow.task == task, RoundRow.phase == "completed", around)
    rounds = reading.session.execute(completed.order_by(RoundRow.number)).all()
    makers = {one.base_version + 1: one for one in rounds if one.kind == "train"}
    accuracies = {one.base_version: one.accuracy for one in rounds if one.accuracy is not None}
    items = tuple(
        records.CheckpointSummary(
            task=task,
            version=row.version,
            digest=row.digest.hex(),
            is_keyframe=row.delta is None,
            created_at=row.created_at,
            made_by_round=maker.number if maker is not None else None,
            report_count=maker.report_count if maker is not None else None,
            example_count=maker.example_count if maker is not None else None,
            accuracy=accuracies.get(row.version),
        )
        for row in rows
        for maker in (makers.get(row.version),)
    )
    return records.Page(items, page, PAGE_SIZE, total)


def _describe(reading: Reading, row: TaskRow) -> records.TaskSummary:
    settings, state = _SETTINGS.decode(row.settings), _STATES.decode(row.state)
    of_task = RoundRow.task == row.name
    accuracy = reading.session.scalar(
        select(RoundRow.accuracy)
        .where(of_task, RoundRow.accuracy.is_not(None))
        .order_by(RoundRow.number.desc())
        .limit(1)
    )
    created = find_events(reading, EventRow.kind == "task-created", EventRow.task == row.name, limit=1)
    return records.TaskSummary(
        name=row.name,
        state=_STATE_NAMES[type(state)],
        why=state.why if isinstance(state, task_progress.Evaluating | task_progress.Finished) else None,
        created_at=row.created_at,
        round_count=reading.session.scalar(select(func.count()).where(of_task)) or 0,
        rounds_max=settings.rounds_max,
        version=reading.session.scalar(select(func.max(CheckpointRow.version)).where(CheckpointRow.task == row.name))
        or 0,
        accuracy=accuracy,
        parameter_count=created[0].detail.get("parameters") if created else None,
        bundle=row.bundle.hex(),
        model=row.model.hex(),
    )
