"""Who reaches what: every route of the application, for everybody."""

import io
import re
from pathlib import Path

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from cloud_aggregator.config import AggregatorSettings, ConsoleSettings
from cloud_aggregator.console.guard import HEADERS
from cloud_aggregator.console.permissions import needs, permission_of, refuse_undeclared
from federated_core.errors import LocalMisuseError
from tests.console.sample_fleet import TASK, device_name
from tests.console.visitors import Clock, Visitor, commands_taken, make_console, parts_of, visit_as

DEVICE = device_name(3)
ROLES = ("nobody", "viewer", "operator")
PAGE, API, CHANGE = (303, 200, 200), (401, 200, 200), (401, 403, 303)
EXPECTED: dict[tuple[str, str], tuple[int, int, int]] = {  # By nobody, a viewer, an operator.
    ("GET", "/"): PAGE,
    ("GET", "/fleet"): PAGE,
    ("GET", f"/devices/{DEVICE}"): PAGE,
    ("GET", "/rounds"): PAGE,
    ("GET", f"/rounds/{TASK}/5"): PAGE,
    ("GET", "/models"): PAGE,
    ("GET", f"/models/{TASK}"): PAGE,
    ("GET", "/releases"): PAGE,
    ("GET", "/releases/5"): PAGE,
    ("GET", f"/promote/{TASK}"): (303, 403, 200),
    ("POST", f"/promote/{TASK}"): (401, 403, 503),  # The sample fleet has no blobs to promote.
    ("GET", "/releases/5/halt"): (303, 403, 200),
    ("POST", "/releases/5/halt"): CHANGE,
    ("GET", "/tasks"): PAGE,
    ("GET", f"/tasks/{TASK}"): PAGE,
    ("GET", "/tokens"): PAGE,
    ("GET", "/audit"): PAGE,
    ("GET", "/account"): PAGE,
    ("GET", "/stream"): PAGE,
    ("GET", "/start-task"): (303, 403, 200),
    ("GET", f"/tasks/{TASK}/pause"): (303, 403, 200),
    ("GET", "/tokens/spring/revoke"): (303, 403, 200),
    ("POST", "/start-task"): (401, 403, 400),  # Without files.
    ("POST", f"/tasks/{TASK}/pause"): CHANGE,
    ("POST", "/tokens"): (401, 403, 200),  # The answer shows the token, for the only time.
    ("POST", "/tokens/spring/revoke"): CHANGE,
    ("POST", "/account/password"): (401, 400, 400),  # With a wrong present password.
    ("POST", "/account/sign-out-everywhere"): (401, 303, 303),
    ("POST", "/logout"): (401, 303, 303),
    ("GET", "/login"): (200, 200, 200),
    ("POST", "/login"): (403, 403, 403),  # With a wrong password.
    ("GET", "/healthz"): (200, 200, 200),
    ("GET", "/metrics"): API,
    ("GET", "/assets/0/console.css"): (404, 404, 404),  # Of another content.
    ("GET", "/api/v1/overview"): API,
    ("GET", "/api/v1/devices"): API,
    ("GET", f"/api/v1/devices/{DEVICE}"): API,
    ("GET", "/api/v1/rounds"): API,
    ("GET", f"/api/v1/rounds/{TASK}/5"): API,
    ("GET", f"/api/v1/rounds/{TASK}/5/devices"): API,
    ("GET", f"/api/v1/series/{TASK}"): API,
    ("GET", "/api/v1/tasks"): API,
    ("GET", f"/api/v1/tasks/{TASK}"): API,
    ("GET", f"/api/v1/checkpoints/{TASK}"): API,
    ("GET", "/api/v1/releases"): API,
    ("GET", "/api/v1/releases/5"): API,
    ("GET", "/api/v1/releases/5/devices"): API,
    ("GET", "/api/v1/running"): API,
    ("GET", "/api/v1/tokens"): API,
    ("GET", "/api/v1/events"): API,
    ("GET", "/api/v1/audit"): API,
}
FIELDS = {
    "uses": "1",
    "hours": "1",
    "user": "anna",
    "password": "not that one",
    "name": "",
    "version": "3",
    "percent": "10",
}


