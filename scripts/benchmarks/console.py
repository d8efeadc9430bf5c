"""How fast the console answers: a large fleet in SQLite, the real server, one request after the other."""

import http.client
import re
import statistics
import tempfile
import time
import urllib.parse
from pathlib import Path
from typing import NamedTuple

from tests.console.sample_fleet import TASK, device_name
from tests.console.served_console import PASSWORD, served_console


class PageTime(NamedTuple):
    """How long a page took to be answered in full, in milliseconds; ``first_ms`` with nothing warmed up."""

    path: str
    median_ms: float
    slowest_ms: float
    first_ms: float
    size_bytes: int


class ConsoleFigures(NamedTuple):
    """All pages of a fleet of this size."""

    device_count: int
    round_count: int
    reports_per_round: int
    slowest_median_ms: float
    pages: tuple[PageTime, ...]


def pages(round_count: int) -> tuple[str, ...]:
    """Every page that reads the database, the heavier variants too."""
    return (
        "/",
        "/fleet",
        "/fleet?presence=away&order=seen",
        "/fleet?text=onnx&page=100",
        f"/devices/{device_name(3)}",
        "/rounds",
        "/rounds?last=1000",
        f"/rounds/{TASK}/{round_count}",
        f"/rounds/{TASK}/{round_count + 1}",
        "/models",
        f"/models/{TASK}",
        "/releases",
        "/releases/1",
        f"/promote/{TASK}",
        "/tasks",
        f"/tasks/{TASK}",
        f"/tasks/{TASK}/abort",
        "/tokens",
        "/audit",
        "/audit?text=10.0.0.7",
        "/account",
        "/metrics",
        "/healthz",
        "/api/v1/overview",
        "/api/v1/devices",
        f"/api/v1/series/{TASK}?last=1000",
    )


def measure_console(device_count: int, round_count: int, reports_per_round: int, repeat_count: int) -> ConsoleFigures:
    """Fill a database, serve its console, and ask for each page ``repeat_count`` times."""
    with (
        tempfile.TemporaryDirectory() as folder,
        served_console(
            Path(folder), device_count=device_count, round_count=round_count, goal=reports_per_round
        ) as address,
    ):
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(address).netloc, timeout=60.0)
        cookie = sign_in(connection)
        found = tuple(_measure(connection, cookie, path, repeat_count) for path in pages(round_count))
    slowest = max(page.median_ms for page in found)
    return ConsoleFigures(device_count, round_count, reports_per_round, slowest, found)


def _measure(connection: http.client.HTTPConnection, cookie: str, path: str, repeat_count: int) -> PageTime:
    times_ms, body = [], b""
    for _ in range(repeat_count + 1):
        start_s = time.perf_counter()
        connection.request("GET", path, headers={"Cookie": cookie})
        answer = connection.getresponse()
        body = answer.read()
        times_ms.append(1000.0 * (time.perf_counter() - start_s))
        if answer.status != 200:
            raise RuntimeError(f"{path}: expected 200, got {answer.status}")
    first_ms, *later_ms = (round(one, 1) for one in times_ms)
    return PageTime(path, round(statistics.median(later_ms), 1), max(later_ms), first_ms, len(body))


def sign_in(connection: http.client.HTTPConnection) -> str:
    """Sign in over ``connection`` as a browser does; return the session's cookie."""
    connection.request("GET", "/login")
    answer = connection.getresponse()
    token = re.search(rb'name="form_token" value="([0-9a-f]+)"', answer.read())
    before = (answer.getheader("Set-Cookie") or "").partition(";")[0]
    assert token is not None
    form = urllib.parse.urlencode({"user": "anna", "password": PASSWORD, "form_token": token[1].decode()})
    headers = {"Cookie": before, "Content-Type": "application/x-www-form-urlencoded"}
    connection.request("POST", "/login", form, headers)
    answer = connection.getresponse()
    answer.read()
    return (answer.getheader("Set-Cookie") or "").partition(";")[0]
