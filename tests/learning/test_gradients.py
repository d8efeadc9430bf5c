"""Gradient rules against central differences; every ONNX node case runs in tests/conformance."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from federated_core.errors import UntrainableModelError
from federated_core.learning.gradients import GRADIENTS, NO_GRADIENT
from federated_core.learning.graph import OPERATORS
from federated_core.learning.onnx_graph import import_onnx
from tests.learning.central_differences import gradient_graph, worst_error
from tests.learning.small_models import onnx_model

TOLERANCE = 1e-5

CONVOLUTIONS: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "1-D": ((2, 3, 11), (4, 3, 3), {}),
    "2-D": ((2, 3, 7, 8), (4, 3, 3, 2), {}),
    "pads": ((2, 3, 7), (4, 3, 3), {"pads": [2, 1]}),
    "strides that leave a rest": ((2, 3, 12), (4, 3, 3), {"strides": [4], "pads": [1, 0]}),
    "dilations": ((2, 3, 7, 9), (4, 3, 3, 3), {"dilations": [2, 3]}),
    "strides and dilations": ((2, 3, 15), (4, 3, 3), {"strides": [2], "dilations": [3], "pads": [2, 3]}),
    "groups": ((2, 6, 9), (4, 3, 3), {"group": 2}),
    "depthwise with multiplier": ((2, 3, 6, 6), (6, 1, 3, 3), {"group": 3, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "pointwise": ((2, 3, 4, 5), (6, 3, 1, 1), {}),
    "pointwise with stride": ((2, 3, 5, 5), (6, 3, 1, 1), {"strides": [2, 2]}),
    "SAME_UPPER": ((2, 3, 8), (4, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2]}),
    "SAME_LOWER": ((2, 3, 8), (4, 3, 4), {"auto_pad": "SAME_LOWER"}),
    "VALID": ((2, 3, 8), (4, 3, 4), {"auto_pad": "VALID"}),
}

NODES: Mapping[str, tuple[str, list[tuple[int, ...]], dict[str, Any]]] = {
    "broadcast add": ("Add", [(2, 3, 4), (3, 1)], {}),
    "broadcast sub": ("Sub", [(3,), (2, 3)], {}),
    "broadcast mul": ("Mul", [(2, 3, 4), (1, 3, 1)], {}),
    "broadcast div": ("Div", [(2, 3), (1,)], {}),
    "gemm": ("Gemm", [(3, 4), (4, 5), (5,)], {}),
    "gemm transposed": ("Gemm", [(4, 3), (5, 4), (3, 1)], {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}),
    "matmul of vectors": ("MatMul", [(4,), (4,)], {}),
    "matmul of vector and matrix": ("MatMul", [(4,), (4, 3)], {}),
    "matmul of stack and vector": ("MatMul", [(2, 3, 4), (4,)], {}),
    "matmul of stack and matrix": ("MatMul", [(2, 3, 4), (4, 5)], {}),
    "matmul of stacks": ("MatMul", [(2, 1, 3, 4), (5, 4, 2)], {}),
    "overlapping max pool": ("MaxPool", [(2, 3, 9)], {"kernel_shape": [3], "strides": [1]}),
    "dilated max pool": ("MaxPool", [(2, 3, 9)], {"kernel_shape": [2], "strides": [2], "dilations": [2]}),
    "padded max pool": ("MaxPool", [(1, 2, 6, 6)], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "average pool": ("AveragePool", [(1, 2, 6, 6)], {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}),
    "layer normalization": ("LayerNormalization", [(2, 3, 4), (4,), (4,)], {}),
    "prelu": ("PRelu", [(2, 3, 4), (3, 1)], {}),
    "softmax": ("Softmax", [(2, 5)], {}),
}


RECURRENT: Mapping[str, tuple[str, dict[str, Any], bool]] = {
    "GRU": ("GRU", {}, False),
    "GRU as PyTorch writes it": ("GRU", {"linear_before_reset": 1}, True),
    "reverse GRU": ("GRU", {"direction": "reverse"}, True),
    "bidirectional GRU": ("GRU", {"direction": "bidirectional", "linear_before_reset": 1}, True),
    "LSTM": ("LSTM", {}, False),
    "LSTM with states": ("LSTM", {}, True),
    "bidirectional LSTM": ("LSTM", {"direction": "bidirectional"}, True),
    "RNN": ("RNN", {}, True),
    "bidirectional RNN": ("RNN", {"direction": "bidirectional"}, False),
}
EINSUMS: Mapping[str, tuple[str, list[tuple[int, ...]]]] = {
    "matrix product": ("ij,jk->ik", [(2, 3), (3, 4)]),
    "implicit result": ("ij,jk", [(2, 3), (3, 4)]),
    "sum over an axis of one operand": ("ij,k->k", [(2, 3), (4,)]),
    "batches as dots": ("...ij,...jk->...ik", [(2, 3, 4), (2, 4, 5)]),
    "three operands": ("bi,ij,bj->b", [(2, 3), (3, 4), (2, 4)]),
    "transpose": ("ijk->kji", [(2, 3, 4)]),
}


def values(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw values away from zero, so that no kink is near."""
    return (np.sign(rng.normal(size=shape)) * rng.uniform(0.3, 1.5, size=shape)).astype(np.float32)