def ask(visitor: Visitor, method: str, path: str) -> TestResponse:
    return visitor.get(path) if method == "GET" else visitor.post(path, **FIELDS)


@pytest.mark.parametrize("place", list(EXPECTED), ids=" ".join)
def test_a_route_answers_each_role_as_the_table_says(console: Flask, asked: list[str], place: tuple[str, str]) -> None:
    answers = []
    for role in ROLES:
        answer = ask(visit_as(console, role), *place)
        answers.append(answer.status_code)
        answer.close()
    assert tuple(answers) == EXPECTED[place]


def test_the_table_knows_every_route(console: Flask) -> None:
    adapter = console.url_map.bind("localhost")
    known = {(method, adapter.match(path, method=method)[0]) for method, path in EXPECTED}
    there = {
        (method, rule.endpoint)
        for rule in console.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert known == there


UNSAFE = [path for method, path in EXPECTED if method == "POST"]


@pytest.mark.parametrize("path", UNSAFE)
@pytest.mark.parametrize("token", ["", "0" * 64], ids=["missing", "wrong"])
def test_an_unsafe_route_refuses_a_form_without_our_token(console: Flask, path: str, token: str) -> None:
    answer = visit_as(console, "operator").post(path, form_token=token, **FIELDS)
    assert answer.status_code == 400
    assert "form" in answer.text


@pytest.mark.parametrize("path", UNSAFE)
def test_an_unsafe_route_refuses_the_token_of_another_session(console: Flask, path: str) -> None:
    other = visit_as(console, "operator").form_token()
    assert visit_as(console, "operator").post(path, form_token=other, **FIELDS).status_code == 400


@pytest.mark.parametrize(
    "headers", [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}]
)
def test_a_form_from_another_site_is_refused_even_with_a_token(console: Flask, headers: dict[str, str]) -> None:
    visitor = visit_as(console, "operator")
    answer = visitor.client.post("/logout", data={"form_token": visitor.form_token()}, headers=headers)
    assert answer.status_code == 400


def test_a_route_that_declares_no_permission_is_refused_at_the_start(console: Flask) -> None:
    app = Flask("undeclared", static_folder=None)
    app.add_url_rule("/open-door", view_func=lambda: "come in", endpoint="door")
    with pytest.raises(LocalMisuseError, match="/open-door"):
        refuse_undeclared(app)


def test_a_route_that_is_added_later_without_a_permission_answers_nobody(tmp_path: Path, clock: Clock) -> None:
    app = make_console(tmp_path, clock, device_count=0)
    app.add_url_rule("/late", view_func=lambda: "come in", endpoint="late")
    assert permission_of(app, "late") is None
    assert visit_as(app, "operator").get("/late").status_code == 403
    parts_of(app).engine.dispose()


def test_a_declared_permission_is_what_the_guard_reads(console: Flask) -> None:
    assert permission_of(console, "tasks.change") == "operate"
    assert permission_of(console, "fleet.show") == "view"
    assert needs("public")(lambda: "")() == ""


@pytest.mark.parametrize("path", ["/", "/login", "/nothing-here", "/healthz", "/api/v1/tasks", "/assets/0/console.css"])
def test_every_answer_carries_the_headers(console: Flask, path: str) -> None:
    answer = visit_as(console, "viewer").get(path)
    assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS


