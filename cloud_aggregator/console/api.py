"""The JSON API: what the pages show, for programs, under the same permissions."""

from typing import Any

import msgspec
from flask import Blueprint, Response, abort, request

from cloud_aggregator.console import queries
from cloud_aggregator.console.context import number_argument, page_argument, reading, text_argument
from cloud_aggregator.console.fleet import PRESENCES
from cloud_aggregator.console.permissions import needs

blueprint = Blueprint("api", __name__, url_prefix="/api/v1")
EVENT_NUMBER_MAX = 10**15
SERIES_MAX = 1000


@blueprint.get("/overview")
@needs("view")
def overview() -> Response:
    """Answer with the fleet at a glance."""
    return _answer(queries.overview.look(reading()))


@blueprint.get("/devices")
@needs("view")
def devices() -> Response:
    """Answer with a page of the fleet."""
    presence = request.args.get("presence", "")
    if presence and presence not in PRESENCES:
        abort(400, f"presence: expected one of {', '.join(PRESENCES)}")
    return _answer(
        queries.devices.find_page(reading(), text=text_argument("text"), presence=presence, page=page_argument())
    )


@blueprint.get("/devices/<identifier:name>")
@needs("view")
def device(name: str) -> Response:
    """Answer with one device."""
    return _answer(queries.devices.find(reading(), name))


@blueprint.get("/rounds")
@needs("view")
def rounds() -> Response:
    """Answer with a page of rounds, newest first."""
    return _answer(queries.rounds.find_page(reading(), task=text_argument("task"), page=page_argument()))


@blueprint.get("/rounds/<identifier:task>/<int:number>")
@needs("view")
def one_round(task: str, number: int) -> Response:
    """Answer with one round."""
    return _answer(queries.rounds.find(reading(), task, number))


@blueprint.get("/rounds/<identifier:task>/<int:number>/devices")
@needs("view")
def cohort(task: str, number: int) -> Response:
    """Answer with a page of the cohort of one round."""
    return _answer(queries.rounds.cohort_page(reading(), task, number, page_argument()))


@blueprint.get("/series/<identifier:task>")
@needs("view")
def series(task: str) -> Response:
    """Answer with the figures behind the charts."""
    return _answer(queries.rounds.series(reading(), task, number_argument("last", 100, SERIES_MAX)))


@blueprint.get("/tasks")
@needs("view")
def tasks() -> Response:
    """Answer with all tasks."""
    return _answer(queries.tasks.find_all(reading()))


@blueprint.get("/tasks/<identifier:name>")
@needs("view")
def task(name: str) -> Response:
    """Answer with one task."""
    return _answer(queries.tasks.find(reading(), name))


@blueprint.get("/checkpoints/<identifier:task>")
@needs("view")
def checkpoints(task: str) -> Response:
    """Answer with a page of the checkpoints of one task."""
    return _answer(queries.tasks.checkpoint_page(reading(), task, page_argument()))


@blueprint.get("/releases")
@needs("view")
def releases() -> Response:
    """Answer with a page of the releases, newest first."""
    return _answer(queries.releases.find_page(reading(), page_argument()))


@blueprint.get("/releases/<int:number>")
@needs("view")
def release(number: int) -> Response:
    """Answer with one release."""
    return _answer(queries.releases.find(reading(), number))


@blueprint.get("/releases/<int:number>/devices")
@needs("view")
def release_devices(number: int) -> Response:
    """Answer with a page of what devices did with one release."""
    return _answer(queries.releases.device_page(reading(), number, page=page_argument()))


@blueprint.get("/running")
@needs("view")
def running() -> Response:
    """Answer with how many devices run which release."""
    return _answer(queries.releases.running_counts(reading()))


@blueprint.get("/tokens")
@needs("view")
def tokens() -> Response:
    """Answer with a page of the tokens, without their secrets."""
    return _answer(queries.tokens.find_page(reading(), page_argument()))


@blueprint.get("/events")
@needs("view")
def events() -> Response:
    """Answer with what happened after an event: for programs that poll."""
    return _answer(queries.events.events_after(reading(), number_argument("after", 0, EVENT_NUMBER_MAX)))


@blueprint.get("/audit")
@needs("view")
def audit() -> Response:
    """Answer with a page of the audit log."""
    return _answer(
        queries.events.audit(reading(), kind=text_argument("kind"), text=text_argument("text"), page=page_argument())
    )


def _answer(value: Any) -> Response:
    if value is None:
        abort(404, "There is no such thing.")
    return Response(msgspec.json.encode(value), content_type="application/json")
