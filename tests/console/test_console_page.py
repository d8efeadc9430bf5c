"""docs/console.md names every address that is meant for programs, and none that does not exist."""

import re

from flask import Flask

from cloud_aggregator.console import api
from tests.documentation.sources import ROOT

PAGE = ROOT / "docs" / "console.md"
PLACES = {"name": None, "task": "TASK", "number": "NUMBER"}


def test_the_page_names_every_address_of_the_api(console: Flask) -> None:
    there = set()
    for rule in console.url_map.iter_rules():
        if rule.endpoint.startswith(f"{api.blueprint.name}."):
            noun = rule.rule.removeprefix(f"{api.blueprint.url_prefix}/").partition("s/")[0].upper()
            there.add(re.sub(r"<(?:\w+:)?(\w+)>", lambda found, noun=noun: PLACES[found[1]] or noun, rule.rule))  # type: ignore[misc]
    assert set(re.findall(r"^\| `(/api/[^`]+)` \|", PAGE.read_text(), re.MULTILINE)) == there


def test_only_the_queries_of_the_console_know_sql() -> None:
    imported = re.compile(r"^from sqlalchemy\S* import (.+)$", re.MULTILINE)
    for path in (ROOT / "cloud_aggregator" / "console").glob("*.py"):
        names = {name.strip() for line in imported.findall(path.read_text()) for name in line.split(",")}
        assert names <= {"Engine", "Session"}, path.name
