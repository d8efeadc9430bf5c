"""Which constants of a model are weights: where exporters put them, and which they merged by mistake.

A parameter is what the ONNX file says it is, under the name that the file gives it, wherever it stands: an initializer,
a Constant node, behind an Identity or a Transpose.
"""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np

from federated_core.errors import LocalMisuseError, UntrainableModelError
from federated_core.learning.gradients import leading_names
from federated_core.learning.graph import Graph, Node, TypedGraph

WEIGHT_SLOTS: Final[Mapping[str, tuple[int, ...]]] = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Einsum": (0, 1),
    "GRU": (1, 2, 3),
    "Gather": (0,),
    "Gemm": (0, 1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3, 7),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "PRelu": (1,),
    "RMSNormalization": (1,),
    "RNN": (1, 2, 3),
}
"""Inputs of operators where a float constant is a weight and not a setting."""
UNTIED: Final = "@"
"""Between the name of a merged weight and the value that its reader computes: the name of that reader's own copy."""
_LOOKED_THROUGH: Final = frozenset(
    {"Cast", "Concat", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
"""What exporters put between a weight and its node; the gates of recurrent layers are cut apart and joined again."""
_BIAS_OPERATORS: Final = frozenset({"Add", "Mul", "Sub", "Div"})


class Use(NamedTuple):
    """One place where a constant is a weight."""

    weight: str
    node: Node
    slot: int
    way: tuple[Node, ...]
    """What stands between the constant and the node: Identity, Transpose and their like."""


def weight_uses(model: TypedGraph) -> list[Use]:
    """Return every use of a constant as a weight, in the order of the nodes.

    A weight is a float32 constant in a weight slot of an operator (`WEIGHT_SLOTS`), or one with more than one element
    that is added to or multiplied with something that depends on a weight (a bias, a scale). Running statistics, clip
    bounds, initial states and single numbers are none.
    """
    graph = model.graph
    floats = [name for name, tensor in graph.constants.items() if tensor.dtype == "float32"]
    sources: dict[str, dict[str, tuple[Node, ...]]] = {name: {name: ()} for name in floats}
    active: set[str] = set()
    uses: list[Use] = []
    for node in graph.nodes:
        read = [name for name in node.inputs if name in graph.constants or name in sources]
        if node.op in _LOOKED_THROUGH and node.inputs[0] in sources and read == [name for name in node.inputs if name]:
            found = {origin: (*way, node) for name in read for origin, way in sources.get(name, {}).items()}
            sources |= dict.fromkeys(node.outputs, found)
        slots = WEIGHT_SLOTS.get(node.op, ())
        if node.op in _BIAS_OPERATORS and active.intersection(node.inputs):
            slots = tuple(range(len(node.inputs)))
        here = [
            Use(origin, node, slot, way)
            for slot in slots
            if slot < len(node.inputs)
            for origin, way in sources.get(node.inputs[slot], {}).items()
            if node.op not in _BIAS_OPERATORS or _size(graph, origin) > 1
        ]
        uses += here
        if here or active.intersection(node.inputs):
            active.update(node.outputs)
    return uses


def _size(graph: Graph, name: str) -> int:
    return int(np.prod(graph.constants[name].shape, dtype=np.int64))


def weights(model: TypedGraph, ends: Iterable[str] | None = None) -> list[str]:
    """Return the constants that are weights (see `weight_uses`) and lead to ``ends``, in the file's order.

    ``ends`` are the model's outputs unless said.
    """
    found = {use.weight for use in weight_uses(model)}
    wanted = {value.name for value in model.graph.outputs} if ends is None else set(ends)
    leading = leading_names(model.graph.nodes, wanted)
    kept = [name for name in model.graph.constants if name in found and name in leading]
    if found and not kept:
        raise UntrainableModelError("no output depends on a weight through operators that have a gradient")
    return kept


def matching(model: TypedGraph, patterns: Sequence[str], role: str, ends: Iterable[str] | None = None) -> list[str]:
    """Return the weights that match a pattern, in the file's order; a pattern that matches none is an error.

    A pattern without a match among the weights may name other float constants, one by one or together.
    """
    graph = model.graph
    floats = [name for name, tensor in graph.constants.items() if tensor.dtype == "float32"]
    usual = weights(model, ends)
    found: set[str] = set()
    for pattern in patterns:
        matches = fnmatch.filter(usual, pattern) or fnmatch.filter(floats, pattern)
        if not matches:
            raise LocalMisuseError(f"no weight matches the {role} pattern '{pattern}': expected {', '.join(usual)}")
        found.update(matches)
    return [name for name in floats if name in found]


def tied(model: TypedGraph) -> dict[str, list[Use]]:
    """Return the weights that several nodes read, with these uses."""
    uses: dict[str, list[Use]] = {}
    for use in weight_uses(model):
        uses.setdefault(use.weight, []).append(use)
    return {name: several for name, several in uses.items() if len({use.node.outputs[0] for use in several}) > 1}


def untie(model: TypedGraph) -> TypedGraph:
    """Give each node its own copy of a weight that an exporter merged because all of its values are one number.

    Two fresh normalizations both have a scale of ones; exporters write that once. Trained as one, their gradients would
    be added up. A weight of different numbers that several nodes read is tied on purpose, and stays so.
    """
    merged = {
        name
        for name in tied(model)
        if _size(model.graph, name) > 1 and len(np.unique(model.graph.constants[name].array())) == 1
    }
    constants, types = dict(model.graph.constants), dict(model.types)
    seen: set[str] = set()
    nodes = []
    for node in model.graph.nodes:
        own = {name: f"{name}{UNTIED}{node.outputs[0]}" for name in node.inputs if name in merged and name in seen}
        seen.update(node.inputs)
        for name, copy in own.items():
            constants[copy] = constants[name]
            types[copy] = msgspec.structs.replace(types[name], name=copy)
        nodes.append(msgspec.structs.replace(node, inputs=tuple(own.get(name, name) for name in node.inputs)))
    graph = msgspec.structs.replace(model.graph, constants=constants, nodes=tuple(nodes))
    return TypedGraph(graph, types)
