"""Our stylesheet and scripts: read once, named by their content, kept by browsers for good."""

import functools
import hashlib
from pathlib import Path

from flask import Blueprint, Response, abort, url_for

from cloud_aggregator.console.permissions import needs

blueprint = Blueprint("assets", __name__)
_FOLDER = Path(__file__).parent / "static"
_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}


@blueprint.get("/assets/<digest>/<name>")
@needs("public")
def show(digest: str, name: str) -> Response:
    """Answer with one file."""
    content = _contents().get(name)
    if content is None or digest != _digest(name):
        abort(404)
    headers = {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response(content, content_type=_TYPES[Path(name).suffix], headers=headers)


def asset_address(name: str) -> str:
    """Return the address of a file; another content has another address."""
    return url_for("assets.show", digest=_digest(name), name=name)


@functools.cache
def _contents() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in _FOLDER.iterdir() if path.suffix in _TYPES}


@functools.cache
def _digest(name: str) -> str:
    return hashlib.sha256(_contents()[name]).hexdigest()[:16]
