"""Releases: what devices use; promoted from a checkpoint, watched, halted, taken back."""

import msgspec
from flask import Blueprint, abort, render_template, request
from werkzeug.exceptions import BadRequest
from werkzeug.wrappers import Response

from cloud_aggregator.console import queries, records
from cloud_aggregator.console.context import done, operator_service, page_argument, parts, reading, text_argument
from cloud_aggregator.console.permissions import needs

blueprint = Blueprint("releases", __name__)
STATES = ("waiting", "offered", "committed", "failed", "refused", "timed-out")
_VERSION_DIGITS_MAX = 15


class Step(msgspec.Struct, frozen=True):
    """Something that an operator can do with a release."""

    action: str
    is_for_open: bool | None  # None: for either.


STEPS = {
    "advance": Step("Offer it to everyone now", is_for_open=True),
    "halt": Step("Halt", is_for_open=True),
    "rollback": Step("Roll back", is_for_open=None),
}


@blueprint.get("/releases")
@needs("view")
def show() -> str:
    """Show the releases, and how many devices run which."""
    return render_template(
        "releases.html",
        page=queries.releases.find_page(reading(), page_argument()),
        running=queries.releases.running_counts(reading()),
        tasks=queries.tasks.find_all(reading()),
    )


@blueprint.get("/releases/<int:number>")
@needs("view")
def show_release(number: int) -> str:
    """Show one release, and what devices did with it."""
    state = request.args.get("state", "")
    state = state if state in STATES else ""
    return render_template(
        "release.html",
        release=_existing(number),
        page=queries.releases.device_page(reading(), number, state=state, page=page_argument()),
        steps=STEPS,
        states=STATES,
        state_wanted=state,
    )


@blueprint.get("/promote/<identifier:task>")
@needs("operate")
def ask_to_promote(task: str) -> str:
    """Show what a promotion would do."""
    found = queries.tasks.find(reading(), task)
    if found is None:
        abort(404, f"No task {task}.")
    version = text_argument("version")
    return render_template(
        "promote.html",
        task=found,
        version=_version(version) if version else found.version,
        device_count=sum(queries.devices.presence_counts(reading()).values()),
        settings=parts().settings.release,
        can_sign=parts().service.can_sign(),
    )


@blueprint.post("/promote/<identifier:task>")
@needs("operate")
def promote(task: str) -> Response:
    """Release a version to a part of the fleet first."""
    version = _version(request.form.get("version", ""))
    number = operator_service().promote(task, version, fraction=_percent(request.form.get("percent", "")) / 100.0)
    return done(f"Release {number} is on its way: version {version} of {task}.", "releases.show_release", number=number)


@blueprint.get("/releases/<int:number>/<any(advance, halt, rollback):step>")
@needs("operate")
def ask_to_change(number: int, step: str) -> str:
    """Ask before a release is halted, offered to everyone or taken back."""
    return render_template(
        "confirm.html",
        title=f"{STEPS[step].action}: release {number}",
        consequence=_consequence(_existing(number), step),
        action=STEPS[step].action,
        is_grave=step != "advance",
        back="releases.show",
    )


@blueprint.post("/releases/<int:number>/<any(advance, halt, rollback):step>")
@needs("operate")
def change(number: int, step: str) -> Response:
    """Halt a release, offer it to everyone, or take it back."""
    service = operator_service()
    if step == "rollback":
        fresh = service.rollback(number)
        text = f"Release {fresh} takes the fleet back from release {number}."
        return done(text, "releases.show_release", number=fresh)
    if step == "halt":
        service.halt_release(number)
        return done(f"Release {number} is halted.", "releases.show_release", number=number)
    service.advance_release(number)
    return done(f"Release {number} is offered to everyone.", "releases.show_release", number=number)


def _consequence(release: records.ReleaseSummary, step: str) -> str:
    committed = release.states.get("committed", 0)
    if step == "rollback":
        earlier = f"release {release.replaces}" if release.replaces else "the release before it"
        return (
            f"A new release with the model of {earlier} is offered to every device at once. "
            f"Devices that run release {release.number} now, and are to leave it: {release.running_count:,}."
        )
    pending = release.states.get("waiting", 0) + release.states.get("offered", 0)
    if step == "halt":
        return (
            f"Devices that have not tried release {release.number}, and stay on what they run: {pending:,}. "
            f"Devices that committed it, and keep it until it is rolled back: {committed:,}."
        )
    failed = release.member_count - committed - release.states.get("waiting", 0) - release.states.get("offered", 0)
    return (
        f"Every device is offered version {release.version} now. Of the {release.member_count:,} that it was meant for "
        f"so far, {committed:,} committed it and {failed:,} did not."
    )


def _existing(number: int) -> records.ReleaseSummary:
    release = queries.releases.find(reading(), number)
    if release is None:
        abort(404, f"No release {number}.")
    return release


def _version(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _VERSION_DIGITS_MAX):
        raise BadRequest(f"version: expected a number, got {text[:40]!r}")
    return int(text)


def _percent(text: str) -> float:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= 100):
        raise BadRequest(f"percent: expected a number from 1 to 100, got {text[:40]!r}")
    return float(text)
