"""What stands before and after every view: who asks, may they, did a page of ours send this form; then the headers."""

import hmac
from urllib.parse import urlsplit

from flask import Flask, g, redirect, request, url_for
from werkzeug.exceptions import BadRequest, Forbidden, Unauthorized
from werkzeug.wrappers import Response

from cloud_aggregator.console.context import Visitor, parts, visitor
from cloud_aggregator.console.permissions import ALLOWED, Permission, body_max_bytes_of, permission_of

FORM_FIELD = "form_token"
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_COOKIE_MAX = 128
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


def install_guard(app: Flask) -> None:
    """Let nothing pass ``app`` unchecked."""

    @app.before_request
    def check() -> Response | None:
        g.visitor = _recognize()
        if request.endpoint is None:
            return None  # No such page: the answer is 404 for everyone.
        refusal = _check_permission(permission_of(app, request.endpoint))
        if refusal is None and request.method not in _SAFE_METHODS:
            request.max_content_length = body_max_bytes_of(app, request.endpoint)
            _check_form()
        return refusal

    @app.after_request
    def finish(response: Response) -> Response:
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers.setdefault("Cache-Control", "no-store")
        if request.is_secure:
            response.headers.setdefault("Strict-Transport-Security", "max-age=31536000")
        if "visitor" in g and g.get("shows_form") and visitor().is_new:
            set_cookie(response, visitor().cookie)
        return response


def form_token() -> str:
    """Return what a form must carry; from here on the visitor has a cookie."""
    g.shows_form = True
    return visitor().form_token


def cookie_name() -> str:
    """Return the cookie's name; over TLS its prefix keeps other hosts from planting one."""
    return "__Host-fallow" if request.is_secure else "fallow"


def set_cookie(response: Response, cookie: str) -> None:
    """Give the visitor a cookie that ends with the browser."""
    response.set_cookie(cookie_name(), cookie, httponly=True, samesite="Lax", secure=request.is_secure, path="/")


def _recognize() -> Visitor:
    cookie = request.cookies.get(cookie_name(), "")[:_COOKIE_MAX]
    if not cookie:
        return Visitor(parts().accounts.draw_cookie(), is_new=True, signed_in=None)
    is_active = "X-Live" not in request.headers  # A page that refreshes itself is no sign of a person.
    return Visitor(cookie, is_new=False, signed_in=parts().accounts.find(cookie, is_active=is_active))


def _check_permission(permission: Permission | None) -> Response | None:
    if permission is None:
        raise Forbidden("This route declares no permission.")
    if permission == "public":
        return None
    session = visitor().signed_in
    if permission == "monitor" and _holds_metrics_token():
        return None
    if session is None:
        if permission == "monitor" or request.blueprint == "api" or request.method not in _SAFE_METHODS:
            raise Unauthorized("Sign in first.")
        return redirect(url_for("login.show", next=_own_address()), 303)
    if session.role not in ALLOWED[permission]:
        raise Forbidden(f"A {session.role} may not do this; ask for the role operator.")
    return None


def _holds_metrics_token() -> bool:
    expected = parts().metrics_token
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    return expected is not None and scheme == "Bearer" and hmac.compare_digest(given.encode(), expected)


def _check_form() -> None:
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != request.host:
        raise BadRequest(f"This form came from {origin[:80]!r}, not from a page of {request.host}.")
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in {"same-origin", "none"}:
        raise BadRequest("This form came from another site.")
    given = request.form.get(FORM_FIELD, "")
    if visitor().is_new or not hmac.compare_digest(given.encode(), visitor().form_token.encode()):
        raise BadRequest("This form is too old, or not one of ours: load its page again, and send it from there.")


def _own_address() -> str:
    return request.full_path.rstrip("?")
