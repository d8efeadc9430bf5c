"""A recipe's `plan.toml`: how a model is made trainable, and how a fleet trains it."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from cloud_aggregator.task_progress import TaskSettings
from federated_core.adapters.settings_file import read_toml
from federated_core.configuration import read_settings
from federated_core.learning.bundle import Fit


class ModelSettings(msgspec.Struct, frozen=True):
    """How a model is made trainable; see `model_building.build_bundle`."""

    name: str
    loss: str  # A name of `learning.losses`.
    classes: tuple[str, ...] = ()
    trainable: tuple[str, ...] | None = None  # Patterns; None means every weight.
    personal: tuple[str, ...] = ()  # Patterns of weights that stay on the device.
    fits: tuple[Fit, ...] = ()  # Weights that each device computes from its own examples.
    output: str | None = None  # Which output the loss reads; needed if there are several.


class Recipe(msgspec.Struct, frozen=True):
    """The whole file. ``store`` suits the data and belongs into the devices' `agent.toml`."""

    model: ModelSettings
    task: TaskSettings
    store: Annotated[dict[str, int | float], Meta(max_length=16)] = {}


def load_recipe(path: Path, **round_settings: Any) -> Recipe:
    """Return the recipe in ``path``, with the given settings of its rounds in place of the file's."""
    table = read_toml(path)
    given = {name: value for name, value in round_settings.items() if value is not None}
    if given and isinstance(table.get("task"), dict):
        table["task"]["rounds"] = {**table["task"].get("rounds", {}), **given}
    return read_settings(table, Recipe, str(path))
