"""What is in a model or a bundle: parameters, operators, and what a training step costs."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np

from cloud_aggregator.model_building import build_bundle
from cloud_aggregator.model_weights import UNTIED, Use, tied, untie, weight_uses
from federated_core.engines.numpy_operators import NUMPY_OPERATORS
from federated_core.errors import FallowError, LocalMisuseError, UntrainableModelError
from federated_core.learning.bundle import Bundle, decode_bundle
from federated_core.learning.gradients import GRADIENTS, NO_GRADIENT
from federated_core.learning.graph import Graph, Node, Value, bodies, needed_names
from federated_core.learning.onnx_graph import import_onnx, parse_onnx
from federated_core.learning.onnx_types import infer_types

SIZE_UNLESS_SAID = 32
"""Of a free dimension, the batch included."""
_ALIASES = frozenset({"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten"})
_GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}


class Cost(msgspec.Struct, frozen=True):
    """What one run of a graph takes, estimated from its shapes."""

    node_count: int
    multiply_add_count: int
    """Of matrix products, convolutions and recurrent layers; everything else is small beside them."""
    parameter_bytes: int
    """Parameters and optimizer slots, both sets of buffers, and constants."""
    activation_peak_bytes: int
    """The most that is alive between two nodes."""

    @property
    def peak_bytes(self) -> int:
        """Return all of it; the runtime itself comes on top."""
        return self.parameter_bytes + self.activation_peak_bytes


class Parameter(msgspec.Struct, frozen=True):
    """A weight of the model."""

    name: str
    shape: tuple[int, ...]
    role: Literal["trainable", "personal", "state", "frozen", "constant"]
    place: str = ""
    """Which node reads it, and what stands between."""
    remark: str = ""
    """Merged, tied or hidden, if it is."""


class Operator(msgspec.Struct, frozen=True):
    """How often an operator is used, and what training makes of it."""

    name: str
    count: int
    gradient: Literal["rule", "stops here", "refused"]
    runs_on_numpy: bool


class Report(msgspec.Struct, frozen=True):
    """All of it. ``problem`` says why the model cannot be trained this way, if it cannot."""

    kind: Literal["model", "bundle"]
    name: str
    loss: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    sizes: dict[str, int]
    """The sizes that free dimensions were given for the estimate."""
    parameters: tuple[Parameter, ...]
    operators: tuple[Operator, ...]
    inference: Cost | None = None
    step: Cost | None = None
    problem: str | None = None


def inspect_bundle(data: bytes, sizes: Mapping[str, int] | None = None) -> Report:
    """Describe a bundle."""
    bundle = decode_bundle(data)
    description = bundle.description
    graph = bundle.graph("infer")
    given = {value.name for value in graph.inputs}
    readers = {name: node for node in reversed(graph.nodes) for name in needed_names(node) if name in given}
    parameters = tuple(
        Parameter(spec.name, spec.shape, spec.role, place=_reader(readers.get(spec.name)))
        for spec in description.layout.parameters
    )
    used = _sizes(bundle.graph("train"), sizes or {})
    return Report(
        kind="bundle",
        name=description.name,
        loss=description.loss,
        inputs=description.inputs,
        outputs=description.outputs,
        sizes=used,
        parameters=parameters,
        operators=_operators(graph),
        inference=cost(bundle, "infer", used),
        step=cost(bundle, "train", used),
    )


def inspect_model(
    onnx_bytes: bytes,
    *,
    name: str = "model",
    loss: str = "mean-squared-error",
    trainable: Sequence[str] | None = None,
    personal: Sequence[str] = (),
    output: str | None = None,
    fixed: Mapping[str, int] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Report:
    """Describe an ONNX file, and what training it this way would cost; one that cannot be trained says why."""
    imported = import_onnx(onnx_bytes, fixed)
    model = untie(imported)
    uses: dict[str, list[Use]] = {}
    for use in weight_uses(model):
        uses.setdefault(use.weight, []).append(use)
    in_nodes = {node.output[0] for node in parse_onnx(onnx_bytes).graph.node if node.op_type == "Constant"}
    roles: dict[str, Literal["trainable", "personal", "state", "frozen", "constant"]] = {}
    used, inference, step, problem = dict(sizes or {}), None, None, None
    try:
        built = build_bundle(
            onnx_bytes, name=name, loss=loss, trainable=trainable, personal=personal, output=output, fixed=fixed
        )
        bundle = decode_bundle(built.data)
        roles |= {spec.name: spec.role for spec in bundle.description.layout.parameters}
        used = _sizes(bundle.graph("train"), sizes or {})
        inference, step = cost(bundle, "infer", used), cost(bundle, "train", used)
    except (UntrainableModelError, LocalMisuseError) as error:
        problem = str(error)
    several = tied(model)
    parameters = tuple(
        Parameter(
            item,
            model.graph.constants[item].shape,
            roles.get(item, "constant"),
            place="; ".join(_place(use) for use in uses.get(item, [])),
            remark=_remark(item, several, in_nodes),
        )
        for item in model.graph.constants
        if item in uses or item in roles
    )
    return Report(
        kind="model",
        name=name,
        loss=loss,
        inputs=model.graph.inputs,
        outputs=model.graph.outputs,
        sizes=used,
        parameters=parameters,
        operators=_operators(model.graph),
        inference=inference,
        step=step,
        problem=problem,
    )


def _place(use: Use) -> str:
    way = "".join(f", through {node.op}" for node in use.way)
    return f"{use.node.op} '{use.node.name or use.node.outputs[0]}'{way}"


def _reader(node: Node | None) -> str:
    return "" if node is None else f"{node.op} '{node.name or node.outputs[0]}'"


def _remark(name: str, several: Mapping[str, list[Use]], in_nodes: set[str]) -> str:
    if UNTIED in name:
        return f"untied from '{name.partition(UNTIED)[0]}', with which an exporter merged it"
    if name in several:
        return f"tied: {len(several[name])} uses"
    return "in a Constant node" if name in in_nodes else ""


def _operators(graph: Graph) -> tuple[Operator, ...]:
    counts: dict[str, int] = {}
    for node in graph.nodes:
        counts[node.op] = counts.get(node.op, 0) + 1
    return tuple(
        Operator(
            op,
            count,
            "rule" if op in GRADIENTS else "stops here" if op in NO_GRADIENT else "refused",
            runs_on_numpy=op in NUMPY_OPERATORS or op == "Scan",
        )
        for op, count in sorted(counts.items())
    )


def _sizes(graph: Graph, given: Mapping[str, int]) -> dict[str, int]:
    """Give each free dimension of the graph's inputs a size."""
    words = {part for value in graph.inputs for dim in value.shape for part in str(dim).split("*")}
    return {word: given.get(word, SIZE_UNLESS_SAID) for word in sorted(words) if not word.isdecimal()}


