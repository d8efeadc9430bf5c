"""Types of the values of an ONNX model, free dimensions included.

Dimensions that the file leaves free are found by inferring the whole graph twice, each time with other numbers in their
place, alternating ``onnx.shape_inference`` with the folding of small constants until nothing changes: what differs
between the two runs depends on a free dimension, and equal pairs of numbers are the same dimension. Chains of Shape,
Gather and Concat therefore cost nothing, and no symbolic arithmetic is needed.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx.reference
import onnx.shape_inference
from numpy.typing import NDArray

from federated_core.errors import UntrainableModelError
from federated_core.learning.graph import DTYPES, Value, product

FOLDED_SIZE_MAX = 4096
_PASS_COUNT_MAX = 64
_BATCH_PROBES = (5, 3)  # The larger first: no size that grows with another one's makes the same pair.
_PRIMES = ((7, 11), (13, 17), (19, 23), (29, 31), (37, 41), (43, 47), (53, 59), (61, 67), (71, 73), (79, 83))
_NOT_FOLDED = frozenset({"Dropout", "If", "Loop", "Scan"})  # Random, or reads names that its inputs do not tell.
_KEEP_SHAPE = frozenset({"GroupNormalization", "MeanVarianceNormalization", "RMSNormalization", "LayerNormalization"})
_PROBE_MULTIPLE = 32  # Nets that halve and double an image want sides that divide by 32.


class _Inferred(NamedTuple):
    types: dict[str, tuple[str, tuple[int, ...]]]
    known: dict[str, NDArray[Any]]


def infer_types(
    model: onnx.ModelProto, fixed: Mapping[str, int] | None = None
) -> tuple[dict[str, Value], dict[str, NDArray[Any]]]:
    """Give every value a type, and compute what is fixed although the file computes it.

    Parameters
    ----------
    model : onnx.ModelProto
        Of opset 18 or above, constants as initializers. Unnamed free dimensions get their names here.
    fixed : mapping of str to int, optional
        Sizes for free dimensions that shall not be free.

    Returns
    -------
    tuple of dict and dict
        The type of each value whose shape is known, and the values that neither inputs nor weights change.

    Raises
    ------
    UntrainableModelError
        If types contradict each other or a constant is malformed.

    Examples
    --------
    >>> node = onnx.helper.make_node("Flatten", ["x"], ["y"])
    >>> x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 2, 3])
    >>> y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    >>> types, _ = infer_types(onnx.helper.make_model(onnx.helper.make_graph([node], "flat", [x], [y])))
    >>> types["y"].shape
    ('n', 6)
    """
    probes: dict[str, tuple[int, int]] = {}
    for value in model.graph.input:
        if value.type.WhichOneof("value") != "tensor_type":
            raise UntrainableModelError(f"input '{value.name}' is not a tensor")
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.WhichOneof("value") != "dim_value" or dim.dim_value < 0:
                unnamed = "batch" if axis == 0 else f"{value.name}.{axis}"
                name = dim.dim_param if any(letter.isalnum() for letter in dim.dim_param) else unnamed
                if fixed and name in fixed:
                    dim.dim_value = fixed[name]
                    continue
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
            known[tensor.name] = array_of(tensor)
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
        elif node.op_type not in _NOT_FOLDED and all(name in known or name in folded for name in inputs):
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


def array_of(tensor: onnx.TensorProto) -> NDArray[Any]:
    """Return the values of a constant of the file.

    Parameters
    ----------
    tensor : onnx.TensorProto
        An initializer or attribute.

    Returns
    -------
    array
        Its values.

    Raises
    ------
    UntrainableModelError
        If its type is none of `DTYPES`, or its bytes do not fill its shape.

    Examples
    --------
    >>> array_of(onnx.numpy_helper.from_array(np.array([1, 2]), "n")).tolist()
    [1, 2]
    """
    _dtype(tensor.data_type, tensor.name)
    try:
        return np.asarray(onnx.numpy_helper.to_array(tensor))
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
