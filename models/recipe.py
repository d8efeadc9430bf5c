"""What the recipes share: first weights from a seed, and an ONNX file that is the same bytes every time."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 18
IR_VERSION = 9  # Of the first onnx with this opset that onnxruntime 1.19, the oldest allowed, reads.

Floats = NDArray[np.float32]


def he_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Draw weights (outputs first) for a layer before a Relu: He et al., "Delving Deep into Rectifiers", ICCV 2015."""
    fan_in = int(np.prod(shape[1:]))
    return np.float32(np.sqrt(2 / fan_in)) * rng.standard_normal(shape).astype(np.float32)


def zeros(*shape: int) -> Floats:
    """Return biases."""
    return np.zeros(shape, np.float32)


def assemble(
    name: str,
    nodes: Sequence[onnx.NodeProto],
    initializers: Mapping[str, Floats],
    *,
    input_shape: tuple[int, ...],
    class_count: int,
    documentation: str,
) -> bytes:
    """Return the ONNX file of a classifier from ``x`` (batch, *input_shape) to ``scores`` (batch, class_count)."""
    graph = helper.make_graph(
        list(nodes),
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *input_shape])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", class_count])],
        [numpy_helper.from_array(array, title) for title, array in initializers.items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="fallow",
        doc_string=documentation,
    )
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def run_recipe(build: Callable[[int], bytes], default_name: str) -> None:
    """Write a model where the command line says."""
    parser = argparse.ArgumentParser(description="Write the ONNX file of a model with fresh weights.")
    parser.add_argument("output", type=Path, nargs="?", default=Path(default_name), help=f"default: {default_name}")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights; same seed, same file (default: 0)")
    arguments = parser.parse_args()
    data = build(arguments.seed)
    arguments.output.write_bytes(data)
    print(f"{arguments.output}: {len(data)} bytes")
