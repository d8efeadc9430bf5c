"""ONNX files to typed graphs and back; on the cloud side; a device never needs ``onnx``.

Reading normalizes what exporters vary: the opset (18 or above), local functions, Constant nodes; `onnx_types` then
gives every value a type.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
from numpy.typing import NDArray

from federated_core.errors import UntrainableModelError
from federated_core.learning.graph import (
    OPERATORS,
    OPSET_MAX,
    OPSET_MIN,
    Attribute,
    Graph,
    Node,
    Tensor,
    TypedGraph,
    Value,
    needed_names,
    prune,
    topological_order,
)
from federated_core.learning.onnx_branches import inline_branches
from federated_core.learning.onnx_types import array_of, infer_types
from federated_core.learning.simplification import rejoin_softmax

MODEL_BYTES_MAX = 256 * 2**20
NODE_COUNT_MAX = 20_000
_IR_VERSION_MIN = 9
_CURES = {
    "If": "give sizes to the model's free dimensions, or a number to the input that decides its condition",
    "Loop": "export the model for one step, or with a native GRU, LSTM or RNN",
}


def import_onnx(data: bytes, fixed: Mapping[str, int] | None = None) -> TypedGraph:
    """Read an ONNX file into a graph in which every value has a type.

    Parameters
    ----------
    data : bytes
        An ONNX file of opset 8 or above, one graph in the standard domain, weights inside.
    fixed : mapping of str to int, optional
        Sizes for free dimensions, by name: convolutions train with fixed sizes only. Of an unnamed one the name is the
        input's and the axis: ``x.2``. An input of a single number (a sample rate) is given by its own name.

    Returns
    -------
    TypedGraph
        The graph, its initializers and Constant nodes as constants, of opset 18 or above; and the type of each value.
        Free dimensions have names: the file's own, ``batch`` for an unnamed first one.

    Raises
    ------
    UntrainableModelError
        If the bytes are no ONNX model, are too large, use a custom domain, external data or an operator that a device
        does not run, or if the opset cannot be converted.

    Examples
    --------
    >>> import_onnx(b"not a model")
    Traceback (most recent call last):
        ...
    federated_core.errors.UntrainableModelError: expected an ONNX model, got 11 bytes that are none
    """
    model = _parse(data)
    try:
        _hoist_constants(model.graph)
        _answer_inputs(model.graph, fixed or {})
        return _typed(_converted(inline_branches(model, fixed)), fixed)
    except UntrainableModelError:
        raise
    except Exception as error:  # A malformed model breaks onnx, protobuf or numpy in ways that nobody can list.
        raise UntrainableModelError(f"the model is malformed: {error}") from error


def _typed(model: onnx.ModelProto, fixed: Mapping[str, int] | None) -> TypedGraph:
    _hoist_constants(model.graph)
    names = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in names]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    types, folded = infer_types(model, fixed)
    graph = prune(rejoin_softmax(_graph(model, folded, types), types))
    typed = types | {name: Value(name, tensor.dtype, tensor.shape) for name, tensor in graph.constants.items()}
    return TypedGraph(graph, typed)


def emit_onnx(graph: Graph) -> bytes:
    """Write ``graph`` as an ONNX file with its opset stamped, deterministically.

    Parameters
    ----------
    graph : Graph
        A checked graph.

    Returns
    -------
    bytes
        A file that onnxruntime 1.19 and later opens while the opset is 21 or below.

    Examples
    --------
    >>> x = Value("x", "float32", ("batch", 2))
    >>> y = Value("y", "float32", ("batch", 2))
    >>> data = emit_onnx(Graph("twice", 18, (x,), (y,), {}, (Node("Add", ("x", "x"), ("y",)),)))
    >>> onnx.load_model_from_string(data).opset_import[0].version
    18
    """
    opset = onnx.helper.make_opsetid("", graph.opset)
    ir_version = max(_IR_VERSION_MIN, onnx.helper.find_min_ir_version_for([opset]))
    model = onnx.helper.make_model(
        _graph_proto(graph), opset_imports=[opset], ir_version=ir_version, producer_name="fallow"
    )
    return bytes(model.SerializeToString(deterministic=True))


def parse_onnx(data: bytes) -> onnx.ModelProto:
    """Read an ONNX file as it is.

    Parameters
    ----------
    data : bytes
        A file of at most ``MODEL_BYTES_MAX`` bytes.

    Returns
    -------
    onnx.ModelProto
        The model, nothing in it checked but that it has nodes.

    Raises
    ------
    UntrainableModelError
        If the bytes are no ONNX model, or too many.

    Examples
    --------
    >>> parse_onnx(bytes(2))
    Traceback (most recent call last):
        ...
    federated_core.errors.UntrainableModelError: expected an ONNX model, got 2 bytes that are none
    """
    if len(data) > MODEL_BYTES_MAX:
        raise UntrainableModelError(f"expected an ONNX model of at most {MODEL_BYTES_MAX} bytes, got {len(data)}")
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf, its C++ side and numpy each raise errors of their own.
        raise UntrainableModelError(f"expected an ONNX model, got {len(data)} bytes that are none") from error
    if not model.graph.node:
        raise UntrainableModelError(f"expected an ONNX model, got {len(data)} bytes that are none")
    return model


def _parse(data: bytes) -> onnx.ModelProto:
    model = parse_onnx(data)
    if len(model.functions):
        try:
            model = onnx.inliner.inline_local_functions(model)
        except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
            raise UntrainableModelError(f"the model's local functions cannot be inlined: {error}") from error
    if len(model.graph.node) > NODE_COUNT_MAX:
        raise UntrainableModelError(f"expected at most {NODE_COUNT_MAX} nodes, got {len(model.graph.node)}")
    if len(model.graph.sparse_initializer):
        raise UntrainableModelError("sparse initializers are not supported: store the weights as plain tensors")
    for node in _all_nodes(model.graph):
        if node.domain not in {"", "ai.onnx"}:
            raise UntrainableModelError(
                f"node '{node.name}' uses {node.op_type} of the custom domain '{node.domain}': export the model "
                "with standard operators only"
            )
        node.domain = ""
    for tensor in _all_tensors(model.graph):
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise UntrainableModelError(f"'{tensor.name}' is external data: save the model as one file")
    for entry in model.opset_import:
        if entry.domain == "ai.onnx":
            entry.domain = ""
    return model


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _all_nodes(body)


def _all_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in _all_nodes(graph):
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for body in (attribute.g, *attribute.graphs):
                yield from body.initializer


def _converted(model: onnx.ModelProto) -> onnx.ModelProto:
    version = next((entry.version for entry in model.opset_import if entry.domain == ""), 1)
    target = min(max(version, OPSET_MIN), OPSET_MAX)
    if version == target:
        return model
    try:
        return onnx.version_converter.convert_version(model, target)
    except Exception as error:  # The converter raises whatever its C++ side throws.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UntrainableModelError(
            f"the model has opset {version} and cannot be converted to {target}: {reason}; export it with opset "
            f"{OPSET_MIN} to {OPSET_MAX}"
        ) from error


def _answer_inputs(graph: onnx.GraphProto, fixed: Mapping[str, int]) -> None:
    """Turn inputs of one number that ``fixed`` gives into constants."""
    for value in list(graph.input):
        tensor_type = value.type.tensor_type
        dims = [dim.dim_value for dim in tensor_type.shape.dim]
        if value.name in fixed and all(dim == 1 for dim in dims):
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type)
            answer = np.full(dims, fixed[value.name], dtype)
            graph.initializer.append(onnx.numpy_helper.from_array(answer, value.name))


def _hoist_constants(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                _hoist_constants(body)
    kept = []
    for node in graph.node:
        if node.op_type == "Constant" and len(node.attribute) == 1:
            graph.initializer.append(_constant_tensor(node))
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def _constant_tensor(node: onnx.NodeProto) -> onnx.TensorProto:
    attribute = node.attribute[0]
    if attribute.type == onnx.AttributeProto.TENSOR:
        tensor = onnx.TensorProto()
        tensor.CopyFrom(attribute.t)
    else:
        value = onnx.helper.get_attribute_value(attribute)
        floats = {onnx.AttributeProto.FLOAT, onnx.AttributeProto.FLOATS}
        integers = {onnx.AttributeProto.INT, onnx.AttributeProto.INTS}
        if attribute.type not in floats | integers:
            raise UntrainableModelError(f"Constant '{node.output[0]}' holds {attribute.name}, expected numbers")
        dtype = np.float32 if attribute.type in floats else np.int64
        tensor = onnx.numpy_helper.from_array(np.asarray(value, dtype))
    tensor.name = node.output[0]
    return tensor


def _graph(model: onnx.ModelProto, folded: Mapping[str, NDArray[Any]], types: Mapping[str, Value]) -> Graph:
    constants = {tensor.name: _tensor(tensor) for tensor in model.graph.initializer}
    constants |= {name: Tensor.of(np.asarray(array)) for name, array in folded.items()}
    nodes = [_node(node) for node in model.graph.node if not all(name in folded for name in node.output if name)]
    inputs = tuple(types[value.name] for value in model.graph.input)
    known = {value.name for value in inputs} | set(constants)
    missing = [value.name for value in model.graph.output if value.name not in types]
    if missing:
        raise UntrainableModelError(
            f"the shape of output '{missing[0]}' cannot be inferred: give sizes to the model's free dimensions"
        )
    outputs = tuple(types[value.name] for value in model.graph.output)
    ordered = topological_order(tuple(nodes), known)
    read = {value.name for value in outputs}.union(*(needed_names(node) for node in ordered))
    constants = {name: tensor for name, tensor in constants.items() if name in read}
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    return Graph(model.graph.name or "model", opset, inputs, outputs, constants, ordered)


def _node(node: onnx.NodeProto) -> Node:
    if node.op_type not in OPERATORS:
        cure = _CURES.get(node.op_type, "export the model without it")
        raise UntrainableModelError(f"node '{node.name}' uses {node.op_type}, which a device does not run: {cure}")
    attributes = {attribute.name: _attribute(node, attribute) for attribute in node.attribute}
    return Node(node.op_type, tuple(node.input), tuple(node.output), dict(sorted(attributes.items())), node.name)


def _attribute(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> Attribute:
    kinds = onnx.AttributeProto
    match attribute.type:
        case kinds.INT:
            return int(attribute.i)
        case kinds.FLOAT:
            return float(attribute.f)
        case kinds.STRING:
            return attribute.s.decode("utf-8", "replace")
        case kinds.INTS:
            return tuple(int(item) for item in attribute.ints)
        case kinds.FLOATS:
            return tuple(float(item) for item in attribute.floats)
        case kinds.STRINGS:
            return tuple(item.decode("utf-8", "replace") for item in attribute.strings)
        case kinds.TENSOR:
            return _tensor(attribute.t)
        case _:
            raise UntrainableModelError(
                f"node '{node.name}' ({node.op_type}) has attribute '{attribute.name}' of a kind that is not supported"
            )


def _tensor(tensor: onnx.TensorProto) -> Tensor:
    return Tensor.of(array_of(tensor))


def _graph_proto(graph: Graph) -> onnx.GraphProto:
    return onnx.helper.make_graph(
        [_node_proto(node) for node in graph.nodes],
        graph.name,
        [_value_proto(value) for value in graph.inputs],
        [_value_proto(value) for value in graph.outputs],
        [onnx.numpy_helper.from_array(tensor.array(), name) for name, tensor in sorted(graph.constants.items())],
    )


def _value_proto(value: Value) -> onnx.ValueInfoProto:
    code = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
    return onnx.helper.make_tensor_value_info(value.name, code, list(value.shape))


def _node_proto(node: Node) -> onnx.NodeProto:
    proto = onnx.helper.make_node(node.op, list(node.inputs), list(node.outputs), name=node.name)
    for key, attribute in sorted(node.attributes.items()):
        value: Any = attribute
        if isinstance(attribute, Tensor):
            value = onnx.numpy_helper.from_array(attribute.array())
        elif isinstance(attribute, Graph):
            value = _graph_proto(attribute)
        elif attribute == ():
            proto.attribute.append(onnx.AttributeProto(name=key, type=onnx.AttributeProto.INTS))
            continue
        proto.attribute.append(onnx.helper.make_attribute(key, value))
    return proto
