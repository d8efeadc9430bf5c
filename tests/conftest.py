"""Rules for every test: programs that may be absent, skips that may not be, how hard hypothesis tries."""

import os
import shutil
from collections.abc import Generator
from typing import TypeVar

import hypothesis
import pytest

NO_SKIP = os.environ.get("FALLOW_NO_SKIP", "") not in {"", "0"}
SYSTEM_PROGRAMS = "/usr/local/sbin:/usr/sbin"  # Where Debian installs brokers, and no user's path leads.
Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

# The same examples in every run: a gate that fails must fail again for who looks. A shared machine has no deadlines.
hypothesis.settings.register_profile("quick", max_examples=50, deadline=None, derandomize=True)
hypothesis.settings.register_profile("thorough", max_examples=300, deadline=None, derandomize=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test by the name of the program that it misses, and say what to install."""
    for mark in item.iter_markers("needs_program"):
        program, package = mark.args
        if shutil.which(program) is None and shutil.which(program, path=SYSTEM_PROGRAMS) is None:
            pytest.skip(f"{program} is absent: apt-get install {package}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skipped test into a failed one where nothing may be skipped."""
    return _refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn a skipped module into a failed one where nothing may be skipped."""
    return _refuse_skip((yield))


def _refuse_skip(report: Report) -> Report:
    if NO_SKIP and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped, but FALLOW_NO_SKIP allows no skip: {report.longrepr}"
    return report