def test_the_policy_allows_no_inline_code_and_no_other_host() -> None:
    policy = HEADERS["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert re.findall(r"https?:", policy) == []
    assert "default-src 'none'" in policy


def test_no_template_holds_inline_code(console: Flask) -> None:
    visitor = visit_as(console, "operator")
    for method, path in EXPECTED:
        if method == "GET" and not path.startswith(("/stream", "/api", "/assets", "/metrics")):
            text = visitor.get(path).text
            assert re.findall(r"<script(?! src=)|\son\w+=|\sstyle=|javascript:", text) == [], path


def test_an_asset_is_kept_for_good_under_the_name_of_its_content(console: Flask) -> None:
    address = re.search(r"/assets/[0-9a-f]{16}/console.css", Visitor(console).get("/login").text)
    assert address is not None
    answer = Visitor(console).get(address[0])
    assert answer.status_code == 200
    assert "immutable" in answer.headers["Cache-Control"]


def test_a_program_reads_the_metrics_with_its_token_and_nothing_else(tmp_path: Path, clock: Clock) -> None:
    token = tmp_path / "metrics.token"
    token.write_text("sixteen-characters-or-more\n")
    settings = AggregatorSettings(fleet="demo", console=ConsoleSettings(metrics_token_file=str(token)))
    app = make_console(tmp_path / "state", clock, settings, device_count=0)
    program = Visitor(app)
    right, wrong = "Bearer sixteen-characters-or-more", "Bearer something-else"
    assert program.get("/metrics", Authorization=right).status_code == 200
    assert [program.get("/metrics", Authorization=text).status_code for text in (wrong, "Bearer ", "")] == [401] * 3
    assert program.get("/api/v1/overview", Authorization=right).status_code == 401
    parts_of(app).engine.dispose()


@pytest.mark.parametrize("content", [None, "short"])
def test_a_metrics_token_that_is_missing_or_short_is_refused_at_the_start(
    tmp_path: Path, clock: Clock, content: str | None
) -> None:
    token = tmp_path / "metrics.token"
    if content is not None:
        token.write_text(content)
    settings = AggregatorSettings(fleet="demo", console=ConsoleSettings(metrics_token_file=str(token)))
    with pytest.raises(LocalMisuseError, match="metrics_token_file"):
        make_console(tmp_path / "state", clock, settings, device_count=0)


def test_a_page_is_never_kept_by_the_browser(console: Flask) -> None:
    assert visit_as(console, "viewer").get("/fleet").headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "path", ["/devices/..%2f..", "/devices/A", "/devices/" + "x" * 49, "/rounds/spar/-1", "/rounds/spar/999"]
)
def test_an_odd_name_in_an_address_is_no_page(console: Flask, path: str) -> None:
    assert visit_as(console, "viewer").get(path).status_code == 404


@pytest.mark.parametrize("query", ["page=0", "page=-1", "page=x", "page=99999999", "page=٣", "last=5000"])
def test_an_odd_number_in_a_query_is_refused(console: Flask, query: str) -> None:
    assert visit_as(console, "viewer").get(f"/rounds?{query}").status_code == 400


def test_a_form_that_is_too_large_is_refused_before_it_is_read(console: Flask) -> None:
    visitor = visit_as(console, "operator")
    answer = visitor.post("/tokens", name="x" * 100_000, uses="1", hours="1")
    assert answer.status_code == 413


def test_a_recipe_with_a_mistake_is_answered_with_the_mistake(console: Flask, asked: list[str]) -> None:
    visitor = visit_as(console, "operator")
    files = {"model": (io.BytesIO(b"x"), "m.onnx"), "plan": (io.BytesIO(b"[model]\nnmae = 'x'\n"), "plan.toml")}
    answer = visitor.post("/start-task", **{"name": "spar2", **files})
    assert answer.status_code == 409
    assert "did you mean" in answer.text


def test_what_is_asked_for_names_who_asked_and_from_where(console: Flask, asked: list[str]) -> None:
    visit_as(console, "operator").post(f"/tasks/{TASK}/pause")
    assert asked == ["anna at 10.0.0.7"]


def test_a_refused_command_is_told(console: Flask, tmp_path: Path) -> None:
    with commands_taken(tmp_path, AggregatorSettings(), refusal="no task 'spar'; known are none"):
        answer = visit_as(console, "operator").post(f"/tasks/{TASK}/pause")
    assert answer.status_code == 409
    assert "known are none" in answer.text