def cost(bundle: Bundle, name: Literal["infer", "train", "evaluate"], sizes: Mapping[str, int]) -> Cost:
    """Estimate what one run of a graph takes when its free dimensions have these sizes."""
    graph = bundle.graph(name)
    products = {
        str(dim): math.prod(int(part) if part.isdecimal() else sizes[part] for part in str(dim).split("*"))
        for value in graph.inputs
        for dim in value.shape
        if isinstance(dim, str)
    }
    try:
        types, _ = infer_types(parse_onnx(bundle.onnx(name)), products)
    except FallowError as error:
        raise UntrainableModelError(f"the cost cannot be estimated: {error}") from error
    shapes = {key: tuple(int(dim) for dim in value.shape) for key, value in types.items() if _is_fixed(value)}
    parameters = {spec.name for spec in bundle.description.layout.parameters}
    held = sum(
        _bytes(types[value.name]) * (2 if name == "train" else 1)
        for value in graph.inputs
        if value.name in parameters or value.name.startswith("slot/")
    )
    held += sum(len(tensor.data) for tensor in graph.constants.values())
    return Cost(
        node_count=len(graph.nodes),
        multiply_add_count=sum(_multiply_adds(node, shapes) for node in graph.nodes),
        parameter_bytes=held,
        activation_peak_bytes=_activation_peak(graph, types),
    )


def _is_fixed(value: Value) -> bool:
    return all(isinstance(dim, int) for dim in value.shape)


def _bytes(value: Value) -> int:
    if not _is_fixed(value):
        return 0
    return math.prod(int(dim) for dim in value.shape) * np.dtype(value.dtype).itemsize


def _activation_peak(graph: Graph, types: Mapping[str, Value]) -> int:
    """Walk the nodes: a value lives from its node to its last reader; a reshaped one shares its source's memory."""
    origin: dict[str, str] = {}
    for node in graph.nodes:
        if node.op in _ALIASES and node.inputs[0]:
            origin[node.outputs[0]] = origin.get(node.inputs[0], node.inputs[0])
    last: dict[str, int] = {}
    for index, node in enumerate(graph.nodes):
        for name in needed_names(node):
            last[origin.get(name, name)] = index
    ends: dict[int, list[str]] = {}
    for name, index in last.items():
        ends.setdefault(index, []).append(name)
    results = {value.name for value in graph.outputs if value.name.startswith("updated/")}
    alive: dict[str, int] = {}
    peak = 0
    for index, node in enumerate(graph.nodes):
        for name in node.outputs:
            if name in types and name not in origin and name not in results:
                alive[name] = _bytes(types[name])
        peak = max(peak, sum(alive.values()))
        for name in ends.get(index, []):
            alive.pop(name, None)
    return peak


def _multiply_adds(node: Node, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Count the multiplications of one node that are added up; 0 where shapes are unknown."""
    known = [shapes.get(name) for name in node.inputs if name]
    result = shapes.get(node.outputs[0])
    if node.op == "Scan":
        length = next((shape[0] for shape in reversed(known) if shape), 0)
        return sum(length * _step_multiply_adds(body, shapes) for body in bodies(node))
    if result is None or len(known) < 2 or known[0] is None or known[1] is None:
        return 0
    first, second = known[0], known[1]
    match node.op:
        case "MatMul":
            return math.prod(result) * first[-1]
        case "Gemm":
            return math.prod(result) * first[0 if node.attributes.get("transA") else 1]
        case "Conv":
            return math.prod(result) * math.prod(second[1:])
        case "ConvTranspose":
            return math.prod(first) * math.prod(second[1:])
        case "GRU" | "LSTM" | "RNN":
            directions, rows, inputs = second
            return math.prod(first[:2]) * directions * rows * (inputs + rows // _GATES[node.op])
    return 0


def _step_multiply_adds(body: Graph, outer: Mapping[str, tuple[int, ...]]) -> int:
    """Count those of one step: a product of a state with a weight from outside."""
    total = 0
    rows = max((value.shape[0] for value in body.inputs if value.shape and isinstance(value.shape[0], int)), default=1)
    for node in body.nodes:
        if node.op in {"MatMul", "Gemm"} and node.inputs[1] in outer:
            total += rows * math.prod(outer[node.inputs[1]])
    return total
