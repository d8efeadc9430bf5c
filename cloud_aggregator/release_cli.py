"""The commands ``cloud-aggregator release ...``."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cloud_aggregator.service import Service

app = typer.Typer(help="What devices run: promote, watch, take back.", no_args_is_help=True)

DEFAULT_STATE = Path("aggregator-state")
State = Annotated[Path, typer.Option("--state", help="Folder of the aggregator's state.")]
ModelKey = Annotated[Path | None, typer.Option(help="The model's private key, if it is kept elsewhere.")]
Number = Annotated[int, typer.Argument(min=1, help="Number of the release.")]


def add_release_commands(parent: typer.Typer, open_service: Callable[[Path], Service]) -> None:
    """Put the commands below ``parent``; each opens its own service."""

    @app.command()
    def promote(
        task: Annotated[str, typer.Argument(help="Task whose model is released.")],
        state: State = DEFAULT_STATE,
        version: Annotated[int | None, typer.Option(min=0, help="Version of the model; the newest by default.")] = None,
        fraction: Annotated[
            float | None, typer.Option(min=0.0, max=1.0, help="Share of the devices that go first; 1: all at once.")
        ] = None,
        soak: Annotated[float | None, typer.Option(min=0.0, help="Seconds from the canary's success to all.")] = None,
        accuracy_drop_max: Annotated[
            float | None, typer.Option(min=0.0, max=1.0, help="How much worse than what runs it may be on a device.")
        ] = None,
        model_key: ModelKey = None,
    ) -> None:
        """Release a version of a task's model to the devices, to a canary first."""
        number = open_service(state).promote(
            task,
            version,
            fraction=fraction,
            soak_s=soak,
            accuracy_drop_max=accuracy_drop_max,
            model_key=model_key,
        )
        typer.echo(f"release {number} is under way")

    @app.command()
    def rollback(
        number: Annotated[
            int | None, typer.Argument(min=1, help="Release to leave; the current one if left out.")
        ] = None,
        state: State = DEFAULT_STATE,
        family: Annotated[str | None, typer.Option(help="Model family, if there are several.")] = None,
        to: Annotated[int | None, typer.Option(min=1, help="Release whose model to go back to.")] = None,
        model_key: ModelKey = None,
    ) -> None:
        """Take every device back to an older model: a new release number that points at the old bytes."""
        fresh = open_service(state).rollback(number, family=family, to=to, model_key=model_key)
        typer.echo(f"release {fresh} takes everyone back")

    @app.command()
    def halt(number: Number, state: State = DEFAULT_STATE) -> None:
        """Offer a release to nobody any more; what runs it already goes on."""
        open_service(state).halt_release(number)
        typer.echo(f"release {number}: halted")

    @app.command()
    def advance(number: Number, state: State = DEFAULT_STATE) -> None:
        """Offer a release to everyone now; each device still tries it first."""
        open_service(state).advance_release(number)
        typer.echo(f"release {number}: offered to everyone")

    @app.command()
    def status(state: State = DEFAULT_STATE, *, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
        """Show the releases, and what every device runs."""
        report = open_service(state).release_status()
        if as_json:
            typer.echo(json.dumps(report, indent=2))
        else:
            _show(report)

    parent.add_typer(app, name="release")


def _show(report: dict[str, Any]) -> None:
    console = Console()
    releases = Table("release", "family", "version", "kind", "phase", "committed", "failed", "of", title="releases")
    for one in report["releases"]:
        phase = one["phase"] if one["why"] is None else f"{one['phase']}: {one['why']}"
        counts = (one["all_committed_count"], one["all_failed_count"], one["all_member_count"])
        releases.add_row(
            str(one["number"]),
            one["family"],
            str(one["version"]),
            one["kind"],
            phase,
            *(str(count) for count in counts),
        )
    devices = Table("device", "family", "runs", "version", "newest offer", title="devices")
    for one in report["devices"]:
        offer = "" if one["offered"] is None else f"{one['offered']}: {one['state']} {one['reason'] or ''}".strip()
        version = "" if one["version"] is None else str(one["version"])
        devices.add_row(one["device"], one["family"], str(one["number"] or "nothing"), version, offer)
    console.print(releases)
    console.print(devices)
