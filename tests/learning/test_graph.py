import contextlib

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federated_core.errors import LocalMisuseError, RemoteProtocolError
from federated_core.learning.graph import (
    Graph,
    GraphLimits,
    Node,
    Tensor,
    Value,
    check_graph,
    decode_graph,
    encode_graph,
    product,
    prune,
    topological_order,
)
from federated_core.learning.onnx_graph import import_onnx
from tests.learning.small_models import gesture_model

X = Value("x", "float32", ("batch", 2))
Y = Value("y", "float32", ("batch", 2))
TWO = Tensor.of(np.array([1, 2], np.float32))
ADD = Node("Add", ("x", "c"), ("y",))
GOOD = Graph("good", 18, (X,), (Y,), {"c": TWO}, (ADD,))


def replaced(**changes: object) -> Graph:
    return msgspec.structs.replace(GOOD, **changes)


def test_a_graph_survives_its_encoding() -> None:
    graph = import_onnx(gesture_model()).graph
    assert decode_graph(encode_graph(graph)) == graph


def test_a_body_survives_its_encoding() -> None:
    inner = Node("Add", ("inner/x", "inner/c"), ("inner/y",))
    row = (2,)
    body = Graph(
        "body", 18, (Value("inner/x", "float32", row),), (Value("inner/y", "float32", row),), {"inner/c": TWO}, (inner,)
    )
    scan = Node("Scan", ("x",), ("z",), {"body": body, "num_scan_inputs": 1, "words": ("a", "b"), "rates": (0.5, 1.0)})
    graph = Graph("outer", 18, (X,), (Value("z", "float32", ("batch", 2)),), {}, (scan,))
    assert decode_graph(encode_graph(graph)) == graph


def test_equal_graphs_have_equal_bytes_whatever_the_order_of_attributes() -> None:
    one = Node("Conv", ("x", "c"), ("y",), {"group": 1, "pads": (0, 0)})
    other = Node("Conv", ("x", "c"), ("y",), {"pads": (0, 0), "group": 1})
    assert encode_graph(replaced(nodes=(one,))) == encode_graph(replaced(nodes=(other,)))


def test_a_constant_keeps_its_values_bit_by_bit() -> None:
    values = np.array([[0.1, -0.0, np.inf]], np.float32)
    assert Tensor.of(values).array().tobytes() == values.tobytes()


@pytest.mark.parametrize(
    ("graph", "complaint"),
    [
        (replaced(nodes=(Node("Loop", ("x",), ("y",)),)), "operator 'Loop'"),
        (replaced(nodes=(Node("Add", ("x", "later"), ("y",)),)), "used before it is defined"),
        (replaced(nodes=(ADD, ADD)), "defined twice"),
        (replaced(nodes=()), "is not computed"),
        (replaced(opset=17), "opset"),
        (replaced(opset=99), "opset"),
        (replaced(constants={"c": Tensor("float32", (3,), b"1234")}), "expected 12 bytes"),
        (replaced(constants={"c": Tensor("float32", (2**39, 2**39), b"")}), "expected"),
        (replaced(nodes=(Node("Add", ("x", "c"), ("y",), {"body": GOOD}),)), "only a Scan"),
        (replaced(inputs=(X, X)), "defined twice"),
        (replaced(inputs=(Value("x", "float32", (1,) * 40),)), "axes"),
    ],
)
def test_a_graph_that_no_device_should_open_is_refused(graph: Graph, complaint: str) -> None:
    with pytest.raises(RemoteProtocolError, match=complaint):
        decode_graph(msgspec.msgpack.encode((1, graph)))


@pytest.mark.parametrize(
    "limits",
    [
        GraphLimits(encoded_bytes_max=10),
        GraphLimits(node_count_max=0),
        GraphLimits(constant_count_max=0),
        GraphLimits(constant_bytes_max=7),
        GraphLimits(rank_max=1),
        GraphLimits(argument_count_max=0),
        GraphLimits(depth_max=0),
    ],
)
def test_every_limit_is_enforced(limits: GraphLimits) -> None:
    check_graph(GOOD)
    with pytest.raises(RemoteProtocolError):
        decode_graph(encode_graph(GOOD), limits)


def test_bodies_too_deep_for_the_decoder_are_refused() -> None:
    data = b"\x92\x01" + b"\x86\xa4type\xa5Graph\xa5nodes\x91" * 5000
    with pytest.raises(RemoteProtocolError):
        decode_graph(data)


@given(st.binary(max_size=200))
def test_noise_is_refused_with_a_typed_error(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_graph(data)


@settings(max_examples=200)
@given(st.data())
def test_a_damaged_graph_is_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    encoded = bytearray(encode_graph(GOOD))
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(RemoteProtocolError):
        check_graph(decode_graph(bytes(encoded)))


def test_nodes_are_ordered_by_what_they_read() -> None:
    late = Node("Neg", ("y",), ("z",))
    assert topological_order((late, ADD), {"x", "c"}) == (ADD, late)


def test_a_ring_of_nodes_is_an_error() -> None:
    with pytest.raises(LocalMisuseError, match="ring"):
        topological_order((Node("Neg", ("a",), ("b",)), Node("Neg", ("b",), ("a",))), set())


def test_pruning_drops_what_no_output_needs() -> None:
    waste = Node("Neg", ("x",), ("unused",))
    assert prune(replaced(nodes=(waste, ADD), constants={"c": TWO, "d": TWO})) == GOOD


def test_products_of_free_dimensions_are_spelled_one_way() -> None:
    assert product([2, "n", 3]) == "6*n"
    assert product(["6*n", "m"]) == product(["m", "n", 6])
    assert product([2, 3]) == 6
    assert product([0, "n"]) == 0
