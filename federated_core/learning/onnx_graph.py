"""ONNX files to typed graphs and back; the only module of the learning core that needs ``onnx``.

Reading normalizes what exporters vary: the opset (18 or above), local functions, Constant nodes. Every value then gets
a type. Dimensions that the file leaves free are found by inferring the whole graph twice, each time with other numbers
in their place, alternating ``onnx.shape_inference`` with the folding of small constants until nothing changes: what
differs between the two runs depends on a free dimension, and equal pairs of numbers are the same dimension. Chains of
Shape, Gather and Concat therefore cost nothing, and no symbolic arithmetic is needed.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx.inliner
import onnx.reference
import onnx.shape_inference
import onnx.version_converter
from numpy.typing import NDArray

from federated_core.errors import UntrainableModelError
from federated_core.learning.graph import (
    DTYPES,
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
    product,
    topological_order,
)

MODEL_BYTES_MAX = 256 * 2**20
NODE_COUNT_MAX = 20_000
FOLDED_SIZE_MAX = 4096
_IR_VERSION_MIN = 9
_PASS_COUNT_MAX = 64
_BATCH_PROBES = (3, 5)
_PRIMES = ((7, 11), (13, 17), (19, 23), (29, 31), (37, 41), (43, 47), (53, 59), (61, 67), (71, 73), (79, 83))
_KEEP_SHAPE = frozenset({"GroupNormalization", "MeanVarianceNormalization", "RMSNormalization", "LayerNormalization"})
_PROBE_MULTIPLE = 32  # Nets that halve and double an image want sides that divide by 32.


class _Inferred(NamedTuple):
    types: dict[str, tuple[str, tuple[int, ...]]]
    known: dict[str, NDArray[Any]]


def import_onnx(data: bytes) -> TypedGraph:
    """Read an ONNX file into a graph in which every value has a type.

    Parameters
    ----------
    data : bytes
        An ONNX file of opset 8 or above, one graph in the standard domain, weights inside.

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
    model = _converted(_parse(data))
    _hoist_constants(model.graph)
    names = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in names]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    types, folded = _infer(model)
    graph = _graph(model, folded, types)
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
    """Read an ONNX file as it is, or raise `UntrainableModelError`."""
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


def _hoist_constants(graph: onnx.GraphProto) -> None:
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


def _infer(model: onnx.ModelProto) -> tuple[dict[str, Value], dict[str, NDArray[Any]]]:
    probes: dict[str, tuple[int, int]] = {}
    for value in model.graph.input:
        if value.type.WhichOneof("value") != "tensor_type":
            raise UntrainableModelError(f"input '{value.name}' is not a tensor")
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.WhichOneof("value") != "dim_value" or dim.dim_value < 0:
                name = dim.dim_param or ("batch" if axis == 0 else f"{value.name}.{axis}")
                dim.dim_param = name
                if name not in probes:
                    probes[name] = _probe(axis, sum(1 for taken in probes.values() if taken != _BATCH_PROBES))
    names = {pair: name for name, pair in probes.items()}
    first = _probed(model, {name: pair[0] for name, pair in probes.items()})
    second = _probed(model, {name: pair[1] for name, pair in probes.items()})
    types = {}
    for name, (dtype, shape) in first.types.items():
        other = second.types.get(name)
        if other is not None and len(other[1]) == len(shape):
            dims = tuple(_dim(pair, names) for pair in zip(shape, other[1], strict=True))
            types[name] = Value(name, dtype, dims)  # type: ignore[arg-type]
    folded = {
        name: array
        for name, array in first.known.items()
        if name in second.known and np.array_equal(array, second.known[name])
    }
    return types, folded


def _probe(axis: int, count: int) -> tuple[int, int]:
    if axis == 0 and count == 0:
        return _BATCH_PROBES
    if count >= len(_PRIMES):
        raise UntrainableModelError(f"expected at most {len(_PRIMES)} free dimensions: fix some of them")
    low, high = _PRIMES[count]
    return _PROBE_MULTIPLE * low, _PROBE_MULTIPLE * high


