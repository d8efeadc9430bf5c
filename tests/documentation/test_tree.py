"""What the shape of the tree says: sizes, names, unfinished places, paths of one machine."""

import re
import warnings
from pathlib import Path

import pytest

from tests.documentation.sources import ROOT, project_files, relative

SOFT_LINES_MAX = 300
HARD_LINES_MAX = 500
EMPTY_NAMES = re.compile(r"(utils?|helpers?|common|misc)")
UNFINISHED = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "NotImplemented" + "Error")) + r")\b")
MODULES = project_files(".py")
TEXTS = [path for path in project_files() if path.suffix in {"", ".cfg", ".md", ".py", ".sh", ".toml", ".txt", ".html"}]


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_module_has_one_concern(path: Path) -> None:
    line_count = len(path.read_text().splitlines())
    assert line_count <= HARD_LINES_MAX, f"{relative(path)}: expected at most {HARD_LINES_MAX} lines, got {line_count}"
    if line_count > SOFT_LINES_MAX and "tests" not in path.relative_to(ROOT).parts:
        warnings.warn(f"{relative(path)}: {line_count} lines, soft limit {SOFT_LINES_MAX}", stacklevel=1)


def test_a_module_is_named_after_its_content() -> None:
    assert [relative(path) for path in MODULES if EMPTY_NAMES.fullmatch(path.stem)] == []


def test_nothing_is_left_unfinished() -> None:
    found = [
        f"{relative(path)}:{number}: {line.strip()}"
        for path in MODULES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if UNFINISHED.search(line)
    ]
    assert found == []


def test_no_file_names_a_path_of_one_machine() -> None:
    here = [f"{ROOT}/", f"{ROOT.parent}/shared", f"{Path.home()}/"]
    found = [
        f"{relative(path)}: {place}" for path in TEXTS for place in here if place in path.read_text(errors="ignore")
    ]
    assert found == []


def test_every_product_package_publishes_its_types() -> None:
    packages = ROOT.glob("*/py.typed")
    assert sorted(path.parent.name for path in packages) == ["cloud_aggregator", "edge_agent", "federated_core"]
