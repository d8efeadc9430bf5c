"""The model that this device runs, for applications on it: in their own process, without asking the agent."""

import dataclasses
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.adapters.engine import open_engine
from edge_agent.adapters.installer import InstalledRelease, Installer
from edge_agent.installed_model import InstalledModel, load_installed
from federated_core.engines.engine import Engine
from federated_core.errors import AdapterError, FallowError, LocalMisuseError

RELEASES_NAME = "releases"
_READ_TRIES = 3  # A second swap may sweep what the pointer named when it was read.
_log = logging.getLogger(__name__)

Stamp = tuple[int, int, int] | None
Inputs = NDArray[Any] | Mapping[str, NDArray[Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class Prediction:
    """All outputs of one call by name, and the release that computed them."""

    outputs: dict[str, NDArray[Any]]
    release: InstalledRelease


class LocalModel:
    """The release of one family that runs here; follows the agent's swaps by itself, from any number of threads.

    A call is answered by one release from beginning to end. While a new one is loaded, and if it cannot be, calls are
    answered by the one before.
    """

    def __init__(self, folder: str | Path, family: str | None = None, *, engine: Engine | None = None) -> None:
        """Open what is installed in the agent's ``folder``; ``family`` may be left out if there is only one."""
        self._installer = Installer(Path(folder) / RELEASES_NAME)
        self._engine: Engine = engine or open_engine()
        self._family = family or _only_family(self._installer)
        self._pointer_path = self._installer.pointer_path(self._family)
        self._loading = threading.Lock()
        self._stamp = self._look()
        self._model = self._load()

    @property
    def release(self) -> InstalledRelease:
        """What answers now."""
        return self._follow().release

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the first output; empty if the model has none."""
        return self._follow().bundle.description.classes

    def predict(self, x: Inputs) -> NDArray[Any]:
        """Return the model's first output for a batch, or for one example (then without the batch dimension)."""
        model = self._follow()
        first = model.bundle.description.outputs[0].name
        if isinstance(x, Mapping):
            return model.predict(x)[first]
        declared = model.bundle.description.inputs[0]
        if np.ndim(x) == len(declared.shape) - 1:
            single: NDArray[Any] = model.predict(_one_input(model, np.asarray(x)[np.newaxis]))[first][0]
            return single
        return model.predict(_one_input(model, x))[first]

    def predict_in_full(self, x: Inputs) -> Prediction:
        """Return all outputs for a batch, and the release that they come from."""
        model = self._follow()
        inputs = x if isinstance(x, Mapping) else _one_input(model, x)
        return Prediction(model.predict(inputs), model.release)

    def _follow(self) -> InstalledModel:
        """Return the newest model that can be had without making anybody wait for another thread."""
        if self._look() != self._stamp and self._loading.acquire(blocking=False):
            try:
                self._stamp = self._look()  # Before reading: what is swapped after this is seen by the next call.
                self._model = self._load()
            except FallowError as error:
                _log.warning("release %d answers on: %s", self._model.release.number, error)
            finally:
                self._loading.release()
        return self._model

    def _look(self) -> Stamp:
        try:
            status = os.stat(self._pointer_path)  # noqa: PTH116  In every call: Path.stat costs three times as much.
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _load(self) -> InstalledModel:
        for remaining in reversed(range(_READ_TRIES)):
            pointer = self._installer.read_pointer(self._family)
            if pointer is None:
                raise LocalMisuseError(f"{self._pointer_path}: no release of {self._family!r} is installed yet")
            try:
                return load_installed(self._installer, pointer.release, self._engine)
            except AdapterError:
                if remaining == 0:
                    raise
        raise AssertionError


def _only_family(installer: Installer) -> str:
    families = installer.families()
    if len(families) != 1:
        raise LocalMisuseError(f"expected the name of a family; installed are {', '.join(families) or 'none'}")
    return families[0]


def _one_input(model: InstalledModel, x: NDArray[Any]) -> dict[str, NDArray[Any]]:
    declared = model.bundle.description.inputs
    if len(declared) != 1:
        raise LocalMisuseError(f"expected inputs by name: {', '.join(value.name for value in declared)}")
    return {declared[0].name: x}
