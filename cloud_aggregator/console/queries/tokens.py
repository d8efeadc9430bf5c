"""Enrollment tokens; their secrets are never read here."""

from sqlalchemy import func, select

from cloud_aggregator.adapters.schema import TokenRow
from cloud_aggregator.console import records
from cloud_aggregator.console.queries.reading import PAGE_SIZE, Reading


def find_page(reading: Reading, page: int = 1) -> records.Page[records.TokenSummary]:
    """Return a page of tokens, newest first."""
    total = reading.session.scalar(select(func.count()).select_from(TokenRow)) or 0
    newest = select(TokenRow).order_by(TokenRow.created_at.desc(), TokenRow.name)
    rows = reading.session.scalars(newest.offset((page - 1) * PAGE_SIZE).limit(PAGE_SIZE))
    return records.Page(tuple(_describe(reading, row) for row in rows), page, PAGE_SIZE, total)


def find(reading: Reading, name: str) -> records.TokenSummary | None:
    """Return one token."""
    row = reading.session.get(TokenRow, name)
    return None if row is None else _describe(reading, row)


def _describe(reading: Reading, row: TokenRow) -> records.TokenSummary:
    state: records.TokenState
    if row.revoked_at is not None:
        state = "revoked"
    elif row.uses >= row.uses_max:
        state = "used up"
    else:
        state = "open" if row.expires_at > reading.now_s else "expired"
    return records.TokenSummary(row.name, state, row.uses, row.uses_max, row.created_at, row.expires_at)
