"""The console beside a real aggregator: it comes with it, ends with it, and keeps room for pages beside its streams."""

import http.client
import re
import socket
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from scripts.benchmarks.console import sign_in
from scripts.fleet_demo.fleet import AGGREGATOR, Fleet
from scripts.process_groups import MIB, ProcessGroups
from tests.console.served_console import served_console

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]
STREAMS_MAX = 64


@pytest.fixture
def groups() -> Iterator[ProcessGroups]:
    with ProcessGroups(limit_bytes=2 * 1024 * MIB, process_address_space_bytes=16 * 1024 * MIB) as running:
        yield running


def start(folder: Path, groups: ProcessGroups) -> tuple[psutil.Process, list[psutil.Process], str]:
    """Start an aggregator with a console; return its process, those of the console, and the console's address."""
    fleet = Fleet(folder, groups, 0)
    fleet.start_aggregator()
    for event in fleet.events(60.0):
        fleet.check()
        found = re.search(r"the console is at http://(\S+)", fleet.log_of(AGGREGATOR).read_text())
        if event is None and found:
            break
    aggregator = psutil.Process(min(groups.members()[AGGREGATOR]))
    console = [
        one for one in aggregator.children(recursive=True) if "cloud_aggregator.console_process" in one.cmdline()
    ]
    assert found is not None
    assert len(console) == 2, "gunicorn's arbiter and its one worker"
    return aggregator, console, found[1]


def test_the_console_ends_with_its_aggregator_even_if_that_is_killed(tmp_path: Path, groups: ProcessGroups) -> None:
    aggregator, console, address = start(tmp_path, groups)
    connection = http.client.HTTPConnection(address, timeout=20.0)
    connection.request("GET", "/healthz")
    assert connection.getresponse().read() == b"ok\n"
    aggregator.kill()
    assert psutil.wait_procs(console, timeout=30.0)[1] == []
    host, port = address.split(":")
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((host, int(port)), timeout=5.0)


def test_the_aggregator_ends_its_console_in_order(tmp_path: Path, groups: ProcessGroups) -> None:
    aggregator, console, _ = start(tmp_path, groups)
    aggregator.terminate()
    assert psutil.wait_procs([aggregator, *console], timeout=30.0)[1] == []


def test_pages_are_answered_beside_as_many_streams_as_there_may_be(tmp_path: Path) -> None:
    with served_console(tmp_path) as url:
        address = urllib.parse.urlsplit(url).netloc
        cookie = sign_in(http.client.HTTPConnection(address, timeout=20.0))
        streams = [open_stream(address, cookie) for _ in range(STREAMS_MAX + 1)]
        assert [one.status for one in streams] == [200] * STREAMS_MAX + [503]
        connection = http.client.HTTPConnection(address, timeout=20.0)
        for path in ("/", "/fleet", "/rounds"):
            connection.request("GET", path, headers={"Cookie": cookie})
            answer = connection.getresponse()
            assert (answer.status, len(answer.read()) > 1000) == (200, True)
        for stream in streams:
            stream.close()


def open_stream(address: str, cookie: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(address, timeout=20.0)
    connection.request("GET", "/stream", headers={"Cookie": cookie})
    answer = connection.getresponse()
    answer.fp.readline()
    return answer
