"""The `events` table as a stream of server-sent events: one look at the database serves every open page.

Each stream holds one thread of the server for as long as it lasts, so there are at most ``stream_max`` of them and each
ends after ``stream_s``; a browser then comes back by itself and says where it left off (`Last-Event-ID`).
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator

import msgspec
from sqlalchemy import ColumnElement, Engine, func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from cloud_aggregator.adapters.schema import EventRow

_BATCH_MAX = 200
_RETRY_MS = 2000

_log = logging.getLogger(__name__)


class EventFeed:
    """Streams of one database."""

    def __init__(
        self,
        engine: Engine,
        *,
        stream_max: int = 64,
        stream_s: float = 600.0,
        comment_every_s: float = 15.0,
        look_every_s: float = 0.5,
    ) -> None:
        self._engine = engine
        self._stream_max = stream_max
        self._stream_s = stream_s
        self._comment_every_s = comment_every_s
        self._look_every_s = look_every_s
        self._changed = threading.Condition()
        self._open_count = 0
        self._is_watched = False
        self._newest = 0

    @property
    def open_count(self) -> int:
        """How many streams are open."""
        return self._open_count

    def open_stream(
        self, after: int | None, task: str | None, round_number: int | None, is_welcome: Callable[[], bool]
    ) -> Iterator[bytes] | None:
        """Return a stream of what happens after event ``after`` (None: from now on); None if there are too many.

        ``is_welcome`` is asked from time to time: a session that ended ends its streams.
        """
        with self._changed:
            if self._open_count >= self._stream_max:
                return None
            self._open_count += 1
            if not self._is_watched:
                self._is_watched = True
                self._newest = self._look()
                threading.Thread(target=self._watch, name="event-feed", daemon=True).start()
            start = self._newest if after is None else min(after, self._newest)
        conditions = []
        if task is not None:
            conditions.append(EventRow.task == task)
        if round_number is not None:
            conditions.append(EventRow.round == round_number)
        stream = self._stream(start, conditions, is_welcome)
        next(stream)  # Runs to its `try`, so that closing it gives its place back even if nobody reads it.
        return stream

    def _stream(
        self, seen: int, conditions: list[ColumnElement[bool]], is_welcome: Callable[[], bool]
    ) -> Iterator[bytes]:
        try:
            yield b""
            end_s = time.monotonic() + self._stream_s
            yield f"retry: {_RETRY_MS}\nid: {seen}\n\n".encode()
            while time.monotonic() < end_s:
                newest = self._wait_for_news(seen)
                if newest <= seen:
                    if not is_welcome():
                        return
                    yield b": still here\n\n"
                    continue
                with Session(self._engine) as session:
                    wanted = select(EventRow).where(EventRow.number > seen, EventRow.number <= newest, *conditions)
                    rows = session.scalars(wanted.order_by(EventRow.number).limit(_BATCH_MAX)).all()
                seen = rows[-1].number if len(rows) == _BATCH_MAX else newest
                for row in rows:
                    yield _encode(row)
        finally:
            with self._changed:
                self._open_count -= 1

    def _wait_for_news(self, seen: int) -> int:
        """Return the newest event, after the wait for a comment if there is none after ``seen``."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest > seen, self._comment_every_s)
            return self._newest

    def _watch(self) -> None:
        """Look for new events as long as anybody wants to know."""
        pause = threading.Event()
        while True:
            pause.wait(self._look_every_s)
            try:
                newest = self._look()
            except SQLAlchemyError as error:
                _log.warning("the live view cannot look for events: %s", error)
                newest = 0
            with self._changed:
                if self._open_count == 0:
                    self._is_watched = False
                    return
                if newest > self._newest:
                    self._newest = newest
                    self._changed.notify_all()

    def _look(self) -> int:
        with Session(self._engine) as session:
            return session.scalar(select(func.max(EventRow.number))) or 0


def _encode(row: EventRow) -> bytes:
    fields = {
        "number": row.number,
        "at": row.at,
        "kind": row.kind,
        "task": row.task,
        "round": row.round,
        "device": row.device,
        "detail": msgspec.Raw(row.detail.encode()),
    }
    return b"id: %d\ndata: %s\n\n" % (row.number, msgspec.json.encode(fields))
