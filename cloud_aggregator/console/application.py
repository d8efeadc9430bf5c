"""The console as a Flask application: made of its parts, guarded, and refused if a route declares no permission."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from flask import Flask, Response, render_template, request, url_for
from sqlalchemy import Engine
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import BaseConverter

from cloud_aggregator.adapters.accounts import Accounts
from cloud_aggregator.adapters.database import Database
from cloud_aggregator.adapters.event_feed import EventFeed
from cloud_aggregator.config import AggregatorSettings, database_url
from cloud_aggregator.console import (
    api,
    assets,
    audit,
    fleet,
    health,
    login,
    models,
    overview,
    presentation,
    releases,
    rounds,
    stream,
    tasks,
    tokens,
)
from cloud_aggregator.console.context import EXTENSION, Parts, close_reading, parts, reading, visitor
from cloud_aggregator.console.guard import FORM_FIELD, form_token, install_guard
from cloud_aggregator.console.permissions import refuse_undeclared
from cloud_aggregator.console.spreads import SpreadCache
from cloud_aggregator.service import Service
from federated_core.errors import AdapterError, LocalMisuseError

_BLUEPRINTS = (
    overview.blueprint,
    fleet.blueprint,
    rounds.blueprint,
    models.blueprint,
    releases.blueprint,
    tasks.blueprint,
    tokens.blueprint,
    audit.blueprint,
    login.blueprint,
    api.blueprint,
    stream.blueprint,
    health.blueprint,
    assets.blueprint,
)


class IdentifierConverter(BaseConverter):
    """Names in addresses are those of the protocol; anything else is no page."""

    regex = "[a-z0-9_-]{1,48}"


def create_app(
    folder: Path, settings: AggregatorSettings, make_accounts: Callable[[Engine], Accounts] = Accounts
) -> Flask:
    """Return the console of the aggregator whose state lies in ``folder``; LocalMisuseError if it is not safe."""
    database = Database(database_url(folder, settings))
    app = Flask(__name__, static_folder=None)
    app.extensions[EXTENSION] = Parts(
        settings=settings,
        service=Service(folder, settings, actor="console"),
        accounts=make_accounts(database.engine),
        engine=database.engine,
        feed=EventFeed(database.engine),
        spreads=SpreadCache(),
        metrics_token=_read_token(settings.console.metrics_token_file),
    )
    app.config["MAX_FORM_PARTS"] = 32
    app.url_map.converters["identifier"] = IdentifierConverter
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    install_guard(app)
    presentation.install_presentation(app)
    for blueprint in _BLUEPRINTS:
        app.register_blueprint(blueprint)
    app.teardown_appcontext(close_reading)
    app.context_processor(_page_context)
    app.register_error_handler(HTTPException, _show_refusal)
    app.register_error_handler(LocalMisuseError, _show_misuse)
    app.register_error_handler(AdapterError, _show_outage)
    refuse_undeclared(app)
    hops = settings.console.proxy_count
    if hops:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops)  # type: ignore[method-assign]
    return app


def _page_context() -> dict[str, object]:
    return {
        "fleet": parts().settings.fleet,
        "form_field": FORM_FIELD,
        "here": _here,
        "form_token": form_token,
        "asset": assets.asset_address,
        "visitor": visitor(),
        "take_notice": _take_notice,
        "now_s": reading().now_s,
    }


def _here(**changes: object) -> str:
    """Return the address of this page with these arguments of its query changed."""
    arguments: dict[str, Any] = {**request.args.to_dict(), **(request.view_args or {}), **changes}
    return url_for(request.endpoint or "overview.show", **arguments)


def _take_notice() -> str | None:
    """What the last action left to be said; a page that refreshes itself leaves it for the person."""
    session = visitor().signed_in
    return parts().accounts.take_notice(session.digest) if session and "X-Live" not in request.headers else None


def _show_refusal(error: HTTPException) -> Response:
    code = error.code or 500
    return _answer_with(error.name, error.description or "", code)


def _show_misuse(error: LocalMisuseError) -> Response:
    return _answer_with("Not done", str(error), 409)


def _show_outage(error: AdapterError) -> Response:
    return _answer_with("Not done", str(error), 503)


def _answer_with(title: str, text: str, code: int) -> Response:
    if request.path.startswith("/api/"):
        return Response(msgspec.json.encode({"error": text}), code, content_type="application/json")
    return Response(render_template("error.html", title=title, text=text, code=code), code)


def _read_token(path: str) -> bytes | None:
    if not path:
        return None
    try:
        token = Path(path).read_bytes().strip()
    except OSError as error:
        raise LocalMisuseError(f"console: metrics_token_file {path}: cannot be read ({error.strerror})") from error
    if len(token) < 16:
        raise LocalMisuseError(f"console: metrics_token_file {path}: expected at least 16 characters, got {len(token)}")
    return token
