"""A model of six parameters, small enough to train by hand: scores = W x + b, two inputs, two classes."""

import functools

import numpy as np
import onnx
from onnx import helper, numpy_helper

from cloud_aggregator.model_building import BuiltBundle, build_bundle
from federated_core.learning.bundle import Bundle, decode_bundle
from federated_core.protocol import keys

MODEL_KEY = keys.SigningKey(bytes(range(100, 132)))


@functools.cache
def tiny_onnx() -> bytes:
    """Write the model, all parameters zero: it gives every class the probability 1/2."""
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "weight", "bias"], ["scores"], transB=1)],
        "tiny",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["batch", 2])],
        [
            numpy_helper.from_array(np.zeros((2, 2), np.float32), "weight"),
            numpy_helper.from_array(np.zeros(2, np.float32), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString(deterministic=True))


@functools.cache
def tiny_build() -> BuiltBundle:
    """Derive the bundle."""
    return build_bundle(tiny_onnx(), name="tiny", loss="softmax-cross-entropy", classes=("left", "right"))


@functools.cache
def tiny_bundle() -> Bundle:
    """Read the bundle."""
    return decode_bundle(tiny_build().data)
