"""Rounds: lists, series for charts, and one of them in full."""

import collections
from collections.abc import Iterable
from typing import Any

import msgspec
from sqlalchemy import and_, func, select
from sqlalchemy.orm import InstrumentedAttribute

from cloud_aggregator import training_round
from cloud_aggregator.adapters.schema import EventRow, RoundRow
from cloud_aggregator.console import records
from cloud_aggregator.console.queries.events import find_events
from cloud_aggregator.console.queries.reading import PAGE_SIZE, Reading
from cloud_aggregator.console.spreads import spread_of

OPEN_PHASES = ("selecting", "collecting", "aggregating")
_STATES: msgspec.msgpack.Decoder[training_round.RoundState] = msgspec.msgpack.Decoder(training_round.RoundState)
_SUMMARY_COLUMNS: tuple[InstrumentedAttribute[Any], ...] = tuple(
    getattr(RoundRow, name) for name in records.RoundSummary.__struct_fields__
)


def find_page(
    reading: Reading, *, task: str = "", page: int = 1, size: int = PAGE_SIZE
) -> records.Page[records.RoundSummary]:
    """Return a page of rounds, newest first."""
    conditions = [RoundRow.task == task] if task else []
    total = reading.session.scalar(select(func.count()).select_from(RoundRow).where(*conditions)) or 0
    order = (RoundRow.number.desc(),) if task else (RoundRow.opened_at.desc(), RoundRow.number.desc())
    wanted = select(*_SUMMARY_COLUMNS).where(*conditions).order_by(*order)
    rows = reading.session.execute(wanted.offset((page - 1) * size).limit(size))
    return records.Page(tuple(records.RoundSummary(*row) for row in rows), page, size, total)


def open_rounds(reading: Reading) -> tuple[records.RoundSummary, ...]:
    """Return the rounds that are not over, newest first."""
    wanted = select(*_SUMMARY_COLUMNS).where(RoundRow.phase.in_(OPEN_PHASES)).order_by(RoundRow.opened_at.desc())
    return tuple(records.RoundSummary(*row) for row in reading.session.execute(wanted))


def open_details(reading: Reading) -> tuple[records.RoundDetail, ...]:
    """Return the rounds that are not over in full, newest first."""
    found = (find(reading, one.task, one.number) for one in open_rounds(reading))
    return tuple(detail for detail in found if detail is not None)


def series(reading: Reading, task: str, limit: int) -> tuple[records.RoundPoint, ...]:
    """Return the last ``limit`` rounds of ``task`` that are over, oldest first, with the spread of each."""
    closed = and_(RoundRow.task == task, RoundRow.closed_at.is_not(None))
    newest = select(*_SUMMARY_COLUMNS).where(closed).order_by(RoundRow.number.desc()).limit(limit)
    rounds = [records.RoundSummary(*row) for row in reading.session.execute(newest)]
    unknown = [one.number for one in rounds if (task, one.number) not in reading.spreads]
    if unknown:
        first, last = min(unknown), max(unknown)
        states = select(RoundRow.number, RoundRow.state).where(closed, RoundRow.number.between(first, last))
        for number, state in reading.session.execute(states):
            reading.spreads.add(task, number, state)
    return tuple(records.RoundPoint(one, reading.spreads.get((task, one.number))) for one in reversed(rounds))


def find(reading: Reading, task: str, number: int) -> records.RoundDetail | None:
    """Return one round."""
    row = reading.session.get(RoundRow, (task, number))
    if row is None:
        return None
    state = _STATES.decode(row.state)
    summary = records.RoundSummary(*(getattr(row, name) for name in records.RoundSummary.__struct_fields__))
    late = select(func.count(EventRow.device.distinct())).where(
        EventRow.task == task, EventRow.round == number, EventRow.kind == "report-late"
    )
    invited = 0
    accepted: tuple[training_round.Accepted, ...] = ()
    refused: tuple[training_round.Refused, ...] = ()
    given_back: tuple[training_round.GivenBack, ...] = ()
    if not isinstance(state, training_round.Selecting):
        invited, accepted = len(state.cohort), state.accepted
        refused, given_back = state.refused, state.given_back
    unsettled = invited - len(accepted) - len(refused) - len(given_back)
    return records.RoundDetail(
        summary=summary,
        goal=state.head.settings.goal,
        why=state.why if isinstance(state, training_round.Abandoned) else None,
        invited=invited,
        accepted=len(accepted),
        training=unsettled if isinstance(state, training_round.Collecting) else 0,
        refused=dict(collections.Counter(one.verdict for one in refused)),
        given_back=dict(collections.Counter(one.why for one in given_back)),
        cancelled=0 if isinstance(state, training_round.Collecting) else unsettled,
        late=reading.session.scalar(late) or 0,
        spread=spread_of(accepted),
    )


def cohort_page(reading: Reading, task: str, number: int, page: int = 1) -> records.Page[records.DeviceInRound] | None:
    """Return a page of the cohort of a round and what each made of it."""
    state_bytes = reading.session.scalar(select(RoundRow.state).where(RoundRow.task == task, RoundRow.number == number))
    if state_bytes is None:
        return None
    state = _STATES.decode(state_bytes)
    members = () if isinstance(state, training_round.Selecting) else tuple(_members(state))
    first = (page - 1) * PAGE_SIZE
    return records.Page(members[first : first + PAGE_SIZE], page, PAGE_SIZE, len(members))


def happenings(reading: Reading, task: str, number: int, limit: int = 100) -> tuple[records.Happening, ...]:
    """Return what happened in a round, newest first."""
    return find_events(reading, EventRow.task == task, EventRow.round == number, limit=limit)


def collecting_rounds(reading: Reading) -> list[training_round.Collecting]:
    """Return the states of the rounds whose cohort is at work."""
    states = reading.session.scalars(select(RoundRow.state).where(RoundRow.phase == "collecting"))
    decoded = (_STATES.decode(state) for state in states)
    return [state for state in decoded if isinstance(state, training_round.Collecting)]


def _members(
    state: training_round.Collecting | training_round.Aggregating | training_round.Completed | training_round.Abandoned,
) -> Iterable[records.DeviceInRound]:
    accepted = {one.device: one for one in state.accepted}
    refused = {one.device: one.verdict for one in state.refused}
    given_back = {one.device: one.why for one in state.given_back}
    unsettled: records.Outcome = "training" if isinstance(state, training_round.Collecting) else "cancelled"
    for device in sorted(state.cohort):
        if one := accepted.get(device):
            metrics = one.metrics
            accuracy = metrics.correct_count / metrics.example_count if metrics.example_count else None
            yield records.DeviceInRound(device, "accepted", None, one.example_count, accuracy, one.training_s)
        elif device in refused:
            yield records.DeviceInRound(device, "refused", refused[device], None, None, None)
        elif device in given_back:
            yield records.DeviceInRound(device, "given-back", given_back[device], None, None, None)
        else:
            yield records.DeviceInRound(device, unsettled, None, None, None, None)
