"""Weights are found wherever an exporter put them, and go back to that place."""

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from cloud_aggregator.model_building import build_bundle, write_parameters
from cloud_aggregator.model_weights import matching, tied, untie, weights
from federated_core.engines.onnxruntime_engine import OnnxruntimeEngine
from federated_core.errors import LocalMisuseError, UntrainableModelError
from federated_core.learning.bundle import decode_bundle
from federated_core.learning.onnx_graph import import_onnx
from tests.learning.small_models import onnx_model, perceptron
from tests.learning.small_models import weights as drawn

node = helper.make_node
ONES, ZEROS = np.ones(4, np.float32), np.zeros(4, np.float32)


def run(model: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run a file in plain onnxruntime."""
    session = onnxruntime.InferenceSession(model)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def trained(model: bytes, x: NDArray[np.float32], **choices: int) -> tuple[bytes, NDArray[np.float32]]:
    """Train three steps; return the file with new weights, and what the trained bundle computes."""
    built = build_bundle(model, name="m", loss="mean-squared-error", fixed=choices)
    bundle = decode_bundle(built.data)
    session = OnnxruntimeEngine().open_training(bundle)
    session.load(built.tensors)
    label = np.zeros([len(x), *(int(dim) for dim in bundle.description.label.shape[1:])], np.float32)
    first = session.step({"x": x}, label, 0.1)
    assert session.step({"x": x}, label, 0.1) < first
    parameters = session.parameters()
    return write_parameters(model, parameters), OnnxruntimeEngine().infer(bundle, parameters, {"x": x})["y"]


def test_weights_are_found_in_constant_nodes_and_behind_identity_and_transpose() -> None:
    rng = np.random.default_rng(0)
    value = numpy_helper.from_array(drawn(rng, 4, 4), "inner")
    model = onnx_model(
        [
            node("Constant", [], ["hidden"], value=value),
            node("Identity", ["hidden"], ["alias"]),
            node("MatMul", ["x", "alias"], ["a"]),
            node("Transpose", ["turned"], ["straight"], perm=[1, 0]),
            node("MatMul", ["a", "straight"], ["y"]),
        ],
        {"x": ["batch", 4]},
        {"y": ["batch", 3]},
        {"turned": drawn(rng, 3, 4)},
    )
    assert sorted(weights(import_onnx(model))) == ["hidden", "turned"]
    x = drawn(rng, 6, 4)
    written, expected = trained(model, x)
    assert np.allclose(run(written, x), expected, atol=1e-6)
    assert [item.op_type for item in onnx.load_from_string(written).graph.node] == [
        item.op_type for item in onnx.load_from_string(model).graph.node
    ]


def merged_normalizations() -> bytes:
    """Two normalizations whose scale and bias an exporter wrote once, since they are all ones and all zeros."""
    return onnx_model(
        [
            node("LayerNormalization", ["x", "norm1.scale", "norm1.bias"], ["n1"]),
            node("MatMul", ["n1", "w"], ["m"]),
            node("Identity", ["norm1.scale"], ["norm2.scale"]),
            node("LayerNormalization", ["m", "norm2.scale", "norm1.bias"], ["y"]),
        ],
        {"x": ["batch", 4]},
        {"y": ["batch", 4]},
        {"norm1.scale": ONES, "norm1.bias": ZEROS, "w": drawn(np.random.default_rng(0), 4, 4)},
    )


def test_weights_of_one_value_that_an_exporter_merged_are_trained_apart() -> None:
    model = merged_normalizations()
    expected_names = ["norm1.scale", "norm1.bias", "w", "norm1.scale@norm2.scale", "norm1.bias@y"]
    assert weights(untie(import_onnx(model))) == expected_names
    x = drawn(np.random.default_rng(1), 6, 4)
    written, expected = trained(model, x)
    assert np.allclose(run(written, x), expected, atol=1e-6)
    arrays = {item.name: numpy_helper.to_array(item) for item in onnx.load_from_string(written).graph.initializer}
    assert not np.allclose(arrays["norm1.bias"], arrays["norm1.bias@y"])


def test_a_weight_of_different_numbers_that_two_nodes_read_stays_tied() -> None:
    model = onnx_model(
        [node("MatMul", ["x", "w"], ["a"]), node("MatMul", ["a", "w"], ["y"])],
        {"x": ["batch", 4]},
        {"y": ["batch", 4]},
        {"w": drawn(np.random.default_rng(0), 4, 4)},
    )
    graph = untie(import_onnx(model))
    assert weights(graph) == ["w"]
    assert list(tied(graph)) == ["w"]


def test_only_weights_that_lead_to_the_chosen_output_are_trained() -> None:
    model = import_onnx(perceptron())
    assert weights(model) == ["w1", "b1", "w2", "b2"]
    assert weights(model, ["h1"]) == ["w1", "b1"]


def test_a_pattern_chooses_among_the_weights_and_may_name_any_float_constant() -> None:
    model = import_onnx(perceptron())
    assert matching(model, ["w*", "b2"], "trainable") == ["w1", "w2", "b2"]
    with pytest.raises(LocalMisuseError, match=r"trainable pattern 'fc\.\*': expected w1, b1, w2, b2"):
        matching(model, ["fc.*"], "trainable")


def two_rates(condition: str) -> bytes:
    """A net that asks an input, or the shape of one, which of its halves to run."""
    halves = {}
    for name, width in (("then", 1.0), ("else", 2.0)):
        weight = numpy_helper.from_array(np.full((4, 3), width, np.float32), "w")
        halves[f"{name}_branch"] = helper.make_graph(
            [node("MatMul", ["x", "w"], ["out"])],
            name,
            [],
            [helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)],
            [weight],
        )
    before = {
        "rate": [node("Equal", ["rate", "16000"], ["is16"])],
        "shape": [node("Shape", ["x"], ["s"], start=1), node("Equal", ["s", "four"], ["is16"])],
    }[condition]
    model = onnx.load_from_string(
        onnx_model(
            [*before, node("If", ["is16"], ["y"], name="choice", **halves)],
            {"x": ["batch", 4]},
            {"y": ["batch", 3]},
            {"16000": np.array(16000), "four": np.array([4])},
        )
    )
    model.graph.input.append(helper.make_tensor_value_info("rate", onnx.TensorProto.INT64, []))
    return bytes(model.SerializeToString())


def test_a_branch_that_shapes_decide_is_taken_and_its_weights_are_trained() -> None:
    model = two_rates("shape")
    assert weights(import_onnx(model, {"rate": 1})) == ["y.then/w"]
    x = drawn(np.random.default_rng(0), 5, 4)
    written, expected = trained(model, x, rate=1)
    session = onnxruntime.InferenceSession(written)
    found = session.run(
        None, {"x": x} | {item.name: np.array(1) for item in session.get_inputs() if item.name == "rate"}
    )
    assert np.allclose(found[0], expected, atol=1e-6)


def test_an_input_of_one_number_can_be_answered_to_choose_a_branch() -> None:
    model = two_rates("rate")
    assert weights(import_onnx(model, {"rate": 16000})) == ["y.then/w"]
    assert weights(import_onnx(model, {"rate": 8000})) == ["y.else/w"]
    with pytest.raises(UntrainableModelError, match="node 'choice' uses If"):
        import_onnx(model)
