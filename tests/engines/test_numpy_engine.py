import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper

from cloud_aggregator.model_building import build_bundle
from federated_core.engines.engine import Engine
from federated_core.engines.numpy_engine import NumpyEngine, Program
from federated_core.engines.onnxruntime_engine import OnnxruntimeEngine
from federated_core.errors import LocalMisuseError
from federated_core.learning.bundle import decode_bundle
from federated_core.learning.graph import Graph, Node, Value
from federated_core.learning.step_interface import Optimizer
from tests.learning.small_models import gesture_model, onnx_model, perceptron, weights

Tensors = dict[str, NDArray[np.float32]]


def image_model() -> bytes:
    rng = np.random.default_rng(2)
    node = helper.make_node
    return onnx_model(
        [
            node("Conv", ["x", "c1"], ["a"], pads=[1, 1, 1, 1]),
            node("BatchNormalization", ["a", "scale", "bias", "mean", "var"], ["n"]),
            node("HardSwish", ["n"], ["h"]),
            node("MaxPool", ["h"], ["p"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
            node("Conv", ["p", "c2"], ["d"], group=6, strides=[2, 2], pads=[1, 1, 1, 1]),
            node("Clip", ["d", "zero", "six"], ["r"]),
            node("AveragePool", ["r"], ["v"], kernel_shape=[2, 2]),
            node("Flatten", ["v"], ["f"]),
            node("Gemm", ["f", "w", "b"], ["y"]),
        ],
        {"x": ["batch", 2, 12, 12]},
        {"y": ["batch", 4]},
        {
            "c1": weights(rng, 6, 2, 3, 3),
            "scale": np.ones(6, np.float32),
            "bias": np.zeros(6, np.float32),
            "mean": np.zeros(6, np.float32),
            "var": np.ones(6, np.float32),
            "c2": weights(rng, 6, 1, 3, 3),
            "zero": np.array(0, np.float32),
            "six": np.array(6, np.float32),
            "w": weights(rng, 24, 4),
            "b": weights(rng, 4),
        },
    )


def sequence_model(op: str) -> bytes:
    rng = np.random.default_rng(4)
    rows = {"GRU": 24, "LSTM": 32}[op]
    node = helper.make_node
    return onnx_model(
        [
            node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
            node(op, ["t", "w", "r", "b"], ["", "h"], hidden_size=8),
            node("Squeeze", ["h", "axis"], ["s"]),
            node("LayerNormalization", ["s", "scale", "bias"], ["n"]),
            node("MatMul", ["n", "head"], ["y"]),
        ],
        {"x": ["batch", 9, 3]},
        {"y": ["batch", 4]},
        {
            "w": weights(rng, 1, rows, 3),
            "r": weights(rng, 1, rows, 8),
            "b": weights(rng, 1, 2 * rows),
            "axis": np.array([0]),
            "scale": np.ones(8, np.float32),
            "bias": np.zeros(8, np.float32),
            "head": weights(rng, 8, 4),
        },
    )


def attention_model() -> bytes:
    rng = np.random.default_rng(5)
    node = helper.make_node
    return onnx_model(
        [
            node("MatMul", ["x", "q"], ["query"]),
            node("MatMul", ["x", "k"], ["key"]),
            node("Transpose", ["key"], ["turned"], perm=[0, 2, 1]),
            node("MatMul", ["query", "turned"], ["scores"]),
            node("Softmax", ["scores"], ["weights"]),
            node("MatMul", ["weights", "x"], ["mixed"]),
            node("Add", ["mixed", "x"], ["residual"]),
            node("Gelu", ["residual"], ["g"]),
            node("ReduceMean", ["g", "axis"], ["m"], keepdims=0),
            node("Gemm", ["m", "w"], ["y"]),
        ],
        {"x": ["batch", 5, 6]},
        {"y": ["batch", 4]},
        {"q": weights(rng, 6, 6), "k": weights(rng, 6, 6), "axis": np.array([1]), "w": weights(rng, 6, 4)},
        opset=20,
    )


MODELS: Mapping[str, tuple[bytes, tuple[int, ...], int]] = {
    "1-D CNN": (gesture_model(), (3, 32), 5),
    "perceptron": (perceptron(), (4,), 3),
    "image net": (image_model(), (2, 12, 12), 4),
    "GRU": (sequence_model("GRU"), (9, 3), 4),
    "LSTM": (sequence_model("LSTM"), (9, 3), 4),
    "attention": (attention_model(), (5, 6), 4),
}


@pytest.mark.parametrize("name", MODELS)
def test_both_engines_take_the_same_steps(name: str) -> None:
    model, shape, class_count = MODELS[name]
    built = build_bundle(model, name="m", loss="softmax-cross-entropy", optimizer=Optimizer("momentum"))
    bundle = decode_bundle(built.data)
    rng = np.random.default_rng(0)
    x, label = rng.normal(size=(16, *shape)).astype(np.float32), rng.integers(0, class_count, 16)
    engines: tuple[Engine, Engine] = (NumpyEngine(), OnnxruntimeEngine())
    losses, parameters, scores = [], [], []
    for engine in engines:
        session = engine.open_training(bundle)
        session.load(built.tensors)
        losses.append([session.step({"x": x}, label, 0.02) for _ in range(20)])
        parameters.append(session.parameters())
        scores.append(engine.open_evaluation(bundle).evaluate(parameters[-1], {"x": x}, label, batch_size=6))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for key, left in parameters[0].items():
        assert np.abs(left - parameters[1][key]).max() <= 1e-5 * np.abs(left).max(), key
    assert scores[0].correct_count == scores[1].correct_count
    assert scores[0].loss_sum == pytest.approx(scores[1].loss_sum, rel=1e-5)


def test_both_engines_infer_alike() -> None:
    built = build_bundle(gesture_model(), name="m", loss="softmax-cross-entropy")
    bundle = decode_bundle(built.data)
    x = np.random.default_rng(0).normal(size=(4, 3, 32)).astype(np.float32)
    left = NumpyEngine().infer(bundle, built.tensors, {"x": x})["logits"]
    assert np.allclose(left, OnnxruntimeEngine().infer(bundle, built.tensors, {"x": x})["logits"], atol=1e-5)


def test_the_numpy_engine_needs_neither_onnxruntime_nor_onnx_nor_protobuf() -> None:
    code = (
        "import sys, federated_core.engines.numpy_engine\n"
        "heavy = {'onnx', 'onnxruntime', 'google.protobuf', 'federated_core.learning.gradients'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_an_operator_that_numpy_lacks_is_refused_before_anything_runs() -> None:
    x, y = Value("x", "float32", (1,)), Value("y", "float32", (1,))
    with pytest.raises(LocalMisuseError, match="QLinearConv"):
        Program(Graph("g", 18, (x,), (y,), {}, (Node("QLinearConv", ("x",), ("y",)),)))


def test_a_session_must_be_loaded_first() -> None:
    bundle = decode_bundle(build_bundle(perceptron(), name="m", loss="mean-squared-error").data)
    session = NumpyEngine().open_training(bundle)
    with pytest.raises(LocalMisuseError, match="load parameters"):
        session.step({"x": np.zeros((1, 4), np.float32)}, np.zeros((1, 3), np.float32), 0.1)
    with pytest.raises(LocalMisuseError, match="load parameters"):
        session.parameters()
