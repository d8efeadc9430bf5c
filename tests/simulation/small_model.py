"""A model of 156 parameters, all zero at first: what the fleets of a simulation train."""

import functools

import msgspec
import numpy as np
import onnx
from onnx import helper, numpy_helper

from cloud_aggregator.model_building import BuiltBundle, build_bundle
from federated_core.learning.bundle import decode_bundle
from federated_core.learning.parameters import Layout, encode_checkpoint, flatten

_WIDTH = 12


class SmallModel(msgspec.Struct, frozen=True):
    """What an operator hands in to begin a task."""

    original: bytes
    built: BuiltBundle
    layout: Layout

    def checkpoint(self, task: str) -> bytes:
        """Write the initial parameters."""
        return encode_checkpoint(self.layout, task, 0, flatten(self.layout, self.built.tensors))


@functools.cache
def small_model() -> SmallModel:
    """Build it once in a process."""
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "weight", "bias"], ["scores"], transB=1)],
        "small",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", _WIDTH])],
        [helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["batch", _WIDTH])],
        [
            numpy_helper.from_array(np.zeros((_WIDTH, _WIDTH), np.float32), "weight"),
            numpy_helper.from_array(np.zeros(_WIDTH, np.float32), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    original = bytes(model.SerializeToString(deterministic=True))
    classes = tuple(f"class-{number}" for number in range(_WIDTH))
    built = build_bundle(original, name="small", loss="softmax-cross-entropy", classes=classes)
    return SmallModel(original, built, decode_bundle(built.data).description.layout)
