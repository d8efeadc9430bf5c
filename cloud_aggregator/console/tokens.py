"""Enrollment tokens: made, listed, revoked. A token's text is shown once, in the answer that makes it."""

from flask import Blueprint, abort, render_template, request
from werkzeug.exceptions import BadRequest
from werkzeug.wrappers import Response

from cloud_aggregator import commands
from cloud_aggregator.console import queries
from cloud_aggregator.console.context import done, operator_service, page_argument, reading
from cloud_aggregator.console.permissions import needs

blueprint = Blueprint("tokens", __name__)
USES_MAX = 100_000
HOURS_MAX = 24 * 366


@blueprint.get("/tokens")
@needs("view")
def show() -> str:
    """Show the tokens, without their secrets."""
    return render_template("tokens.html", page=queries.tokens.find_page(reading(), page_argument()), made=None)


@blueprint.post("/tokens")
@needs("operate")
def create() -> str:
    """Make a token, and show its text for the only time."""
    uses, hours = _number("uses", USES_MAX), _number("hours", HOURS_MAX)
    made = operator_service().create_token(uses, hours * 3600.0, request.form.get("name", "").strip() or None)
    return render_template("tokens.html", page=queries.tokens.find_page(reading()), made=made, uses=uses, hours=hours)


@blueprint.get("/tokens/<identifier:name>/revoke")
@needs("operate")
def ask_to_revoke(name: str) -> str:
    """Ask before a token is revoked."""
    token = queries.tokens.find(reading(), name)
    if token is None:
        abort(404, f"No token {name}.")
    left = token.uses_max - token.uses
    return render_template(
        "confirm.html",
        title=f"Revoke token {name}",
        consequence=f"Nobody can enroll with it any more: {left:,} of {token.uses_max:,} uses are lost. "
        f"The {token.uses:,} devices that enrolled with it stay.",
        action="Revoke",
        is_grave=True,
        back="tokens.show",
    )


@blueprint.post("/tokens/<identifier:name>/revoke")
@needs("operate")
def revoke(name: str) -> Response:
    """Let nobody enroll with a token any more."""
    operator_service().ask(commands.RevokeToken(name))
    return done(f"Token {name} is revoked.", "tokens.show")


def _number(name: str, largest: int) -> int:
    text = request.form.get(name, "")
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= largest):
        raise BadRequest(f"{name}: expected a number from 1 to {largest:,}, got {text[:40]!r}")
    return int(text)
