"""Models: the checkpoints of each task with their lineage."""

from flask import Blueprint, abort, render_template

from cloud_aggregator.console import queries
from cloud_aggregator.console.context import page_argument, reading
from cloud_aggregator.console.permissions import needs

blueprint = Blueprint("models", __name__)


@blueprint.get("/models")
@needs("view")
def show() -> str:
    """Show what the tasks made so far."""
    return render_template("models.html", tasks=queries.tasks.find_all(reading()))


@blueprint.get("/models/<identifier:task>")
@needs("view")
def show_model(task: str) -> str:
    """Show the checkpoints of one task."""
    found = queries.tasks.find(reading(), task)
    if found is None:
        abort(404, f"No task {task}.")
    return render_template(
        "model.html", task=found, page=queries.tasks.checkpoint_page(reading(), task, page_argument())
    )
