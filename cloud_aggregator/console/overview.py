"""The first page: the fleet's health, the model's accuracy, what needs attention."""

from flask import Blueprint, render_template

from cloud_aggregator.console import figures, queries
from cloud_aggregator.console.context import reading
from cloud_aggregator.console.permissions import needs

blueprint = Blueprint("overview", __name__)
_CHART_ROUNDS = 100
_NEWEST_EVENTS = 12


@blueprint.get("/")
@needs("view")
def show() -> str:
    """Show the fleet at a glance."""
    overview = queries.overview.look(reading())
    points = queries.rounds.series(reading(), overview.tasks[0].name, _CHART_ROUNDS) if overview.tasks else ()
    return render_template(
        "overview.html",
        overview=overview,
        points=points,
        charts=figures.charts_of(points),
        rows=figures.rows_of(points),
        happenings=queries.events.newest(reading(), _NEWEST_EVENTS),
    )
