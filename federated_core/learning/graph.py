"""The master form of a model: an immutable graph of standard ONNX operators, its bytes and its limits.

A ``.graph`` file is the MessagePack of one `Graph`. It holds what an ONNX file holds and nothing else: no custom
domain (a node has no domain at all), no external data, no functions. So a device can read and judge a model without
``onnx`` or ``protobuf``, and the numpy engine can run it.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from federated_core.errors import LocalMisuseError, RemoteProtocolError

DType = Literal[
    "float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"
]
Name = Annotated[str, msgspec.Meta(max_length=1024)]
Size = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
Shape = tuple[Size | Name, ...]
Attribute = Union[int, float, str, tuple[int | float | str, ...], "Tensor", "Graph"]

OPSET_MIN = 18
OPSET_MAX = 26
FORMAT_VERSION = 1

_OPERATOR_NAMES = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast CastLike Ceil Celu
    Clip Col2Im Concat ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear
    Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements
    GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish
    Hardmax Identity InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log
    LogSoftmax LpNormalization MatMul MatMulInteger Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg
    NonZero Not OneHot Or PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear RMSNormalization RNN Range Reciprocal
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
    Relu Reshape Resize Round Scan ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax
    Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu
    Unsqueeze Where Xor
"""
OPERATORS = frozenset(_OPERATOR_NAMES.split())
"""Operators that a device agrees to run. No control flow but Scan, whose trip count is an input's length; no I/O, no
randomness but Dropout's, nothing that comes and goes between onnxruntime releases."""


