"""The command ``cloud-aggregator``."""

import contextlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from cloud_aggregator import commands
from cloud_aggregator.adapters.database import Event
from cloud_aggregator.adapters.keyring import make_keys
from cloud_aggregator.config import CONFIG_NAME, load_settings
from cloud_aggregator.console.cli import user_app
from cloud_aggregator.model_cli import add_model_commands
from cloud_aggregator.recipe import load_recipe
from cloud_aggregator.release_cli import add_release_commands
from cloud_aggregator.service import KEYS_NAME, Endpoint, Service
from federated_core.errors import AdapterError, FallowError, LocalMisuseError

EXIT_MISUSE, EXIT_WORLD = 2, 3

app = typer.Typer(
    help="Runs a fleet that learns together.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
token_app = typer.Typer(help="Invitations with which devices enroll.", no_args_is_help=True)
task_app = typer.Typer(help="What the fleet learns.", no_args_is_help=True)
app.add_typer(token_app, name="token")
app.add_typer(task_app, name="task")
app.add_typer(user_app, name="user")

State = Annotated[Path, typer.Option("--state", help="Folder of the aggregator's state.")]
DEFAULT_STATE = Path("aggregator-state")


def main() -> None:
    """Run one command; exit code 0 done, 2 asked wrongly, 3 the world is in the way."""
    os.umask(0o077)  # Keys, tokens and broker passwords: nobody else on this machine may read them.
    try:
        app()
    except AdapterError as error:
        print(f"cloud-aggregator: {error}", file=sys.stderr)
        sys.exit(EXIT_WORLD)
    except FallowError as error:
        print(f"cloud-aggregator: {error}", file=sys.stderr)
        sys.exit(EXIT_MISUSE)


@app.command()
def init(
    state: State = DEFAULT_STATE, fleet: Annotated[str, typer.Option(help="Name of the fleet.")] = "fleet"
) -> None:
    """Make the keys and the settings of a new fleet; what exists already is kept."""
    make_keys(state / KEYS_NAME)
    path = state / CONFIG_NAME
    if not path.exists():
        path.write_text(f'fleet = "{fleet}"\n')
    load_settings(state)
    print(f"{state}: ready. Keep {state / KEYS_NAME} secret; model.key signs what devices run and may be kept offline.")


@app.command()
def serve(
    state: State = DEFAULT_STATE,
    events: Annotated[
        Path | None, typer.Option("--events", help="Append what happens to this file, as JSON lines.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log details.")] = False,
    console_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Serve the web console at this port; 0: a free one.")
    ] = None,
) -> None:
    """Run the broker, the rounds and, if it is asked for, the web console until it is stopped."""
    from cloud_aggregator.serve import serve as run

    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)

    def ready(endpoint: Endpoint, console: str | None) -> None:
        print(f"devices connect to {endpoint.host}:{endpoint.port}", file=sys.stderr, flush=True)
        if console is not None:
            print(f"the console is at {console}", file=sys.stderr, flush=True)

    settings = load_settings(state)
    if console_port is not None:
        wanted = msgspec.structs.replace(settings.console, enabled=True, port=console_port)
        settings = msgspec.structs.replace(settings, console=wanted)
    with contextlib.ExitStack() as stack:
        stream = None if events is None else stack.enter_context(events.open("ab", buffering=0))

        def announce(event: Event) -> None:
            if stream is not None:
                stream.write(msgspec.json.encode(event) + b"\n")

        run(state, settings, announce, ready)


