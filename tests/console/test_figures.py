"""What is counted and drawn, redone by hand."""

import itertools
import math
from pathlib import Path

from flask import Flask
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from cloud_aggregator.console import charts
from cloud_aggregator.console.records import Page
from cloud_aggregator.console.spreads import spread_of
from cloud_aggregator.training_round import Accepted
from federated_core.protocol.messages import Metrics
from tests.console.sample_fleet import TASK, device_name
from tests.console.visitors import Visitor, parts_of, visit_as

FINITE = st.floats(-1e12, 1e12, allow_nan=False)


def reported(correct_count: int, example_count: int) -> Accepted:
    return Accepted("d1", 10, Metrics(example_count, correct_count, 0.0), None, None, 1.0)


def test_the_spread_is_over_devices_each_counting_once() -> None:
    spread = spread_of([reported(1, 10), reported(30, 100), reported(5, 10), reported(7, 10), reported(9, 10)])
    assert spread is not None
    assert spread.device_count == 5
    assert [spread.low, spread.quarter, spread.median, spread.three_quarters, spread.high] == [0.1, 0.3, 0.5, 0.7, 0.9]


def test_between_two_devices_the_spread_is_in_proportion() -> None:
    spread = spread_of([reported(0, 10), reported(10, 10)])
    assert spread is not None
    assert [spread.quarter, spread.median, spread.three_quarters] == [0.25, 0.5, 0.75]


def test_devices_without_a_holdout_have_no_spread() -> None:
    assert spread_of([reported(0, 0)]) is None
    assert spread_of([]) is None


@given(FINITE, FINITE)
def test_ticks_enclose_the_values_and_are_even_and_few(one: float, other: float) -> None:
    low, high = sorted((one, other))
    found = charts.ticks(low, high)
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert found[0] <= low + slack
    assert found[-1] >= high - slack
    assert 2 <= len(found) <= 8
    steps = [after - before for before, after in itertools.pairwise(found)]
    assert all(math.isclose(step, steps[0], rel_tol=1e-3) for step in steps)


def test_no_axis_of_a_share_goes_beyond_one() -> None:
    assert charts.ticks(0.71, 0.98, 1.0)[-1] == 1.0


@given(st.lists(st.none() | st.floats(0.0, 1.0), min_size=1, max_size=60))
def test_a_chart_stays_within_its_frame(values: list[float | None]) -> None:
    numbers = list(range(5, 5 + len(values)))
    chart = charts.draw("a", "A", numbers, [charts.Series("a", "main", tuple(values))], label=str)
    if chart is None:
        assert not any(value is not None for value in values)
        return
    for x, y in chart.lines[0].dots:
        assert chart.left <= x <= chart.right
        assert chart.top - 0.1 <= y <= chart.bottom + 0.1


def test_a_missing_value_leaves_a_gap_in_the_line() -> None:
    chart = charts.draw("a", "A", [1, 2, 3, 4], [charts.Series("a", "main", (0.1, None, 0.3, 0.4))], label=str)
    assert chart is not None
    assert chart.lines[0].path.count("M") == 2


def test_a_list_has_at_least_one_page() -> None:
    assert [Page((), 1, 50, total).count for total in (0, 1, 50, 51)] == [1, 1, 1, 2]


def test_every_invited_device_has_exactly_one_outcome(console: Flask) -> None:
    visitor = visit_as(console, "viewer")
    for number in (5, 17, 31):
        detail = visitor.get(f"/api/v1/rounds/{TASK}/{number}").get_json()
        devices = visitor.get(f"/api/v1/rounds/{TASK}/{number}/devices").get_json()
        outcomes = [one["outcome"] for one in devices["items"]]
        assert len(outcomes) == detail["invited"] == 13
        assert outcomes.count("accepted") == detail["accepted"]
        assert outcomes.count("training") == detail["training"]
        assert outcomes.count("refused") == sum(detail["refused"].values())
        assert outcomes.count("given-back") == sum(detail["given_back"].values())
        assert outcomes.count("cancelled") == detail["cancelled"]


def test_a_report_that_came_late_is_counted_once_however_often_it_came(console: Flask) -> None:
    database = parts_of(console).service._database
    for _ in range(3):
        with database.transaction() as tx:
            tx.record("report-late", task=TASK, round_number=5, device=device_name(5))
    assert visit_as(console, "viewer").get(f"/api/v1/rounds/{TASK}/5").get_json()["late"] == 1


def test_the_fleet_is_counted_by_what_is_known_of_each_device(console: Flask) -> None:
    visitor = visit_as(console, "viewer")
    counts = visitor.get("/api/v1/overview").get_json()["presence"]
    assert sum(counts.values()) == 40
    for presence, count in counts.items():
        page = visitor.get(f"/api/v1/devices?presence={presence}").get_json()
        assert page["total"] == count
        assert {one["presence"] for one in page["items"]} <= {presence}


