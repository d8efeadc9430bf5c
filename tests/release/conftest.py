"""Folders in memory: a release makes dozens of files durable, and a shared disk takes its time over each."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")  # noqa: S108 - a fresh folder in it, readable by its owner alone.


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return an empty folder that is gone after the test."""
    path = Path(tempfile.mkdtemp(prefix="fallow-", dir=MEMORY if MEMORY.is_dir() else None))
    yield path
    shutil.rmtree(path, ignore_errors=True)
