"""From an ONNX file to a bundle, and from trained parameters back into the file."""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from federated_core.errors import LocalMisuseError, UntrainableModelError
from federated_core.learning.bundle import Bundle, Description, Fit, digests_of, encode_bundle
from federated_core.learning.gradients import active_names
from federated_core.learning.graph import Graph, Node, TypedGraph, encode_graph
from federated_core.learning.onnx_graph import emit_onnx, import_onnx, parse_onnx
from federated_core.learning.parameters import Layout, ParameterSpec, Role
from federated_core.learning.step_interface import LABEL, UPDATED, Optimizer
from federated_core.learning.training_graph import (
    at_rest,
    evaluation_graph,
    inference_graph,
    running_statistics,
    training_graph,
)

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
_LOOKED_THROUGH: Final = frozenset({"Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Cast"})
_BIAS_OPERATORS: Final = frozenset({"Add", "Mul", "Sub", "Div"})


class BuiltBundle(NamedTuple):
    """A bundle in its bytes and the parameters that training starts from."""

    data: bytes
    tensors: dict[str, NDArray[np.float32]]


def build_bundle(  # noqa: PLR0913 - each argument is a choice of the person who builds the model.
    onnx_bytes: bytes,
    *,
    name: str,
    loss: str,
    trainable: Sequence[str] | None = None,
    personal: Sequence[str] = (),
    fits: Sequence[Fit] = (),
    classes: Sequence[str] = (),
    output: str | None = None,
    optimizer: Optimizer | None = None,
    example_schema_version: int = 1,
    fixed: Mapping[str, int] | None = None,
) -> BuiltBundle:
    """Derive a bundle from an inference model: the same file and choices, the same bytes.

    ``trainable`` and ``personal`` are patterns of initializer names (``fc.*``); without ``trainable`` every weight that
    the loss depends on is trained (see `weights`). ``fixed`` gives sizes to free dimensions, by name. Whatever is
    neither trained nor fitted stays a constant of the graphs, where onnxruntime can fold it; it is in no checkpoint.
    """
    model = import_onnx(onnx_bytes, fixed)
    fitted = [fit.parameter for fit in fits]
    found = weights(model) if trainable is None else matching(model, trainable, "trainable")
    own = matching(model, personal, "personal")
    trained = [item for item in model.graph.constants if item in {*found, *own} and item not in fitted]
    unknown = [item for item in fitted if item not in model.graph.constants]
    if unknown:
        raise UntrainableModelError(f"'{unknown[0]}' is to be fitted, and is no initializer of the model")
    running = running_statistics(model.graph)
    parameters = [item for item in model.graph.constants if item in {*trained, *fitted, *running}]
    roles: dict[str, Role] = dict.fromkeys(parameters, "trainable")
    roles |= dict.fromkeys(running, "state")
    roles |= dict.fromkeys([*own, *fitted], "personal")
    layout = Layout(tuple(ParameterSpec(item, model.graph.constants[item].shape, roles[item]) for item in parameters))
    optimizer = optimizer or Optimizer()
    train = training_graph(model, parameters, trained, loss=loss, output=output, optimizer=optimizer)
    evaluate = evaluation_graph(model, parameters, loss=loss, output=output)
    infer = inference_graph(at_rest(model), parameters)
    files: dict[str, bytes] = {}
    for title, graph in (("infer", infer), ("train", train), ("evaluate", evaluate)):
        files[f"{title}.graph"] = encode_graph(graph)
        files[f"{title}.onnx"] = emit_onnx(graph)
    changed = [value.name.removeprefix(UPDATED) for value in train.outputs]
    description = Description(
        name=name,
        inputs=model.graph.inputs,
        outputs=model.graph.outputs,
        label=next(value for value in evaluate.inputs if value.name == LABEL),
        classes=tuple(classes),
        loss=loss,
        optimizer=optimizer,
        layout=layout,
        trained=tuple(item for item in parameters if item in changed),
        fits=tuple(fits),
        example_schema_version=example_schema_version,
        digests=digests_of(files),
    )
    tensors = {item: model.graph.constants[item].array().astype(np.float32) for item in parameters}
    return BuiltBundle(encode_bundle(Bundle(description, files)), tensors)


def matching(model: TypedGraph, patterns: Sequence[str], role: str) -> list[str]:
    """Return the float initializers that match a pattern, in the file's order; none is an error."""
    floats = [item for item, tensor in model.graph.constants.items() if tensor.dtype == "float32"]
    for pattern in patterns:
        if not fnmatch.filter(floats, pattern):
            raise LocalMisuseError(f"no float initializer matches the {role} pattern '{pattern}': {', '.join(floats)}")
    return [item for item in floats if any(fnmatch.fnmatchcase(item, pattern) for pattern in patterns)]


def weights(model: TypedGraph) -> list[str]:
    """Return the initializers that look like weights, in the file's order.

    A weight is a float32 constant in a weight slot of an operator (`WEIGHT_SLOTS`), or one with more than one element
    that is added to or multiplied with something that depends on a weight (a bias, a scale). Running statistics, clip
    bounds, initial states and single numbers are none.
    """
    graph = model.graph
    floats = {item for item, tensor in graph.constants.items() if tensor.dtype == "float32"}
    source = {item: item for item in floats}
    found: set[str] = set()
    active: set[str] = set()
    for node in graph.nodes:
        if node.op in _LOOKED_THROUGH and node.inputs[0] in source:
            source[node.outputs[0]] = source[node.inputs[0]]
        here = _weight_inputs(node, graph, source, active)
        found |= here
        if here or active.intersection(node.inputs):
            active.update(node.outputs)
    reached = active_names(graph.nodes, sorted(found))
    ends = {value.name for value in graph.outputs}
    if found and not reached & ends:
        raise UntrainableModelError("no output depends on a weight through operators that have a gradient")
    return [item for item in graph.constants if item in found]


def _weight_inputs(node: Node, graph: Graph, source: Mapping[str, str], active: set[str]) -> set[str]:
    slots = WEIGHT_SLOTS.get(node.op, ())
    if node.op in _BIAS_OPERATORS and active.intersection(node.inputs):
        slots = tuple(
            slot
            for slot, item in enumerate(node.inputs)
            if item in source and np.prod(graph.constants[source[item]].shape, dtype=np.int64) > 1
        )
    return {source[node.inputs[slot]] for slot in slots if slot < len(node.inputs) and node.inputs[slot] in source}


def write_parameters(onnx_bytes: bytes, tensors: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Put trained parameters back into the file that they came from: same nodes, same names, new weights."""
    model = parse_onnx(onnx_bytes)
    places = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].type == onnx.AttributeProto.TENSOR:
            places[node.output[0]] = node.attribute[0].t
    for name, array in tensors.items():
        if name not in places or tuple(places[name].dims) != array.shape:
            raise LocalMisuseError(f"the model has no initializer '{name}' of shape {array.shape}")
        renewed = onnx.numpy_helper.from_array(np.ascontiguousarray(array, np.float32), places[name].name)
        places[name].CopyFrom(renewed)
    return bytes(model.SerializeToString(deterministic=True))
