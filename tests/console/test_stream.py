import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from flask import Flask

from cloud_aggregator.adapters.database import Database
from cloud_aggregator.adapters.event_feed import EventFeed
from tests.console.sample_fleet import TASK
from tests.console.visitors import parts_of, visit_as


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path / 'feed.db'}")
    yield made
    made.close()


def quick_feed(database: Database, **settings: float) -> EventFeed:
    return EventFeed(database.engine, **{"look_every_s": 0.01, "comment_every_s": 0.05, "stream_s": 30.0, **settings})  # type: ignore[arg-type]


def record(database: Database, *kinds: str, task: str | None = None, round_number: int | None = None) -> None:
    with database.transaction() as tx:
        for kind in kinds:
            tx.record(kind, task=task, round_number=round_number)


def kinds_of(stream: Iterator[bytes], count: int) -> list[str]:
    """The kinds of the next ``count`` events; comments are skipped."""
    events = (part for part in stream if b"data: " in part)
    return [msgspec.json.decode(part.split(b"data: ")[1])["kind"] for part in itertools.islice(events, count)]


def open_stream(
    feed: EventFeed, after: int | None = None, task: str | None = None, number: int | None = None
) -> Iterator[bytes]:
    stream = feed.open_stream(after, task, number, lambda: True)
    assert stream is not None
    return stream


def test_a_stream_tells_what_happens_from_now_on(database: Database) -> None:
    record(database, "old")
    stream = open_stream(quick_feed(database))
    assert b"id: 1\n" in next(stream)
    threading.Timer(0.05, record, (database, "new", "newer")).start()
    assert kinds_of(stream, 2) == ["new", "newer"]


def test_a_browser_that_comes_back_hears_what_it_missed_and_nothing_twice(database: Database) -> None:
    record(database, "first", "second")
    first = open_stream(quick_feed(database), after=0)
    assert kinds_of(first, 1) == ["first"]
    first.close()  # type: ignore[attr-defined]
    record(database, "third")
    assert kinds_of(open_stream(quick_feed(database), after=1), 2) == ["second", "third"]


def test_a_number_that_never_was_means_from_now_on(database: Database) -> None:
    record(database, "old")
    stream = open_stream(quick_feed(database), after=10**9)
    record(database, "new")
    assert kinds_of(stream, 1) == ["new"]


def test_a_page_hears_only_of_its_own_round(database: Database) -> None:
    stream = open_stream(quick_feed(database), after=0, task="spar", number=2)
    record(database, "other task", task="digits", round_number=2)
    record(database, "other round", task="spar", round_number=1)
    record(database, "its own", task="spar", round_number=2)
    assert kinds_of(stream, 1) == ["its own"]


def test_more_than_a_batch_of_news_arrives_whole_and_in_order(database: Database) -> None:
    kinds = [f"event-{index}" for index in range(450)]
    record(database, *kinds)
    assert kinds_of(open_stream(quick_feed(database), after=0), 450) == kinds


def test_a_quiet_stream_says_that_it_is_there(database: Database) -> None:
    stream = open_stream(quick_feed(database))
    next(stream)
    assert next(stream) == b": still here\n\n"


def test_a_stream_ends_after_its_time_and_with_its_session(database: Database) -> None:
    short = open_stream(quick_feed(database, stream_s=0.0))
    assert len(list(short)) == 1
    unwelcome = quick_feed(database).open_stream(None, None, None, lambda: False)
    assert unwelcome is not None
    assert len(list(unwelcome)) == 1


def test_there_are_only_so_many_streams_and_a_closed_one_gives_its_place_back(database: Database) -> None:
    feed = quick_feed(database, stream_max=2)
    first, _second = open_stream(feed), open_stream(feed)
    assert feed.open_stream(None, None, None, lambda: True) is None
    assert feed.open_count == 2
    first.close()  # type: ignore[attr-defined]
    assert feed.open_count == 1
    assert feed.open_stream(None, None, None, lambda: True) is not None


def test_the_page_hears_events_with_their_numbers(console: Flask) -> None:
    visitor = visit_as(console, "viewer")
    answer = visitor.get(f"/stream?task={TASK}", Last_Event_ID="3")
    assert answer.content_type.startswith("text/event-stream")
    assert answer.headers["X-Accel-Buffering"] == "no"
    parts = answer.response
    body = b"".join(itertools.islice((part if isinstance(part, bytes) else part.encode() for part in parts), 3))
    assert b"id: 4\n" in body
    answer.close()
    assert parts_of(console).feed.open_count == 0


def test_beyond_the_cap_the_page_is_told_at_once_to_poll(console: Flask) -> None:
    feed = parts_of(console).feed
    open_ones = [open_stream(feed) for _ in range(64)]
    assert visit_as(console, "viewer").get("/stream").status_code == 503
    for stream in open_ones:
        stream.close()  # type: ignore[attr-defined]


def test_an_event_that_looks_like_the_protocol_of_the_stream_stays_one_event(database: Database) -> None:
    with database.transaction() as tx:
        tx.record("odd", why="x\n\nid: 999\ndata: {}\n\n")
    stream = open_stream(quick_feed(database), after=0)
    next(stream)
    assert next(stream).count(b"\n\n") == 1
