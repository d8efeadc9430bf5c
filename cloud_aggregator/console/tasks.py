"""Tasks: what the fleet learns; started, paused, resumed, aborted."""

import tempfile
from pathlib import Path

import msgspec
from flask import Blueprint, abort, render_template, request
from werkzeug.exceptions import BadRequest
from werkzeug.wrappers import Response

from cloud_aggregator import commands
from cloud_aggregator.console import queries, records
from cloud_aggregator.console.context import done, operator_service, reading
from cloud_aggregator.console.permissions import needs
from cloud_aggregator.recipe import load_recipe

blueprint = Blueprint("tasks", __name__)
MODEL_MAX_BYTES = 64 * 1024 * 1024


class Step(msgspec.Struct, frozen=True):
    """Something that an operator can do with a task; ``text`` holds a place for its name."""

    title: str
    consequence: str
    action: str
    done: str
    command: type[commands.PauseTask] | type[commands.ResumeTask] | type[commands.AbortTask]
    possible_in: tuple[str, ...]


STEPS = {
    "pause": Step(
        "Pause task {name}",
        "No more rounds open until it is resumed. A round that is open may still end: {open}.",
        "Pause",
        "Task {name} is paused.",
        commands.PauseTask,
        ("training", "evaluating"),
    ),
    "resume": Step(
        "Resume task {name}",
        "Its next round opens at once.",
        "Resume",
        "Task {name} goes on.",
        commands.ResumeTask,
        ("paused",),
    ),
    "abort": Step(
        "Abort task {name}",
        "It ends after {rounds} rounds and cannot be resumed. What it learned up to version {version} is kept. "
        "Open now: {open}.",
        "Abort for good",
        "Task {name} is aborted.",
        commands.AbortTask,
        ("training", "evaluating", "paused"),
    ),
}


@blueprint.get("/tasks")
@needs("view")
def show() -> str:
    """Show all tasks."""
    return render_template("tasks.html", tasks=queries.tasks.find_all(reading()), steps=STEPS)


@blueprint.get("/tasks/<identifier:name>")
@needs("view")
def show_task(name: str) -> str:
    """Show one task."""
    return render_template(
        "task.html",
        task=_existing(name),
        steps=STEPS,
        rounds=queries.rounds.find_page(reading(), task=name, size=10),
    )


@blueprint.get("/start-task")
@needs("operate")
def ask_to_start() -> str:
    """Show the form that starts a task."""
    return render_template("task_start.html")


@blueprint.post("/start-task")
@needs("operate", body_max_bytes=MODEL_MAX_BYTES)
def start() -> Response:
    """Begin to train a model that comes with its recipe."""
    name, goal = request.form.get("name", "").strip(), request.form.get("goal", "").strip()
    if goal and not (goal.isascii() and goal.isdigit() and 1 <= int(goal[:9]) <= 100_000):
        raise BadRequest(f"goal: expected a number from 1 to 100,000, got {goal[:40]!r}")
    model, plan = request.files.get("model"), request.files.get("plan")
    if not model or not plan:
        raise BadRequest("A task needs two files: the model (ONNX) and its recipe (plan.toml).")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.toml"
        plan.save(path)
        recipe = load_recipe(path, goal=int(goal) if goal else None)
    parameter_count = operator_service().create_task(name, model.read(), recipe)
    return done(f"Task {name} begins with {parameter_count:,} parameters.", "tasks.show_task", name=name)


@blueprint.get("/tasks/<identifier:name>/<any(pause, resume, abort):step>")
@needs("operate")
def ask_to_change(name: str, step: str) -> str:
    """Ask before a task is paused, resumed or aborted."""
    task, wanted = _existing(name), STEPS[step]
    opened = [one for one in queries.rounds.open_rounds(reading()) if one.task == name]
    rounds = ", ".join(f"round {one.number} with {one.assignment_count:,} devices" for one in opened) or "none"
    return render_template(
        "confirm.html",
        title=wanted.title.format(name=name),
        consequence=wanted.consequence.format(open=rounds, rounds=task.round_count, version=task.version),
        action=wanted.action,
        is_grave=step == "abort",
        back="tasks.show",
    )


@blueprint.post("/tasks/<identifier:name>/<any(pause, resume, abort):step>")
@needs("operate")
def change(name: str, step: str) -> Response:
    """Pause, resume or abort a task."""
    operator_service().ask(STEPS[step].command(name))
    return done(STEPS[step].done.format(name=name), "tasks.show_task", name=name)


def _existing(name: str) -> records.TaskSummary:
    task = queries.tasks.find(reading(), name)
    if task is None:
        abort(404, f"No task {name}.")
    return task
