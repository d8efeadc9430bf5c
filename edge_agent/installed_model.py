"""An installed release, loaded: parameters, the device's personal ones among them, and a session that predicts."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.adapters.installer import InstalledRelease, Installer
from federated_core.engines.engine import Engine, InferenceSession
from federated_core.errors import RemoteProtocolError
from federated_core.learning.bundle import Bundle, decode_bundle
from federated_core.learning.parameters import Layout, decode_checkpoint, unflatten

Tensors = Mapping[str, NDArray[np.float32]]
_PERSONAL = msgspec.msgpack.Decoder(dict[str, bytes])


@dataclasses.dataclass(frozen=True, slots=True)
class InstalledModel:
    """One release in memory; nothing of it changes any more."""

    release: InstalledRelease
    bundle: Bundle
    tensors: Tensors
    session: InferenceSession

    def predict(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return all outputs by name for one batch."""
        return self.session.run(inputs)


def load_installed(installer: Installer, release: InstalledRelease, engine: Engine) -> InstalledModel:
    """Read a release from disk and open it; AdapterError or RemoteProtocolError if it is not what was installed."""
    files = installer.read(release)
    bundle = decode_bundle(files["bundle"])
    layout = bundle.description.layout
    checkpoint = decode_checkpoint(files["checkpoint"], layout)
    tensors = {**unflatten(layout, checkpoint.vector), **decode_personal(files["personal"], layout)}
    return InstalledModel(release, bundle, tensors, engine.open_inference(bundle, tensors))


def encode_personal(tensors: Tensors) -> bytes:
    """Return personal parameters as they are kept beside a release."""
    return msgspec.msgpack.encode({name: tensors[name].astype("<f4").tobytes() for name in sorted(tensors)})


def decode_personal(data: bytes, layout: Layout) -> dict[str, NDArray[np.float32]]:
    """Read them again; RemoteProtocolError if they are not parameters of ``layout``."""
    shapes = {spec.name: spec.shape for spec in layout.parameters if spec.role == "personal"}
    try:
        return {
            name: np.frombuffer(values, "<f4").astype(np.float32).reshape(shapes[name])
            for name, values in _PERSONAL.decode(data).items()
        }
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, ValueError) as error:
        raise RemoteProtocolError(f"personal parameters: {error}") from error
