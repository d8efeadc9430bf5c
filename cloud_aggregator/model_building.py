"""From an ONNX file to a bundle, and from trained parameters back into the file."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from cloud_aggregator.model_weights import UNTIED, matching, untie, weights
from federated_core.errors import LocalMisuseError, UntrainableModelError
from federated_core.learning.bundle import Bundle, Description, Fit, digests_of, encode_bundle
from federated_core.learning.graph import encode_graph
from federated_core.learning.onnx_branches import BRANCHES, branch_name
from federated_core.learning.onnx_graph import emit_onnx, import_onnx, parse_onnx
from federated_core.learning.parameters import Layout, ParameterSpec, Role
from federated_core.learning.step_interface import LABEL, UPDATED, Optimizer
from federated_core.learning.training_graph import (
    at_rest,
    evaluation_graph,
    inference_graph,
    loss_input,
    running_statistics,
    training_graph,
)


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

    ``trainable`` and ``personal`` are patterns of weights' names (``fc.*``); without ``trainable`` every weight that
    the loss depends on is trained (see `weights`). ``fixed`` gives sizes to free dimensions, by name. Whatever is
    neither trained nor fitted stays a constant of the graphs, where onnxruntime can fold it; it is in no checkpoint.
    """
    model = untie(import_onnx(onnx_bytes, fixed))
    fitted = [fit.parameter for fit in fits]
    ends = [loss_input(model.graph, loss, output)]
    found = weights(model, ends) if trainable is None else matching(model, trainable, "trainable", ends)
    own = matching(model, personal, "personal", ends)
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


def write_parameters(onnx_bytes: bytes, tensors: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Put trained parameters back into the file that they came from: same nodes, same names, new weights.

    A weight that was untied (`untie`) becomes an initializer of its own, which its node reads from then on.
    """
    model = parse_onnx(onnx_bytes)
    places = dict(_places(model.graph, ()))
    for name, array in tensors.items():
        merged, _, reader = name.partition(UNTIED)
        if name not in places and merged in places:
            places[name] = _separated(model.graph, merged, reader, name)
        if name not in places or tuple(places[name].dims) != array.shape:
            raise LocalMisuseError(f"the model has no initializer '{name}' of shape {array.shape}")
        renewed = onnx.numpy_helper.from_array(np.ascontiguousarray(array, np.float32), places[name].name)
        places[name].CopyFrom(renewed)
    return bytes(model.SerializeToString(deterministic=True))


def _places(graph: onnx.GraphProto, way: tuple[str, str] | tuple[()]) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Yield every constant with the name that `import_onnx` gives it; ``way`` tells the branch that ``graph`` is."""

    def named(name: str) -> str:
        return branch_name(*way, name) if way else name

    for tensor in graph.initializer:
        yield named(tensor.name), tensor
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].type == onnx.AttributeProto.TENSOR:
            yield named(node.output[0]), node.attribute[0].t
        for attribute in node.attribute:
            if attribute.name in BRANCHES:
                yield from _places(attribute.g, (named(node.output[0]), attribute.name))


def _separated(graph: onnx.GraphProto, merged: str, reader: str, name: str) -> onnx.TensorProto:
    """Let the node that computes ``reader`` read an initializer of its own in place of ``merged``."""
    found = [node for node in graph.node if node.output and node.output[0] == reader]
    if not found:
        raise LocalMisuseError(f"the model has no node that computes '{reader}', which would read '{name}'")
    for slot, item in enumerate(found[0].input):
        found[0].input[slot] = name if item == merged else item
    copy = onnx.TensorProto()
    copy.CopyFrom(next(tensor for key, tensor in _places(graph, ()) if key == merged))
    copy.name = name
    graph.initializer.append(copy)
    place: onnx.TensorProto = graph.initializer[-1]
    return place
