"""What devices and strangers supply is text, whatever it looks like."""

from pathlib import Path

import pytest
from flask import Flask

from cloud_aggregator.console.presentation import make_visible
from tests.console.sample_fleet import TASK, device_name
from tests.console.visitors import Clock, Visitor, make_console, visit_as

SCRIPT = "<script>alert(1)</script>"
HOSTILE = f"""{SCRIPT}"'&<img src=x onerror=alert(2)>\x07\x1b[31m\u202egnp.\u200b{{{{7*7}}}}%s{{0}}"""
PAGES = [
    "/",
    "/fleet",
    f"/devices/{device_name(0)}",
    "/rounds",
    f"/rounds/{TASK}/31",
    "/tasks",
    "/tasks/digits",
    "/audit",
    "/releases/3",
]


@pytest.fixture
def hostile_console(tmp_path: Path, clock: Clock) -> Flask:
    return make_console(tmp_path, clock, hostile_text=HOSTILE)


@pytest.mark.parametrize("path", PAGES)
def test_a_page_shows_hostile_text_as_text(hostile_console: Flask, path: str) -> None:
    text = visit_as(hostile_console, "operator").get(path).text
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert not set(text) & {"\x07", "\x1b", "\u202e", "\u200b"}


@pytest.mark.parametrize("path", ["/fleet", f"/devices/{device_name(0)}", "/tasks", "/audit"])
def test_hostile_text_is_not_lost_but_visible(hostile_console: Flask, path: str) -> None:
    text = visit_as(hostile_console, "operator").get(path).text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "␇␛[31m[U+202E]gnp.[U+200B]{{7*7}}%s{0}" in text


def test_what_a_visitor_types_comes_back_as_text(console: Flask) -> None:
    visitor = visit_as(console, "viewer")
    for path in ("/fleet", "/audit"):
        text = visitor.get(f"{path}?text={SCRIPT}&kind={SCRIPT}&order={SCRIPT}").text
        assert SCRIPT not in text
    stranger = Visitor(console)
    answer = stranger.post("/login", user=f'"{SCRIPT}', password="x", next=f'"{SCRIPT}')
    assert SCRIPT not in answer.text


def test_an_error_repeats_what_was_asked_as_text(console: Flask) -> None:
    answer = visit_as(console, "viewer").get(f"/rounds?task={SCRIPT}")
    assert answer.status_code == 404
    assert SCRIPT not in answer.text


def test_hostile_text_reaches_a_program_as_json_that_no_browser_renders(hostile_console: Flask) -> None:
    answer = visit_as(hostile_console, "viewer").get("/api/v1/devices")
    assert answer.content_type == "application/json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.get_json()["items"][0]["engine"] == HOSTILE


def test_metrics_name_no_device(hostile_console: Flask) -> None:
    text = visit_as(hostile_console, "viewer").get("/metrics").text
    assert "script" not in text
    assert device_name(0) not in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain – text ü 漢 🌱", "plain – text ü 漢 🌱"),
        ("a\nb\tc\r", "a␊b␉c␍"),
        ("\x7f\x85", "[U+007F][U+0085]"),
        ("evil\u202etxt.exe\u2066\ufeff", "evil[U+202E]txt.exe[U+2066][U+FEFF]"),
        ("\U000e0041", "[U+E0041]"),
    ],
)
def test_invisible_characters_are_shown(text: str, shown: str) -> None:
    assert make_visible(text) == shown