def single(op: str, shapes: list[tuple[int, ...]], attributes: dict[str, Any], *, free_batch: bool) -> bytes:
    names = [f"x{slot}" for slot in range(len(shapes))]
    inputs: dict[str, list[int | str]] = {name: list(shape) for name, shape in zip(names, shapes, strict=True)}
    if free_batch:
        inputs["x0"][0] = "batch"
    model = onnx.load_model_from_string(
        onnx_model([helper.make_node(op, names, ["y"], name="the node", **attributes)], inputs, {"y": []}, {})
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return bytes(model.SerializeToString())


def check(op: str, shapes: list[tuple[int, ...]], attributes: dict[str, Any], *, free_batch: bool = False) -> None:
    rng = np.random.default_rng(5)
    feeds = {f"x{slot}": values(shape, rng) for slot, shape in enumerate(shapes)}
    model = import_onnx(single(op, shapes, attributes, free_batch=free_batch))
    assert worst_error(model, feeds, list(feeds), rng) < TOLERANCE


@pytest.mark.parametrize("free_batch", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_of_every_kind_have_the_gradient_of_central_differences(name: str, free_batch: bool) -> None:
    image, weight, attributes = CONVOLUTIONS[name]
    check("Conv", [image, weight, weight[:1]], attributes, free_batch=free_batch)


@pytest.mark.parametrize("name", NODES)
def test_nodes_have_the_gradient_of_central_differences(name: str) -> None:
    check(*NODES[name])


@pytest.mark.parametrize("name", EINSUMS)
def test_sums_of_products_have_the_gradient_of_central_differences(name: str) -> None:
    equation, shapes = EINSUMS[name]
    check("Einsum", shapes, {"equation": equation})


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_have_the_gradient_of_central_differences(name: str) -> None:
    op, attributes, with_states = RECURRENT[name]
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    rows = {"GRU": 3, "LSTM": 4, "RNN": 1}[op] * 5
    shapes: dict[str, list[int | str]] = {
        "x": ["time", "batch", 4], "w": [directions, rows, 4], "r": [directions, rows, 5], "b": [directions, 2 * rows]
    }  # fmt: skip
    outputs = ["y"]
    inputs = list(shapes)
    if with_states:
        states = ["h0", "c0"] if op == "LSTM" else ["h0"]
        shapes |= {state: [directions, "batch", 5] for state in states}
        inputs += ["", *states]
        outputs += ["last_h", "last_c"][: len(states)]
    node = helper.make_node(op, inputs, outputs, hidden_size=5, **attributes)
    model = onnx.load_model_from_string(onnx_model([node], shapes, {name: [] for name in outputs}, {}))
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    rng = np.random.default_rng(6)
    sizes = {"time": 6, "batch": 3}
    feeds = {
        name: (rng.normal(size=[sizes[dim] if isinstance(dim, str) else dim for dim in shape]) * 0.5).astype(np.float32)
        for name, shape in shapes.items()
    }
    assert worst_error(import_onnx(model.SerializeToString()), feeds, list(feeds), rng) < TOLERANCE


def test_a_scans_graph_does_not_grow_with_the_length_of_the_sequence() -> None:
    def node_count(length: int) -> int:
        shapes: dict[str, list[int | str]] = {"x": [length, 1, 4], "w": [1, 15, 4], "r": [1, 15, 5]}
        node = helper.make_node("GRU", list(shapes), ["y"], hidden_size=5)
        model = import_onnx(onnx_model([node], shapes, {"y": [length, 1, 1, 5]}, {}))
        return len(gradient_graph(model, ["w", "r"]).graph.nodes)

    assert node_count(4) == node_count(400)


def test_every_rule_is_of_an_operator_that_a_device_runs() -> None:
    assert set(GRADIENTS) <= OPERATORS
    assert NO_GRADIENT <= OPERATORS
    assert not NO_GRADIENT & set(GRADIENTS)


def test_an_operator_without_a_rule_is_refused_with_its_node_and_what_to_do() -> None:
    data = onnx_model(
        [
            onnx.helper.make_node("Mul", ["x", "before"], ["scaled"]),
            onnx.helper.make_node("Col2Im", ["scaled", "image", "block"], ["image of x"], name="the node"),
            onnx.helper.make_node("Mul", ["image of x", "after"], ["y"]),
        ],
        {"x": [1, 5, 5]},
        {"y": [1, 1, 5, 5]},
        {
            "image": np.array([5, 5]),
            "block": np.array([1, 5]),
            "before": np.ones((5, 1), np.float32),
            "after": np.ones((5, 5), np.float32),
        },
    )
    complaint = "'the node' uses Col2Im, which has no gradient rule: freeze up to here: --trainable 'after', or"
    with pytest.raises(UntrainableModelError, match=complaint):
        gradient_graph(import_onnx(data), ["before", "after"])


def test_what_no_wanted_value_depends_on_is_not_differentiated() -> None:
    node = helper.make_node
    data = onnx_model(
        [node("MatMul", ["x", "body"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "head"], ["y"])],
        {"x": ["n", 2], "body": [2, 2], "head": [2, 2]},
        {"y": ["n", 2]},
        {},
    )
    model = import_onnx(data)
    head, both = (gradient_graph(model, wanted).graph for wanted in (["head"], ["head", "body"]))
    assert "Sign" not in {item.op for item in head.nodes}
    assert "Sign" in {item.op for item in both.nodes}


def test_a_slice_of_all_of_a_free_axis_passes_its_gradient_on() -> None:
    bounds = {"starts": np.array([0, 1]), "ends": np.array([2**31 - 1, 3]), "axes": np.array([0, 1])}
    data = onnx_model(
        [helper.make_node("Slice", ["x", "starts", "ends", "axes"], ["y"])], {"x": ["n", 4]}, {"y": ["n", 2]}, bounds
    )
    rng = np.random.default_rng(1)
    assert worst_error(import_onnx(data), {"x": values((3, 4), rng)}, ["x"], rng) < TOLERANCE


def test_a_value_used_twice_gets_the_sum_of_both_gradients() -> None:
    node = helper.make_node
    data = onnx_model(
        [node("Mul", ["x", "x"], ["s"]), node("MatMul", ["s", "x"], ["y"])], {"x": [3, 3]}, {"y": [3, 3]}, {}
    )
    rng = np.random.default_rng(1)
    assert worst_error(import_onnx(data), {"x": values((3, 3), rng)}, ["x"], rng) < TOLERANCE


def test_a_shape_that_cannot_be_inferred_is_said_so() -> None:
    node = helper.make_node
    data = onnx_model(
        [
            node("NonZero", ["x"], ["where"]),
            node("Shape", ["where"], ["s"]),
            node("Expand", ["w", "s"], ["e"]),
            node("ReduceSum", ["e"], ["y"], keepdims=0),
        ],
        {"x": ["n"], "w": [1, 1]},
        {"y": []},
        {},
    )
    with pytest.raises(UntrainableModelError, match="cannot be inferred"):
        gradient_graph(import_onnx(data), ["w"])
