"""The gate itself: what it skips, and that nothing is skipped where nothing may be."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.documentation.sources import ROOT

SKIPPING = """
import pytest

@pytest.mark.needs_program("no-such-program", "no-such-package")
def test_that_misses_its_program() -> None:
    pass
"""
SKIPPING_AS_A_WHOLE = """
import pytest
pytest.importorskip("no_such_module")
"""


def run_pytest(folder: Path, *, no_skip: str) -> subprocess.CompletedProcess[str]:
    """Run the tests in ``folder`` under the project's own rules."""
    (folder / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder), str(folder)],
        env={"FALLOW_NO_SKIP": no_skip, "PATH": ""},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_test_without_its_program_is_skipped_by_name_and_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "test_program.py").write_text(SKIPPING)
    run = run_pytest(tmp_path, no_skip="")
    assert run.returncode == 0
    assert "no-such-program is absent: apt-get install no-such-package" in run.stdout


@pytest.mark.parametrize("content", [SKIPPING, SKIPPING_AS_A_WHOLE], ids=["a test", "a module"])
def test_a_skip_is_a_failure_where_nothing_may_be_skipped(tmp_path: Path, content: str) -> None:
    (tmp_path / "test_program.py").write_text(content)
    run = run_pytest(tmp_path, no_skip="1")
    assert run.returncode != 0
    assert "FALLOW_NO_SKIP allows no skip" in run.stdout
