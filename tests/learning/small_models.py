"""Small ONNX models that tests build by hand."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper


def onnx_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, Sequence[int | str]],
    initializers: Mapping[str, NDArray[Any]],
    *,
    opset: int = 18,
) -> bytes:
    """Write a float32 model."""

    def values(described: Mapping[str, Sequence[int | str]]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(shape))
            for name, shape in described.items()
        ]

    graph = helper.make_graph(
        list(nodes),
        "small",
        values(inputs),
        values(outputs),
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return bytes(model.SerializeToString(deterministic=True))


def weights(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Draw values of a size that keeps activations alive."""
    return (rng.normal(size=shape) * 0.4).astype(np.float32)


def gesture_model(*, opset: int = 18) -> bytes:
    """Build a 1-D CNN of 3 channels and 32 steps with standardization in front and 5 classes."""
    rng = np.random.default_rng(7)
    node = helper.make_node
    return onnx_model(
        [
            node("Sub", ["x", "standardize.mean"], ["centered"]),
            node("Mul", ["centered", "standardize.scale"], ["standard"]),
            node("Conv", ["standard", "conv1.weight", "conv1.bias"], ["c1"], name="conv1", pads=[2, 2]),
            node("Relu", ["c1"], ["r1"]),
            node("MaxPool", ["r1"], ["p1"], kernel_shape=[2], strides=[2]),
            node("Conv", ["p1", "conv2.weight"], ["c2"], name="conv2", group=2, strides=[2]),
            node("Relu", ["c2"], ["r2"]),
            node("Flatten", ["r2"], ["flat"]),
            node("Gemm", ["flat", "fc.weight", "fc.bias"], ["logits"], name="fc", transB=1),
        ],
        {"x": ["batch", 3, 32]},
        {"logits": ["batch", 5]},
        {
            "standardize.mean": np.zeros((3, 1), np.float32),
            "standardize.scale": np.ones((3, 1), np.float32),
            "conv1.weight": weights(rng, 8, 3, 5),
            "conv1.bias": weights(rng, 8),
            "conv2.weight": weights(rng, 6, 4, 3),
            "fc.weight": weights(rng, 5, 42),
            "fc.bias": weights(rng, 5),
        },
        opset=opset,
    )


def perceptron(*, final: str | None = None) -> bytes:
    """Build a perceptron of MatMul and Add layers, 4 inputs, 3 outputs; ``final`` squashes the output."""
    rng = np.random.default_rng(3)
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w1"], ["m1"]),
        node("Add", ["m1", "b1"], ["a1"]),
        node("Tanh", ["a1"], ["h1"]),
        node("MatMul", ["h1", "w2"], ["m2"]),
        node("Add", ["m2", "b2"], ["z" if final else "y"]),
    ]
    if final:
        nodes.append(node(final, ["z"], ["y"]))
    return onnx_model(
        nodes,
        {"x": ["batch", 4]},
        {"y": ["batch", 3]},
        {"w1": weights(rng, 4, 6), "b1": weights(rng, 6), "w2": weights(rng, 6, 3), "b2": weights(rng, 3)},
    )
