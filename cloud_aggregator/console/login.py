"""Signing in and out, and one's own account."""

import math

from flask import Blueprint, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from cloud_aggregator.adapters.accounts import TooManyAttempts, Welcome
from cloud_aggregator.console.context import parts, signed_in, visitor
from cloud_aggregator.console.guard import cookie_name, set_cookie
from cloud_aggregator.console.permissions import needs
from federated_core.errors import LocalMisuseError

blueprint = Blueprint("login", __name__)


@blueprint.get("/login")
@needs("public")
def show() -> str:
    """Show the form."""
    return _form("")


@blueprint.post("/login")
@needs("public")
def sign_in() -> Response | tuple[str, int] | tuple[str, int, dict[str, str]]:
    """Begin a session under a new id."""
    name, password = request.form.get("user", "").strip(), request.form.get("password", "")
    outcome = parts().accounts.sign_in(name, password, request.remote_addr or "")
    if isinstance(outcome, TooManyAttempts):
        wait_s = math.ceil(outcome.retry_after_s)
        text = f"Too many attempts. Try again in {math.ceil(wait_s / 60)} min."
        return _form(text), 429, {"Retry-After": str(wait_s)}
    if not isinstance(outcome, Welcome):
        return _form("That user name and password do not go together."), 403
    if visitor().signed_in is not None:
        parts().accounts.sign_out(visitor().cookie)
    response = redirect(local_address(request.form.get("next", "")), 303)
    set_cookie(response, outcome.cookie)
    return response


@blueprint.post("/logout")
@needs("view")
def sign_out() -> Response:
    """End the session."""
    parts().accounts.sign_out(visitor().cookie)
    response = redirect(url_for("login.show"), 303)
    response.delete_cookie(cookie_name(), path="/", httponly=True, samesite="Lax", secure=request.is_secure)
    return response


@blueprint.get("/account")
@needs("view")
def show_account() -> str:
    """Show one's own sessions, and the form for another password."""
    return render_template("account.html", sessions=parts().accounts.open_sessions(signed_in().user), problem="")


@blueprint.post("/account/password")
@needs("view")
def change_password() -> Response | tuple[str, int]:
    """Take another password; every session of this user ends."""
    user = signed_in().user
    problem = ""
    refusal = parts().accounts.check_password(user, request.form.get("password", ""), request.remote_addr or "")
    if isinstance(refusal, TooManyAttempts):
        problem = f"Too many attempts. Try again in {math.ceil(refusal.retry_after_s / 60)} min."
    elif refusal is not None:
        problem = "The present password is another one."
    elif request.form.get("new_password", "") != request.form.get("new_password_again", ""):
        problem = "The two new passwords differ."
    if not problem:
        try:
            parts().accounts.set_password(user, request.form.get("new_password", ""))
        except LocalMisuseError as error:
            problem = str(error)
    if problem:
        sessions = parts().accounts.open_sessions(user)
        return render_template("account.html", sessions=sessions, problem=problem), 400
    return redirect(url_for("login.show"), 303)


@blueprint.post("/account/sign-out-everywhere")
@needs("view")
def sign_out_everywhere() -> Response:
    """End every session of this user, this one too."""
    parts().accounts.sign_out_everywhere(signed_in().user)
    return redirect(url_for("login.show"), 303)


def local_address(wanted: str) -> str:
    """Return ``wanted`` if it is a path of ours, else the first page: no link to the login leads elsewhere."""
    is_local = wanted.startswith("/") and wanted[1:2] not in {"/", "\\"} and wanted.isascii() and wanted.isprintable()
    return wanted if is_local else url_for("overview.show")


def _form(problem: str) -> str:
    wanted = request.values.get("next", "")
    return render_template("login.html", problem=problem, next=wanted, user=request.form.get("user", ""))