def test_the_fleet_is_paged_and_filtered(console: Flask) -> None:
    visitor = visit_as(console, "viewer")
    assert "d785f3ec7eb32f30" in visitor.get("/fleet?text=D785F").text
    assert "No device matches" in visitor.get("/fleet?text=nothing-like-it").text
    assert "No device matches" in visitor.get("/fleet?text=%25").text, "a wildcard is a character like any other"
    assert visitor.get("/api/v1/devices?page=2").get_json()["items"] == []
    assert visitor.get("/api/v1/devices?presence=asleep").status_code == 400


def test_a_checkpoint_names_the_round_that_made_it_and_how_it_did(console: Flask) -> None:
    visitor = visit_as(console, "viewer")
    checkpoints = {one["version"]: one for one in visitor.get(f"/api/v1/checkpoints/{TASK}").get_json()["items"]}
    rounds = {one["number"]: one for one in visitor.get(f"/api/v1/rounds?task={TASK}").get_json()["items"]}
    assert checkpoints[7]["made_by_round"] == 7
    assert checkpoints[7]["accuracy"] == rounds[8]["accuracy"], "round 8 trained from version 7, and judged it first"
    assert checkpoints[0]["made_by_round"] is None
    assert 17 not in checkpoints, "round 17 was abandoned"


def test_the_releases_say_which_device_runs_what(console: Flask) -> None:
    visitor = visit_as(console, "viewer")
    running = {one["number"]: one["device_count"] for one in visitor.get("/api/v1/running").get_json()}
    assert sum(running.values()) == 40
    assert visitor.get("/api/v1/releases/5").get_json()["running_count"] == running[5]
    assert f"{TASK} 5" in visitor.get(f"/fleet?text={device_name(0)}").text


def test_events_are_polled_from_where_one_left_off(console: Flask) -> None:
    visitor = visit_as(console, "viewer")
    first = visitor.get("/api/v1/events").get_json()
    assert [one["number"] for one in first] == list(range(1, 201))
    rest = visitor.get("/api/v1/events?after=200").get_json()
    assert rest[0]["number"] == 201


def test_prometheus_can_read_the_metrics(console: Flask) -> None:
    text = visit_as(console, "viewer").get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert sum(sample.value for sample in families["fallow_devices"].samples) == 40
    rounds = {tuple(sorted(sample.labels.items())): sample.value for sample in families["fallow_rounds"].samples}
    assert rounds[("phase", "completed"), ("task", TASK)] == 29
    assert families["fallow_protocol_errors"].samples[0].value == 3


def test_a_database_that_does_not_answer_makes_the_console_unhealthy(console: Flask, tmp_path: Path) -> None:
    assert Visitor(console).get("/healthz").text == "ok\n"
    parts_of(console).engine.dispose()
    for path in tmp_path.glob("aggregator.db*"):
        path.unlink()
    (tmp_path / "aggregator.db").mkdir()
    assert Visitor(console).get("/healthz").status_code == 503


def test_an_empty_fleet_says_what_to_do_next(empty_console: Flask) -> None:
    visitor = visit_as(empty_console, "operator")
    expected = {
        "/": "Make a token",
        "/fleet": "edge-agent enroll",
        "/rounds": "Start a task",
        "/models": "Start a task",
        "/releases": "Nothing is released yet",
        "/tasks": "cloud-aggregator task create",
        "/tokens": "Make one above",
    }
    for path, hint in expected.items():
        assert hint in visitor.get(path).text, path


def test_a_viewer_is_shown_no_control_that_would_be_refused(console: Flask) -> None:
    visitor = visit_as(console, "viewer")
    for path in ("/tasks", f"/tasks/{TASK}", "/tokens", "/releases/5", f"/models/{TASK}"):
        text = visitor.get(path).text
        for control in ("Abort", "Make a token</button>", "Revoke spring", "Promote", "Roll back</a>", "Halt</a>"):
            assert control not in text, (path, control)


def test_a_token_is_shown_once_and_its_secret_is_nowhere_else(console: Flask, asked: list[str]) -> None:
    visitor = visit_as(console, "operator")
    made = visitor.post("/tokens", uses="3", hours="2", name="lab-2")
    token = made.text.partition("--token ")[2].partition("<")[0]
    assert len(token) > 100
    for path in ("/tokens", "/audit", "/", "/api/v1/tokens", "/api/v1/events"):
        assert token not in visitor.get(path).text


def test_what_was_done_is_said_once(console: Flask, asked: list[str]) -> None:
    visitor = visit_as(console, "operator")
    answer = visitor.post(f"/tasks/{TASK}/pause")
    assert "Task spar is paused." not in visitor.get(answer.headers["Location"], X_Live="1").text
    assert "Task spar is paused." in visitor.get(answer.headers["Location"]).text
    assert "Task spar is paused." not in visitor.get(answer.headers["Location"]).text