@app.command()
def status(state: State = DEFAULT_STATE, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Show devices, tokens and tasks with their rounds."""
    report = _service(state).status()
    if as_json:
        print(json.dumps(report, indent=2))
        return
    console = Console()
    console.print(
        f"fleet [bold]{report['fleet']}[/bold]: {len(report['devices'])} devices, "
        f"{report['protocol_errors']} messages refused"
    )
    for task, rounds in report["tasks"].items():
        table = Table("round", "plan", "phase", "reports", "accuracy", "bytes up", "bytes down", title=f"task {task}")
        for one in rounds:
            accuracy = "" if one["accuracy"] is None else f"{one['accuracy']:.3f}"
            table.add_row(
                str(one["number"]),
                one["kind"],
                one["phase"],
                f"{one['report_count']}/{one['assignment_count']}",
                accuracy,
                f"{one['bytes_up']:,}",
                f"{one['bytes_down']:,}",
            )
        console.print(table)


@app.command()
def export(
    task: str,
    output: Annotated[Path, typer.Option("--output", "-o", help="The ONNX file to write.")],
    state: State = DEFAULT_STATE,
    version: Annotated[int | None, typer.Option(help="Which version; the newest by default.")] = None,
) -> None:
    """Write a version of a task's model as an ONNX file, with the nodes and names of the one that it began with."""
    found, data = _service(state).export(task, version)
    output.write_bytes(data)
    print(f"{output}: version {found} of {task}, {len(data):,} bytes")


@token_app.command("create")
def create_token(
    state: State = DEFAULT_STATE,
    uses: Annotated[int, typer.Option(min=1, help="How many devices may enroll with it.")] = 1,
    hours: Annotated[float, typer.Option(min=0.01, help="How long it is valid.")] = 24.0,
    name: Annotated[str | None, typer.Option(help="A name of its own; drawn if left out.")] = None,
) -> None:
    """Print a new token, for `edge-agent enroll --token`."""
    print(_service(state).create_token(uses, hours * 3600.0, name))


@token_app.command("list")
def list_tokens(state: State = DEFAULT_STATE, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """List the tokens; their secrets are not shown again."""
    tokens = _service(state).status()["tokens"]
    if as_json:
        print(json.dumps(tokens, indent=2))
        return
    for token in tokens:
        state_text = "revoked" if token["is_revoked"] else f"used {token['uses']} of {token['uses_max']}"
        print(f"{token['token']}  {state_text}")


@token_app.command("revoke")
def revoke_token(name: str, state: State = DEFAULT_STATE) -> None:
    """Let nobody enroll with a token any more; who did stays."""
    _service(state).ask(commands.RevokeToken(name))
    print(f"{name}: revoked")


@task_app.command("create")
def create_task(
    name: str,
    model: Annotated[Path, typer.Option("--model", help="The ONNX file to train.")],
    plan: Annotated[Path, typer.Option("--plan", help="The recipe's plan.toml.")],
    state: State = DEFAULT_STATE,
    goal: Annotated[
        int | None, typer.Option(min=1, help="Reports that complete a round, in place of the plan's.")
    ] = None,
    rounds_max: Annotated[int | None, typer.Option(min=1, help="Round limit, in place of the plan's.")] = None,
    model_key: Annotated[Path | None, typer.Option(help="The model's private key, if it is kept elsewhere.")] = None,
) -> None:
    """Begin to train a model: derive its training graph, sign it, open the first round."""
    try:
        data = model.read_bytes()
    except OSError as error:
        raise LocalMisuseError(f"{model}: cannot be read ({error.strerror})") from error
    recipe = load_recipe(plan, goal=goal)
    if rounds_max is not None:
        recipe = msgspec.structs.replace(recipe, task=msgspec.structs.replace(recipe.task, rounds_max=rounds_max))
    parameter_count = _service(state).create_task(name, data, recipe, model_key)
    print(f"{name}: {parameter_count:,} parameters, up to {recipe.task.rounds_max} rounds")


@task_app.command("pause")
def pause_task(name: str, state: State = DEFAULT_STATE) -> None:
    """Open no more rounds until it is resumed."""
    _service(state).ask(commands.PauseTask(name))
    print(f"{name}: paused; a round that is open may still end")


@task_app.command("resume")
def resume_task(name: str, state: State = DEFAULT_STATE) -> None:
    """Go on with a paused task."""
    _service(state).ask(commands.ResumeTask(name))
    print(f"{name}: resumed")


@task_app.command("abort")
def abort_task(name: str, state: State = DEFAULT_STATE) -> None:
    """End a task and its open round for good."""
    _service(state).ask(commands.AbortTask(name))
    print(f"{name}: aborted")


def _service(state: Path) -> Service:
    if not (state / KEYS_NAME).is_dir():
        raise LocalMisuseError(
            f"{state}: no aggregator's state is here; name it with --state, or run: cloud-aggregator init"
        )
    return Service(state, load_settings(state), actor=os.environ.get("USER", "operator"))


add_release_commands(app, _service)
add_model_commands(app)

if __name__ == "__main__":
    main()
