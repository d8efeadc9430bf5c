"""A bundle: what the aggregator ships for a model, in one blob; read and checked here without ``onnx``.

The master form of each graph is its ``.graph`` file; the ``.onnx`` file beside it is emitted from that. The description
names every file's digest. A bundle is code: the caller checks the model key's signature over the blob first.
"""

import hashlib
import struct
import zlib
from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec

from federated_core.errors import LocalMisuseError, RemoteProtocolError
from federated_core.learning.graph import DType, Graph, GraphLimits, Shape, Value, decode_graph
from federated_core.learning.parameters import Layout
from federated_core.learning.step_interface import (
    ANCHOR,
    CORRECT_COUNT,
    LABEL,
    LEARNING_RATE,
    LOSS,
    LOSS_SUM,
    SLOT,
    UPDATED,
    Optimizer,
)

FORMAT_VERSION: Final = 1
BUNDLE_BYTES_MAX: Final = 256 * 2**20
UNPACKED_BYTES_MAX: Final = 512 * 2**20
GRAPHS: Final = ("infer", "train", "evaluate")
_FILES: Final = frozenset(f"{graph}.{form}" for graph in GRAPHS for form in ("graph", "onnx"))
_COMPRESSION_LEVEL: Final = 9
_MAGIC: Final = b"FWBD"
_HEADER: Final = struct.Struct("<4sQ")

Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Word = Annotated[str, msgspec.Meta(max_length=256)]


class Fit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A personal parameter that a device computes from its own training examples, never from labels."""

    parameter: Word
    statistic: Literal["mean", "inverse-standard-deviation"]
    input: Word
    axes: Annotated[tuple[Annotated[int, msgspec.Meta(ge=0, lt=12)], ...], msgspec.Meta(min_length=1, max_length=12)]


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a bundle says of itself (``bundle.json``)."""

    name: Word
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    label: Value
    classes: tuple[Word, ...]
    loss: Word
    optimizer: Optimizer
    layout: Layout
    trained: tuple[Word, ...]
    """Parameters that a training step changes: trainable and state ones, and personal ones without a fit."""
    fits: tuple[Fit, ...]
    example_schema_version: Annotated[int, msgspec.Meta(ge=1)]
    digests: dict[Word, Digest]
    """SHA-256 of each file."""


class Bundle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A description and its files; `decode_bundle` has checked one against the other."""

    description: Description
    files: dict[Word, bytes]

    def graph(self, name: Literal["infer", "train", "evaluate"]) -> Graph:
        """Read one of the graphs."""
        return decode_graph(self.files[f"{name}.graph"])

    def onnx(self, name: Literal["infer", "train", "evaluate"]) -> bytes:
        """Return the ONNX file emitted from one of the graphs."""
        return self.files[f"{name}.onnx"]


_DECODER = msgspec.msgpack.Decoder(tuple[int, Bundle])
_ENCODER = msgspec.msgpack.Encoder(order="deterministic")


def digests_of(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the SHA-256 of each file, by name."""
    return {name: hashlib.sha256(files[name]).digest() for name in sorted(files)}


def encode_bundle(bundle: Bundle) -> bytes:
    """Pack a bundle: a header with the unpacked size, then deflated MessagePack; deterministic.

    Parameters
    ----------
    bundle : Bundle
        Complete and consistent.

    Returns
    -------
    bytes
        The same bytes for the same bundle and the same zlib.

    Raises
    ------
    LocalMisuseError
        If the bundle would not decode.

    Examples
    --------
    ``cloud_aggregator.model_building.build_bundle`` makes a bundle of an ONNX file and returns these bytes.
    """
    try:
        _check(bundle, GraphLimits())
    except RemoteProtocolError as error:
        raise LocalMisuseError(f"this bundle would be refused: {error}") from error
    packed = _ENCODER.encode((FORMAT_VERSION, bundle))
    return _HEADER.pack(_MAGIC, len(packed)) + zlib.compress(packed, _COMPRESSION_LEVEL)


