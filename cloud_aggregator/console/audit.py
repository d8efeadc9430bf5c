"""The audit log: who did what, when and from where."""

from flask import Blueprint, render_template

from cloud_aggregator.console import queries
from cloud_aggregator.console.context import page_argument, reading, text_argument
from cloud_aggregator.console.permissions import needs

blueprint = Blueprint("audit", __name__)


@blueprint.get("/audit")
@needs("view")
def show() -> str:
    """Show a page of the log."""
    kind, text = text_argument("kind"), text_argument("text")
    return render_template(
        "audit.html",
        page=queries.events.audit(reading(), kind=kind, text=text, page=page_argument()),
        kinds=queries.events.AUDIT_KINDS,
        kind=kind,
        text=text,
    )
