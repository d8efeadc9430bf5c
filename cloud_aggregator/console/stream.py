"""What happens, as it happens: server-sent events for the pages that are open."""

from flask import Blueprint, Response, abort, request

from cloud_aggregator.console.context import parts, text_argument, visitor
from cloud_aggregator.console.permissions import needs

blueprint = Blueprint("stream", __name__)
_DIGITS_MAX = 15


@blueprint.get("/stream")
@needs("view")
def show() -> Response:
    """Stream events; beyond the cap the answer is 503 at once, and the page polls."""
    accounts, cookie = parts().accounts, visitor().cookie
    stream = parts().feed.open_stream(
        _number(request.headers.get("Last-Event-ID", "")),
        text_argument("task") or None,
        _number(request.args.get("round", "")),
        lambda: accounts.find(cookie, is_active=False) is not None,
    )
    if stream is None:
        abort(503, "Too many pages watch already; this one looks for news by itself.")
    headers = {"X-Accel-Buffering": "no", "Cache-Control": "no-store"}
    return Response(stream, content_type="text/event-stream; charset=utf-8", headers=headers)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX else None
