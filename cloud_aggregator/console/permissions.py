"""Who may do what: every route declares a permission, and one that does not is refused, at the start already."""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from flask import Flask

from cloud_aggregator.adapters.accounts import Role
from federated_core.errors import LocalMisuseError

Permission = Literal["public", "view", "operate", "monitor"]
View = TypeVar("View", bound=Callable[..., Any])

ALLOWED: dict[Permission, frozenset[Role]] = {
    "public": frozenset({"viewer", "operator"}),
    "view": frozenset({"viewer", "operator"}),
    "operate": frozenset({"operator"}),
    "monitor": frozenset({"viewer", "operator"}),  # Or a program that holds the metrics token.
}
FORM_MAX_BYTES = 64 * 1024
_MARK, _BODY_MARK = "fallow_permission", "fallow_body_max_bytes"


def needs(permission: Permission, *, body_max_bytes: int = FORM_MAX_BYTES) -> Callable[[View], View]:
    """Declare what a visitor must be allowed to do to reach a view, and what it takes; stands below the route."""

    def mark(view: View) -> View:
        setattr(view, _MARK, permission)
        setattr(view, _BODY_MARK, body_max_bytes)
        return view

    return mark


def permission_of(app: Flask, endpoint: str) -> Permission | None:
    """Return what ``endpoint`` declares; None if it declares nothing."""
    permission: Permission | None = getattr(app.view_functions[endpoint], _MARK, None)
    return permission


def body_max_bytes_of(app: Flask, endpoint: str) -> int:
    """Return how large a request to ``endpoint`` may be."""
    size_bytes: int = getattr(app.view_functions[endpoint], _BODY_MARK, FORM_MAX_BYTES)
    return size_bytes


def refuse_undeclared(app: Flask) -> None:
    """Raise LocalMisuseError if a route of ``app`` declares no permission."""
    silent = sorted(rule.rule for rule in app.url_map.iter_rules() if permission_of(app, rule.endpoint) is None)
    if silent:
        raise LocalMisuseError(f"console: expected a declared permission on every route, none on {', '.join(silent)}")
