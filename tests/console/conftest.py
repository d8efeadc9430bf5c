from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask

from cloud_aggregator.config import AggregatorSettings
from tests.console.visitors import Clock, commands_taken, make_console, parts_of


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def console(tmp_path: Path, clock: Clock) -> Iterator[Flask]:
    app = make_console(tmp_path, clock)
    yield app
    parts_of(app).engine.dispose()


@pytest.fixture
def empty_console(tmp_path: Path, clock: Clock) -> Iterator[Flask]:
    app = make_console(tmp_path, clock, device_count=0)
    yield app
    parts_of(app).engine.dispose()


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[list[str]]:
    with commands_taken(tmp_path, AggregatorSettings()) as actors:
        yield actors
