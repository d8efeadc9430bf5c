"""The demo's model: a small 1-D CNN that tells shoulder exercises apart by the motion of a wrist watch.

    python -m models.spar_cnn.build OUTPUT.onnx [--seed 0]

Four seconds of accelerometer and gyroscope in their own units go in. Standardization is part of the graph: its mean and
scale are personal parameters, which each device fits to its own recordings without labels. The first layer strides over
four samples at a time, so that most of the parameters sit in one matrix product, which is cheap to train.
"""

import numpy as np
from onnx import helper

from models.recipe import assemble, he_normal, run_recipe, zeros

CHANNELS = 6
SAMPLES = 192  # 3.84 s at 50 Hz.
CLASSES = 7
FILTERS = (24, 32)
HIDDEN = 256
FLAT = FILTERS[1] * SAMPLES // 16  # A stride of 4 and two pools by 2.


def build(seed: int = 0) -> bytes:
    """Return the ONNX file with He-initialized weights drawn from ``seed``."""
    rng = np.random.default_rng(seed)
    initializers = {
        "standardize.mean": zeros(1, CHANNELS, 1),
        "standardize.scale": np.ones((1, CHANNELS, 1), np.float32),
        "conv1.weight": he_normal(rng, (FILTERS[0], CHANNELS, 11)),
        "conv1.bias": zeros(FILTERS[0]),
        "conv2.weight": he_normal(rng, (FILTERS[1], FILTERS[0], 5)),
        "conv2.bias": zeros(FILTERS[1]),
        "hidden.weight": he_normal(rng, (HIDDEN, FLAT)),
        "hidden.bias": zeros(HIDDEN),
        "scores.weight": he_normal(rng, (CLASSES, HIDDEN)),
        "scores.bias": zeros(CLASSES),
    }
    nodes = [
        helper.make_node("Sub", ["x", "standardize.mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "standardize.scale"], ["standardized"]),
        helper.make_node(
            "Conv",
            ["standardized", "conv1.weight", "conv1.bias"],
            ["conv1"],
            kernel_shape=[11],
            strides=[4],
            pads=[5, 5],
        ),
        helper.make_node("MaxPool", ["conv1"], ["pool1"], kernel_shape=[2], strides=[2]),
        helper.make_node("Relu", ["pool1"], ["relu1"]),
        helper.make_node("Conv", ["relu1", "conv2.weight", "conv2.bias"], ["conv2"], kernel_shape=[5], pads=[2, 2]),
        helper.make_node("MaxPool", ["conv2"], ["pool2"], kernel_shape=[2], strides=[2]),
        helper.make_node("Relu", ["pool2"], ["relu2"]),
        helper.make_node("Flatten", ["relu2"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "hidden.weight", "hidden.bias"], ["hidden"], transB=1),
        helper.make_node("Relu", ["hidden"], ["relu3"]),
        helper.make_node("Gemm", ["relu3", "scores.weight", "scores.bias"], ["scores"], transB=1),
    ]
    return assemble(
        "spar_cnn",
        nodes,
        initializers,
        input_shape=(CHANNELS, SAMPLES),
        class_count=CLASSES,
        documentation="Seven shoulder exercises from 3.84 s of a wrist watch's accelerometer and gyroscope at 50 Hz.",
    )


if __name__ == "__main__":
    run_recipe(build, "spar_cnn.onnx")
