"""Rounds: their charts and their list, and each of them as it goes."""

from flask import Blueprint, abort, render_template

from cloud_aggregator.console import figures, queries
from cloud_aggregator.console.context import number_argument, page_argument, reading, text_argument
from cloud_aggregator.console.permissions import needs

blueprint = Blueprint("rounds", __name__)
SPANS = (100, 300, 1000)


@blueprint.get("/rounds")
@needs("view")
def show() -> str:
    """Show the rounds of one task: charts of the last ones, and a page of the list."""
    tasks = queries.tasks.find_all(reading())
    wanted = text_argument("task")
    task = next((one for one in tasks if one.name == wanted), tasks[0] if tasks and not wanted else None)
    if wanted and task is None:
        abort(404, f"No task {wanted}.")
    span = number_argument("last", SPANS[0], SPANS[-1])
    points = queries.rounds.series(reading(), task.name, span) if task is not None else ()
    return render_template(
        "rounds.html",
        tasks=tasks,
        task=task,
        span=span,
        spans=SPANS,
        points=points,
        charts=figures.charts_of(points),
        rows=figures.rows_of(points),
        page=queries.rounds.find_page(reading(), task=task.name if task else "", page=page_argument()),
    )


@blueprint.get("/rounds/<identifier:task>/<int:number>")
@needs("view")
def show_round(task: str, number: int) -> str:
    """Show one round, live while it is open."""
    detail = queries.rounds.find(reading(), task, number)
    cohort = queries.rounds.cohort_page(reading(), task, number, page_argument())
    if detail is None or cohort is None:
        abort(404, f"Task {task} has no round {number}.")
    return render_template(
        "round.html",
        detail=detail,
        cohort=cohort,
        happenings=queries.rounds.happenings(reading(), task, number),
        summary=detail.summary,
    )