def _dim(pair: tuple[int, int], names: Mapping[tuple[int, int], str]) -> int | str:
    low, high = pair
    if low == high:
        return low
    if pair in names:
        return names[pair]
    for (a, b), name in names.items():
        if low % a == 0 and high % b == 0 and low // a == high // b:
            return product((low // a, name))
    return f"dim_{low}_{high}"


def _probed(model: onnx.ModelProto, sizes: Mapping[str, int]) -> _Inferred:
    """Infer every type with numbers in place of the free dimensions."""
    concrete = onnx.ModelProto()
    concrete.CopyFrom(model)
    del concrete.graph.value_info[:]
    known: dict[str, NDArray[Any]] = {}
    floats: set[str] = set()
    for value in concrete.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = sizes[dim.dim_param]
    for value in concrete.graph.output:
        value.type.tensor_type.ClearField("shape")
    for tensor in list(concrete.graph.initializer):
        if np.prod(tensor.dims, dtype=np.float64) <= FOLDED_SIZE_MAX:
            known[tensor.name] = onnx.numpy_helper.to_array(tensor)
        else:  # Its values cannot matter to a shape; leaving them out keeps every pass cheap.
            concrete.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
            concrete.graph.initializer.remove(tensor)
        if tensor.data_type in {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16}:
            floats.add(tensor.name)
    initializers = set(known)
    types: dict[str, tuple[str, tuple[int, ...]]] = {}
    for _ in range(_PASS_COUNT_MAX):
        types = _inferred_types(concrete)
        helped = _shapes_kept(concrete, types)
        folded = _fold(concrete, known, types, floats)
        if not folded and not helped:
            break
        known |= folded
        concrete.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in folded.items())
        waiting = [node for node in concrete.graph.node if not all(name in known for name in node.output if name)]
        for name, array in folded.items():
            types[name] = (array.dtype.name, array.shape)
        del concrete.graph.node[:]
        concrete.graph.node.extend(waiting)
    for name, array in known.items():
        types[name] = (array.dtype.name, array.shape)
    foldable = {name: array for name, array in known.items() if name not in initializers and name not in floats}
    return _Inferred(types, foldable)


def _shapes_kept(model: onnx.ModelProto, types: Mapping[str, tuple[str, tuple[int, ...]]]) -> bool:
    """Declare outputs that onnx's inference leaves open although the operator keeps its input's shape."""
    helped = False
    for node in model.graph.node:
        if node.op_type in _KEEP_SHAPE and node.input[0] in types and node.output[0] not in types:
            dtype, shape = types[node.input[0]]
            code = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
            model.graph.value_info.append(onnx.helper.make_tensor_value_info(node.output[0], code, shape))
            for value in model.graph.output:
                if value.name == node.output[0]:
                    value.CopyFrom(model.graph.value_info[-1])
            helped = True
    return helped


def _inferred_types(model: onnx.ModelProto) -> dict[str, tuple[str, tuple[int, ...]]]:
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        raise UntrainableModelError(f"the model's types contradict each other: {error}") from error
    types: dict[str, tuple[str, tuple[int, ...]]] = {}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        tensor_type = value.type.tensor_type
        dims = tensor_type.shape.dim
        if tensor_type.HasField("shape") and all(dim.WhichOneof("value") == "dim_value" for dim in dims):
            types[value.name] = (_dtype(tensor_type.elem_type, value.name), tuple(dim.dim_value for dim in dims))
    for tensor in inferred.graph.initializer:
        types[tensor.name] = (_dtype(tensor.data_type, tensor.name), tuple(tensor.dims))
    return types


def _fold(
    model: onnx.ModelProto,
    known: Mapping[str, NDArray[Any]],
    types: Mapping[str, tuple[str, tuple[int, ...]]],
    floats: set[str],
) -> dict[str, NDArray[Any]]:
    """Compute small nodes whose inputs are known; remember in ``floats`` what comes from a float initializer."""
    folded: dict[str, NDArray[Any]] = {}
    for node in model.graph.node:
        outputs = [name for name in node.output if name]
        if any(name not in types or np.prod(types[name][1], dtype=np.float64) > FOLDED_SIZE_MAX for name in outputs):
            continue
        inputs = [name for name in node.input if name]
        if node.op_type in {"Shape", "Size"} and node.input[0] in types:
            values: Sequence[Any] = [_shape_value(node, types[node.input[0]][1])]
        elif node.op_type != "Dropout" and all(name in known or name in folded for name in inputs):
            values = _evaluated(model, node, {name: folded.get(name, known.get(name)) for name in inputs})
            if floats.intersection(inputs):
                floats.update(outputs)
        else:
            continue
        folded |= {name: np.asarray(value) for name, value in zip(node.output, values, strict=False) if name}
    return folded


def _shape_value(node: onnx.NodeProto, shape: tuple[int, ...]) -> NDArray[np.int64]:
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "Size":
        return np.asarray(np.prod(shape, dtype=np.int64))
    return np.asarray(shape, np.int64)[attributes.get("start", 0) : attributes.get("end", len(shape))]


def _evaluated(model: onnx.ModelProto, node: onnx.NodeProto, feeds: Mapping[str, Any]) -> Sequence[Any]:
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    single = onnx.helper.make_model(
        onnx.helper.make_graph([node], "one", inputs, outputs), opset_imports=model.opset_import
    )
    try:
        return list(onnx.reference.ReferenceEvaluator(single).run(None, dict(feeds)))
    except Exception as error:  # Whatever numpy raises on a model's nonsense.
        raise UntrainableModelError(f"node '{node.name}' ({node.op_type}) cannot be computed: {error}") from error


def _graph(model: onnx.ModelProto, folded: Mapping[str, NDArray[Any]], types: Mapping[str, Value]) -> Graph:
    constants = {tensor.name: _tensor(tensor) for tensor in model.graph.initializer}
    constants |= {name: Tensor.of(np.asarray(array)) for name, array in folded.items()}
    nodes = [_node(node) for node in model.graph.node if not all(name in folded for name in node.output if name)]
    inputs = tuple(types[value.name] for value in model.graph.input)
    known = {value.name for value in inputs} | set(constants)
    missing = [value.name for value in model.graph.output if value.name not in types]
    if missing:
        raise UntrainableModelError(f"the shape of output '{missing[0]}' cannot be inferred")
    outputs = tuple(types[value.name] for value in model.graph.output)
    ordered = topological_order(tuple(nodes), known)
    read = {value.name for value in outputs}.union(*(needed_names(node) for node in ordered))
    constants = {name: tensor for name, tensor in constants.items() if name in read}
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    return Graph(model.graph.name or "model", opset, inputs, outputs, constants, ordered)


def _node(node: onnx.NodeProto) -> Node:
    if node.op_type not in OPERATORS:
        raise UntrainableModelError(
            f"node '{node.name}' uses {node.op_type}, which a device does not run: export the model without it"
        )
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
    _dtype(tensor.data_type, tensor.name)
    try:
        return Tensor.of(onnx.numpy_helper.to_array(tensor))
    except (ValueError, TypeError) as error:
        raise UntrainableModelError(f"tensor '{tensor.name}' is malformed: {error}") from error


def _dtype(code: int, name: str) -> str:
    try:
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(code).name)
    except KeyError:
        dtype = f"type {code}"
    if dtype not in DTYPES:
        raise UntrainableModelError(f"'{name}' is of {dtype}, expected one of {', '.join(DTYPES)}")
    return dtype


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
