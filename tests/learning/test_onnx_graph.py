import contextlib

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from federated_core.errors import UntrainableModelError
from federated_core.learning.onnx_graph import emit_onnx, import_onnx
from tests.learning.small_models import gesture_model, onnx_model, perceptron

node = helper.make_node


def test_what_is_read_and_written_again_computes_the_same() -> None:
    runtime = pytest.importorskip("onnxruntime")
    data = gesture_model()
    x = np.random.default_rng(0).normal(size=(4, 3, 32)).astype(np.float32)
    before, after = (
        runtime.InferenceSession(model).run(None, {"x": x})[0] for model in (data, emit_onnx(import_onnx(data).graph))
    )
    assert np.array_equal(before, after)


def test_every_value_has_a_type_and_the_batch_stays_free() -> None:
    types = import_onnx(gesture_model()).types
    assert types["c2"].shape == ("batch", 6, 7)
    assert types["flat"].shape == ("batch", 42)
    assert types["conv1.weight"].shape == (8, 3, 5)


def test_chains_of_shape_and_concat_are_seen_through() -> None:
    data = onnx_model(
        [
            node("Shape", ["x"], ["shape"]),
            node("Gather", ["shape", "zero"], ["n"]),
            node("Unsqueeze", ["n", "axis"], ["n1"]),
            node("Concat", ["n1", "rest"], ["target"], axis=0),
            node("Reshape", ["x", "target"], ["r"]),
            node("Gather", ["shape", "one"], ["c"]),
            node("Mul", ["c", "c"], ["cc"]),
            node("Unsqueeze", ["cc", "axis"], ["cc1"]),
            node("ConstantOfShape", ["cc1"], ["zeros"]),
            node("Add", ["r", "zeros"], ["y"]),
        ],
        {"x": ["n", 4, 4]},
        {"y": ["n", 16]},
        {"zero": np.array(0), "one": np.array(1), "axis": np.array([0]), "rest": np.array([-1])},
    )
    model = import_onnx(data)
    assert model.types["r"].shape == ("n", 16)
    assert model.types["zeros"].shape == (16,)
    assert "ConstantOfShape" not in {item.op for item in model.graph.nodes}


def test_two_free_dimensions_are_told_apart() -> None:
    data = onnx_model(
        [node("Transpose", ["x"], ["t"], perm=[1, 0, 2]), node("Flatten", ["t"], ["y"], axis=2)],
        {"x": ["batch", "time", 3]},
        {"y": ["m", 3]},
        {},
    )
    types = import_onnx(data).types
    assert types["t"].shape == ("time", "batch", 3)
    assert types["y"].shape[1] == 3


def test_free_dimensions_can_be_fixed_by_name() -> None:
    data = onnx_model([node("Relu", ["x"], ["y"])], {"x": ["n", "side", "?"]}, {"y": ["n", "side", "?"]}, {})
    assert import_onnx(data, {"side": 7, "x.2": 9}).types["y"].shape == ("n", 7, 9)


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 21])
def test_older_opsets_are_lifted(opset: int) -> None:
    model = import_onnx(gesture_model(opset=opset))
    assert model.graph.opset == max(opset, 18)
    assert model.types["logits"].shape == ("batch", 5)


def test_weights_in_constant_nodes_are_found_under_their_names() -> None:
    weight = numpy_helper.from_array(np.ones((2, 2), np.float32))
    data = onnx_model(
        [node("Constant", [], ["w"], value=weight), node("MatMul", ["x", "w"], ["y"])],
        {"x": ["n", 2]},
        {"y": ["n", 2]},
        {},
    )
    assert import_onnx(data).graph.constants["w"].shape == (2, 2)


def test_an_initializer_that_is_also_an_input_is_a_constant() -> None:
    data = onnx_model(
        [node("MatMul", ["x", "w"], ["y"])],
        {"x": ["n", 2], "w": [2, 2]},
        {"y": ["n", 2]},
        {"w": np.eye(2, dtype=np.float32)},
    )
    graph = import_onnx(data).graph
    assert [value.name for value in graph.inputs] == ["x"]


def test_a_custom_domain_is_refused_by_name() -> None:
    strange = helper.make_node("Frobnicate", ["x"], ["y"], domain="com.example", name="odd")
    with pytest.raises(UntrainableModelError, match=r"'odd' uses Frobnicate of the custom domain 'com.example'"):
        import_onnx(onnx_model([strange], {"x": ["n"]}, {"y": ["n"]}, {}))


def test_external_data_is_refused() -> None:
    model = onnx.load_model_from_string(perceptron())
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")
    with pytest.raises(UntrainableModelError, match="external data"):
        import_onnx(model.SerializeToString())


def test_control_flow_is_refused_by_name() -> None:
    body = helper.make_graph([], "body", [], [])
    loop = node("If", ["c"], ["y"], name="branch", then_branch=body, else_branch=body)
    with pytest.raises(UntrainableModelError, match=r"branch"):
        import_onnx(onnx_model([loop], {"x": ["n"], "c": []}, {"y": ["n"]}, {}))


def test_a_constant_too_large_to_build_is_not_built() -> None:
    data = onnx_model(
        [node("ConstantOfShape", ["huge"], ["z"]), node("Add", ["x", "z"], ["y"])],
        {"x": [1]},
        {"y": [2**20, 2**20]},
        {"huge": np.array([2**20, 2**20])},
    )
    assert import_onnx(data).types["z"].shape == (2**20, 2**20)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_damaged_file_is_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    encoded = bytearray(perceptron())
    for _ in range(data.draw(st.integers(1, 6))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(UntrainableModelError):
        import_onnx(bytes(encoded))


@given(st.binary(max_size=300))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(UntrainableModelError):
        import_onnx(data)
