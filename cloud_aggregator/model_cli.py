"""The commands ``cloud-aggregator model ...``."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Column, Table

from federated_core.errors import LocalMisuseError

if TYPE_CHECKING:
    from cloud_aggregator.model_inspection import Cost, Report

BUNDLE_MAGIC = b"FWBD"

LossName = StrEnum("LossName", ["softmax-cross-entropy", "mean-squared-error", "binary-cross-entropy"])
OptimizerChoice = StrEnum("OptimizerChoice", ["sgd", "momentum", "adam"])

Loss = Annotated[LossName, typer.Option(help="What to minimize.")]
Trainable = Annotated[
    list[str] | None, typer.Option(help="Pattern of weights to train, such as 'fc.*'; every weight if left out.")
]
Personal = Annotated[list[str] | None, typer.Option(help="Pattern of weights that stay on the device.")]
Output = Annotated[str | None, typer.Option("--loss-output", help="Which output the loss reads; the first by default.")]
Fixed = Annotated[
    list[str] | None,
    typer.Option("--fix", metavar="NAME=SIZE", help="Size of a free dimension, or answer to an input of one number."),
]


def add_model_commands(parent: typer.Typer) -> None:
    """Put the commands below ``parent``."""
    app = typer.Typer(help="Make ONNX files trainable, and look into them.", no_args_is_help=True)
    app.command()(build)
    app.command()(inspect)
    parent.add_typer(app, name="model")


def build(  # noqa: PLR0913, PLR0917 - each argument is a choice of the person who builds the model.
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="An inference model.")],
    bundle: Annotated[Path, typer.Option("--output", "-o", metavar="BUNDLE", help="The file to write.")],
    loss: Loss,
    trainable: Trainable = None,
    personal: Personal = None,
    loss_output: Output = None,
    optimizer: Annotated[OptimizerChoice, typer.Option(help="The local optimizer.")] = OptimizerChoice["sgd"],
    proximal: Annotated[float, typer.Option(min=0.0, help="Pull towards the parameters of the round's start.")] = 0.0,
    clip_norm: Annotated[float, typer.Option(min=0.0, help="Largest norm of the whole gradient; 0: none.")] = 0.0,
    fix: Fixed = None,
    name: Annotated[str | None, typer.Option(help="Name of the model family; the file's by default.")] = None,
) -> None:
    """Derive the graphs of training, evaluation and inference from a model, as one bundle."""
    from cloud_aggregator.model_building import build_bundle
    from cloud_aggregator.model_inspection import inspect_bundle
    from federated_core.learning.step_interface import Optimizer

    built = build_bundle(
        _read(model),
        name=name or model.stem,
        loss=loss.value,
        trainable=trainable,
        personal=personal or (),
        output=loss_output,
        optimizer=msgspec.convert({"name": optimizer.value, "proximal": proximal, "clip_norm": clip_norm}, Optimizer),
        fixed=_numbers(fix),
    )
    report = inspect_bundle(built.data)
    bundle.write_bytes(built.data)
    count = sum(array.size for array in built.tensors.values())
    typer.echo(f"{bundle}: {len(built.tensors)} parameters of {count:,} numbers, {len(built.data):,} bytes")
    assert report.step is not None
    typer.echo(f"{_sizes_said(report)}: {_cost_said(report.step)} per step")


def inspect(
    path: Annotated[Path, typer.Argument(metavar="MODEL.onnx|BUNDLE", help="What to look into.")],
    loss: Loss = LossName["mean-squared-error"],
    trainable: Trainable = None,
    personal: Personal = None,
    loss_output: Output = None,
    fix: Fixed = None,
    size: Annotated[
        list[str] | None, typer.Option(metavar="NAME=SIZE", help="Size of a free dimension for the estimate; else 32.")
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show parameters, operators, and what a training step costs; a model that cannot be trained says why."""
    from cloud_aggregator.model_inspection import inspect_bundle, inspect_model

    data = _read(path)
    if data.startswith(BUNDLE_MAGIC):
        report = inspect_bundle(data, _numbers(size))
    else:
        report = inspect_model(
            data,
            name=path.stem,
            loss=loss.value,
            trainable=trainable,
            personal=personal or (),
            output=loss_output,
            fixed=_numbers(fix),
            sizes=_numbers(size),
        )
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(report)).decode())
    else:
        _show(report)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LocalMisuseError(f"{path}: cannot be read ({error.strerror})") from error


def _numbers(given: Sequence[str] | None) -> dict[str, int]:
    numbers = {}
    for item in given or ():
        name, _, number = item.rpartition("=")
        if not name or not number.isdecimal():
            raise LocalMisuseError(f"expected NAME=SIZE such as height=64, got '{item}'")
        numbers[name] = int(number)
    return numbers


def _sizes_said(report: "Report") -> str:
    return ", ".join(f"{name} = {size}" for name, size in report.sizes.items()) or "fixed sizes"


def _cost_said(cost: "Cost") -> str:
    return (
        f"{cost.multiply_add_count / 1e6:,.1f} million multiply-adds in {cost.node_count} nodes, "
        f"about {cost.peak_bytes / 2**20:,.1f} MiB beside the runtime "
        f"({cost.parameter_bytes / 2**20:,.1f} parameters, {cost.activation_peak_bytes / 2**20:,.1f} activations)"
    )


def _show(report: "Report") -> None:
    console = Console()
    for title, values in (("input", report.inputs), ("output", report.outputs)):
        for value in values:
            console.print(f"{title} {value.name}: {value.dtype} {list(value.shape)}", markup=False)
    whole = [Column(title, overflow="fold") for title in ("parameter", "shape", "role", "where", "remark")]
    parameters = Table(*whole, title=f"parameters of {report.name}")
    for one in report.parameters:
        shape = " x ".join(str(size) for size in one.shape)
        parameters.add_row(one.name, shape, one.role, one.place, one.remark)
    operators = Table("operator", "nodes", "gradient", "numpy engine", title="operators")
    for operator in report.operators:
        on_numpy = "yes" if operator.runs_on_numpy else "no"
        operators.add_row(operator.name, str(operator.count), operator.gradient, on_numpy)
    console.print(parameters)
    console.print(operators)
    if report.inference is not None:
        console.print(f"inference ({_sizes_said(report)}): {_cost_said(report.inference)}", markup=False)
    if report.step is not None:
        console.print(f"training step, {report.loss}: {_cost_said(report.step)}", markup=False)
    if report.problem is not None:
        console.print(f"cannot be trained like this: {report.problem}", markup=False)