def decode_bundle(data: bytes, limits: GraphLimits | None = None) -> Bundle:
    """Read a bundle and check everything in it that a device relies on.

    Parameters
    ----------
    data : bytes
        What `encode_bundle` wrote, or anything at all.
    limits : GraphLimits, optional
        What to accept of each graph.

    Returns
    -------
    Bundle
        Complete: every file is there with its digest, every graph passes `check_graph`, and inputs, outputs and layout
        agree with the graphs.

    Raises
    ------
    RemoteProtocolError
        If the bytes are no such bundle. Memory is bounded by the sizes declared at the top of this module.

    Examples
    --------
    >>> decode_bundle(b"nonsense")
    Traceback (most recent call last):
        ...
    federated_core.errors.RemoteProtocolError: $: expected a bundle, got 8 bytes of something else
    """
    if len(data) > BUNDLE_BYTES_MAX:
        raise RemoteProtocolError(f"$: expected a bundle of at most {BUNDLE_BYTES_MAX} bytes, got {len(data)}")
    if len(data) < _HEADER.size or data[: len(_MAGIC)] != _MAGIC:
        raise RemoteProtocolError(f"$: expected a bundle, got {len(data)} bytes of something else")
    _, size = _HEADER.unpack_from(data)
    if not 0 < size <= UNPACKED_BYTES_MAX:
        raise RemoteProtocolError(f"$: expected a bundle of at most {UNPACKED_BYTES_MAX} bytes unpacked, got {size}")
    try:
        version, bundle = _DECODER.decode(_unpack(data[_HEADER.size :], size))
    except (zlib.error, msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise RemoteProtocolError(f"$: expected a bundle, got {error}") from error
    if version != FORMAT_VERSION:
        raise RemoteProtocolError(f"$[0]: expected bundle version {FORMAT_VERSION}, got {version}")
    _check(bundle, limits or GraphLimits())
    return bundle


def _unpack(deflated: bytes, size: int) -> bytes:
    """Inflate exactly ``size`` bytes; never more is allocated."""
    inflater = zlib.decompressobj()
    packed = inflater.decompress(deflated, size)
    # The stream's end comes with the last byte or right after it: one more byte shows which, and what is too much.
    rest = b"" if inflater.eof else inflater.decompress(inflater.unconsumed_tail, 1)
    if len(packed) != size or rest or not inflater.eof or inflater.unused_data:
        raise ValueError(f"a stream that is not one of {size} bytes")
    return packed


def _check(bundle: Bundle, limits: GraphLimits) -> None:
    description = bundle.description
    for what, names in (("files", bundle.files), ("digests", description.digests)):
        if frozenset(names) != _FILES:
            raise RemoteProtocolError(f"$.{what}: expected {sorted(_FILES)}, got {sorted(names)}")
    for name, digest in digests_of(bundle.files).items():
        if description.digests[name] != digest:
            raise RemoteProtocolError(f"$.files['{name}']: expected the digest of the description, got {digest.hex()}")
    _check_names(description)
    graphs = {name: decode_graph(bundle.files[f"{name}.graph"], limits) for name in GRAPHS}
    examples = {value.name: value for value in description.inputs}
    label = {LABEL: description.label}
    rate = {LEARNING_RATE: Value(LEARNING_RATE, "float32", ())}
    parameters = {spec.name: Value(spec.name, "float32", spec.shape) for spec in description.layout.parameters}
    _check_inputs("infer", graphs["infer"], examples | parameters, {})
    _check_inputs("evaluate", graphs["evaluate"], examples | label | parameters, {})
    _check_inputs("train", graphs["train"], examples | label | rate | parameters, _slots(graphs["train"]))
    updated = {f"{UPDATED}{name}" for name in description.trained}
    slots = {f"{UPDATED}{name}" for name in _slots(graphs["train"])}
    outputs = {value.name for value in graphs["train"].outputs}
    if not {LOSS} | updated <= outputs <= {LOSS} | updated | slots:
        raise RemoteProtocolError("$.files['train.graph'].outputs: expected loss and the updated parameters and slots")
    if {value.name for value in graphs["evaluate"].outputs} != {LOSS_SUM, CORRECT_COUNT}:
        raise RemoteProtocolError(f"$.files['evaluate.graph'].outputs: expected {LOSS_SUM} and {CORRECT_COUNT}")


def _check_names(description: Description) -> None:
    roles = {spec.name: spec.role for spec in description.layout.parameters}
    if not set(description.trained) <= set(roles) or len(set(description.trained)) != len(description.trained):
        raise RemoteProtocolError("$.description.trained: expected parameters of the layout, each once")
    inputs = {value.name: value for value in description.inputs}
    for index, fit in enumerate(description.fits):
        path = f"$.description.fits[{index}]"
        if roles.get(fit.parameter) != "personal":
            raise RemoteProtocolError(f"{path}.parameter: expected a personal parameter, got '{fit.parameter}'")
        if fit.input not in inputs or max(fit.axes) >= len(inputs[fit.input].shape):
            raise RemoteProtocolError(f"{path}: expected axes of an input of the model, got '{fit.input}' {fit.axes}")


def _slots(graph: Graph) -> dict[str, Value]:
    """Return the inputs of a training graph that are the optimizer's own."""
    return {value.name: value for value in graph.inputs if value.name.startswith((SLOT, ANCHOR))}


def _check_inputs(name: str, graph: Graph, expected: Mapping[str, Value], more: Mapping[str, Value]) -> None:
    wanted: Mapping[str, tuple[DType, Shape]] = {
        key: (value.dtype, value.shape) for key, value in {**expected, **more}.items()
    }
    found = {value.name: (value.dtype, value.shape) for value in graph.inputs}
    if found != wanted:
        wrong = min(set(found.items()) ^ set(wanted.items()), key=str)[0]
        raise RemoteProtocolError(
            f"$.files['{name}.graph'].inputs: expected '{wrong}' as {wanted.get(wrong)}, got {found.get(wrong)}"
        )