class Tensor(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """A constant: its type, its shape and its values as raw little-endian bytes in C order."""

    dtype: DType
    shape: tuple[Size, ...]
    data: bytes

    @classmethod
    def of(cls, array: NDArray[Any]) -> "Tensor":
        """Copy ``array`` into a constant."""
        if array.dtype.name not in DTYPES:
            raise LocalMisuseError(f"a constant cannot be {array.dtype}; expected one of {', '.join(DTYPES)}")
        ordered = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        return cls(array.dtype.name, array.shape, ordered.tobytes())  # type: ignore[arg-type]

    def array(self) -> NDArray[Any]:
        """Return the values as a read-only array that shares this constant's bytes."""
        return np.frombuffer(self.data, dtype=np.dtype(self.dtype).newbyteorder("<")).reshape(self.shape)


class Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A name with a type: an input or output of a graph; a dimension that is a word is free (the batch)."""

    name: Name
    dtype: DType
    shape: Shape


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One application of an operator; an empty input or output name is an argument left out."""

    op: Annotated[str, msgspec.Meta(max_length=64)]
    inputs: tuple[Name, ...]
    outputs: tuple[Name, ...]
    attributes: Mapping[str, Attribute] = {}
    name: Name = ""


class Graph(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Nodes in topological order between typed inputs and outputs; in a Scan's body outer names are visible."""

    name: Name
    opset: int
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    constants: Mapping[Name, Tensor]
    nodes: tuple[Node, ...]


class TypedGraph(msgspec.Struct, frozen=True):
    """A graph and the type of every value in it that is known; what the compiler works on."""

    graph: Graph
    types: Mapping[str, Value]


class GraphLimits(msgspec.Struct, frozen=True):
    """What a device accepts of a graph; each figure is generous for a model of ten million parameters."""

    encoded_bytes_max: int = 192 * 2**20
    node_count_max: int = 50_000
    constant_count_max: int = 20_000
    constant_bytes_max: int = 128 * 2**20
    rank_max: int = 12
    argument_count_max: int = 4096
    depth_max: int = 3


DTYPES: tuple[str, ...] = get_args(DType)
ONNX_TYPE_CODES: Mapping[str, int] = {
    "float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "bool": 9, "float16": 10,
    "float64": 11, "uint32": 12, "uint64": 13,
}  # fmt: skip
"""The numbers that a Cast names types by (onnx.TensorProto.DataType)."""
_DECODER = msgspec.msgpack.Decoder(tuple[int, Graph])
_ENCODER = msgspec.msgpack.Encoder(order="deterministic")


def encode_graph(graph: Graph) -> bytes:
    """Return the ``.graph`` form of ``graph``: the same graph, the same bytes."""
    return _ENCODER.encode((FORMAT_VERSION, graph))


def decode_graph(data: bytes, limits: GraphLimits | None = None) -> Graph:
    """Read a ``.graph`` file and check it.

    Parameters
    ----------
    data : bytes
        What `encode_graph` wrote, or anything at all.
    limits : GraphLimits, optional
        What to accept.

    Returns
    -------
    Graph
        A graph that `check_graph` has passed.

    Raises
    ------
    RemoteProtocolError
        If the bytes are no graph, or one beyond the limits; nothing is computed from them before that.

    Examples
    --------
    >>> empty = Graph("empty", 18, (), (), {}, ())
    >>> decode_graph(encode_graph(empty)) == empty
    True
    """
    limits = limits or GraphLimits()
    if len(data) > limits.encoded_bytes_max:
        raise RemoteProtocolError(f"$: expected a graph of at most {limits.encoded_bytes_max} bytes, got {len(data)}")
    try:
        version, graph = _DECODER.decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise RemoteProtocolError(f"$: expected a .graph file, got {error}") from error
    if version != FORMAT_VERSION:
        raise RemoteProtocolError(f"$[0]: expected .graph version {FORMAT_VERSION}, got {version}")
    check_graph(graph, limits)
    return graph


def check_graph(graph: Graph, limits: GraphLimits | None = None) -> None:
    """Refuse a graph that a device should not open.

    Parameters
    ----------
    graph : Graph
        From `decode_graph`, or about to be encoded.
    limits : GraphLimits, optional
        What to accept.

    Raises
    ------
    RemoteProtocolError
        For an operator outside `OPERATORS`, a size beyond the limits, a constant whose bytes do not fill its shape, a
        name used before it is defined or defined twice, or an opset outside ``OPSET_MIN..OPSET_MAX``.

    Examples
    --------
    >>> check_graph(Graph("old", 17, (), (), {}, ()))
    Traceback (most recent call last):
        ...
    federated_core.errors.RemoteProtocolError: $.opset: expected 18 to 26, got 17
    """
    _Check(limits or GraphLimits()).graph(graph, "$", frozenset(), 1)


class _Check:
    """One walk over a graph and its bodies; the budgets are shared by all of them."""

    def __init__(self, limits: GraphLimits) -> None:
        self._limits = limits
        self._nodes_left = limits.node_count_max
        self._constants_left = limits.constant_count_max
        self._bytes_left = limits.constant_bytes_max

    def graph(self, graph: Graph, path: str, outer: frozenset[str], depth: int) -> None:
        limits = self._limits
        self._nodes_left -= len(graph.nodes)
        self._constants_left -= len(graph.constants)
        if not OPSET_MIN <= graph.opset <= OPSET_MAX:
            raise RemoteProtocolError(f"{path}.opset: expected {OPSET_MIN} to {OPSET_MAX}, got {graph.opset}")
        if depth > limits.depth_max or self._nodes_left < 0 or self._constants_left < 0:
            raise RemoteProtocolError(f"{path}: expected a graph within {limits}")
        defined = set(outer)
        self._values(graph.inputs, f"{path}.inputs")
        self._define(defined, [value.name for value in graph.inputs], f"{path}.inputs")
        self._define(defined, list(graph.constants), f"{path}.constants")
        for name, constant in graph.constants.items():
            self._constant(constant, f"{path}.constants['{name}']")
        for index, node in enumerate(graph.nodes):
            where = f"{path}.nodes[{index}]"
            self._node(node, where, defined, depth)
            self._define(defined, [name for name in node.outputs if name], where)
        self._values(graph.outputs, f"{path}.outputs")
        for value in graph.outputs:
            if value.name not in defined:
                raise RemoteProtocolError(f"{path}.outputs: '{value.name}' is not computed")

    def _values(self, values: tuple[Value, ...], path: str) -> None:
        if len(values) > self._limits.argument_count_max:
            raise RemoteProtocolError(f"{path}: expected at most {self._limits.argument_count_max}, got {len(values)}")
        for value in values:
            if value.name == "" or len(value.shape) > self._limits.rank_max:
                raise RemoteProtocolError(f"{path}['{value.name}']: expected a name and {self._limits.rank_max} axes")

    def _define(self, defined: set[str], names: list[str], path: str) -> None:
        for name in names:
            if name in defined:
                raise RemoteProtocolError(f"{path}: '{name}' is defined twice")
            defined.add(name)

    def _node(self, node: Node, path: str, defined: set[str], depth: int) -> None:
        if node.op not in OPERATORS:
            raise RemoteProtocolError(f"{path}: operator '{node.op}' is not one that a device runs")
        if len(node.inputs) + len(node.outputs) > self._limits.argument_count_max:
            raise RemoteProtocolError(f"{path}: expected at most {self._limits.argument_count_max} arguments")
        for name in node.inputs:
            if name and name not in defined:
                raise RemoteProtocolError(f"{path}: '{name}' is used before it is defined")
        for key, attribute in node.attributes.items():
            inside = f"{path}.attributes['{key}']"
            if isinstance(attribute, Tensor):
                self._constant(attribute, inside)
            elif isinstance(attribute, Graph):
                if node.op != "Scan":
                    raise RemoteProtocolError(f"{inside}: only a Scan has a body")
                self.graph(attribute, inside, frozenset(defined), depth + 1)

    def _constant(self, constant: Tensor, path: str) -> None:
        expected = math.prod(constant.shape) * np.dtype(constant.dtype).itemsize
        if len(constant.shape) > self._limits.rank_max or expected != len(constant.data):
            complaint = f"expected {expected} bytes for {constant.dtype} {list(constant.shape)}"
            raise RemoteProtocolError(f"{path}: {complaint}, got {len(constant.data)}")
        self._bytes_left -= expected
        if self._bytes_left < 0:
            raise RemoteProtocolError(f"{path}: expected at most {self._limits.constant_bytes_max} bytes of constants")


def product(dims: Iterable[int | str]) -> int | str:
    """Multiply dimensions; free ones are words, and a product of words is spelled one way only: ``2*batch``."""
    factor = 1
    words: list[str] = []
    for dim in dims:
        for part in str(dim).split("*"):
            if part.isdecimal():
                factor *= int(part)
            else:
                words.append(part)
    if not words or factor == 0:
        return factor
    return "*".join(([str(factor)] if factor != 1 else []) + sorted(words))


def bodies(node: Node) -> Iterator[Graph]:
    """Yield the graphs that ``node`` holds as attributes."""
    return (attribute for attribute in node.attributes.values() if isinstance(attribute, Graph))


def needed_names(node: Node) -> set[str]:
    """Return every name that ``node`` reads, what its bodies read from outside included."""
    names = {name for name in node.inputs if name}
    for body in bodies(node):
        inner = {value.name for value in body.inputs} | set(body.constants)
        inner |= {name for child in body.nodes for name in child.outputs}
        read = {value.name for value in body.outputs}.union(*(needed_names(child) for child in body.nodes))
        names |= read - inner
    return names


def topological_order(nodes: tuple[Node, ...], known: set[str]) -> tuple[Node, ...]:
    """Order ``nodes`` so that each follows what it reads, otherwise as given.

    Parameters
    ----------
    nodes : tuple of Node
        In any order.
    known : set of str
        Names of inputs and constants.

    Returns
    -------
    tuple of Node
        The same nodes.

    Raises
    ------
    LocalMisuseError
        If a name is never defined, or nodes wait for each other in a ring.

    Examples
    --------
    >>> late, early = Node("Neg", ("y",), ("z",)), Node("Neg", ("x",), ("y",))
    >>> [node.outputs for node in topological_order((late, early), {"x"})]
    [('y',), ('z',)]
    """
    producer = {name: index for index, node in enumerate(nodes) for name in node.outputs if name}
    wanted: list[set[int]] = []
    readers: list[list[int]] = [[] for _ in nodes]
    for index, node in enumerate(nodes):
        missing = sorted(name for name in needed_names(node) if name not in known and name not in producer)
        if missing:
            raise LocalMisuseError(f"node {index} ({node.op}) reads '{missing[0]}', which nothing defines")
        wanted.append({producer[name] for name in needed_names(node) if name in producer})
        for source in wanted[index]:
            readers[source].append(index)
    ready = [index for index, sources in enumerate(wanted) if not sources]
    waiting = [len(sources) for sources in wanted]
    done: list[int] = []
    for index in ready:  # Grows while we walk it.
        done.append(index)
        for reader in readers[index]:
            waiting[reader] -= 1
            if waiting[reader] == 0:
                ready.append(reader)
    if len(done) != len(nodes):
        raise LocalMisuseError("the graph has a ring of nodes that wait for each other")
    if all(max(sources, default=-1) < index for index, sources in enumerate(wanted)):
        return nodes
    return tuple(nodes[index] for index in done)


def prune(graph: Graph) -> Graph:
    """Drop nodes, outputs' excess and constants that no output of ``graph`` needs."""
    wanted = {value.name for value in graph.outputs}
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if any(name in wanted for name in node.outputs if name):
            kept.append(node)
            wanted |= needed_names(node)
    constants = {name: constant for name, constant in graph.constants.items() if name in wanted}
    return msgspec.structs.replace(graph, nodes=tuple(reversed(kept)), constants=constants)
