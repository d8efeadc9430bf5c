"""The benchmark's model: an MLP 64-128-10 for scikit-learn's digits, as small as the task that Flower runs beside it.

    python -m models.digits_mlp.build OUTPUT.onnx [--seed 0]

Pixels go in as they come, 0 to 16; the division by 16 is part of the graph.
"""

import numpy as np
from onnx import helper

from models.recipe import assemble, he_normal, run_recipe, zeros

PIXELS = 64
HIDDEN = 128
CLASSES = 10


def build(seed: int = 0) -> bytes:
    """Return the ONNX file with He-initialized weights drawn from ``seed``."""
    rng = np.random.default_rng(seed)
    initializers = {
        "pixel.scale": np.full(1, 1 / 16, np.float32),
        "hidden.weight": he_normal(rng, (HIDDEN, PIXELS)),
        "hidden.bias": zeros(HIDDEN),
        "scores.weight": he_normal(rng, (CLASSES, HIDDEN)),
        "scores.bias": zeros(CLASSES),
    }
    nodes = [
        helper.make_node("Mul", ["x", "pixel.scale"], ["scaled"]),
        helper.make_node("Gemm", ["scaled", "hidden.weight", "hidden.bias"], ["hidden"], transB=1),
        helper.make_node("Relu", ["hidden"], ["relu"]),
        helper.make_node("Gemm", ["relu", "scores.weight", "scores.bias"], ["scores"], transB=1),
    ]
    return assemble(
        "digits_mlp",
        nodes,
        initializers,
        input_shape=(PIXELS,),
        class_count=CLASSES,
        documentation="Ten handwritten digits from 8 x 8 pixels.",
    )


if __name__ == "__main__":
    run_recipe(build, "digits_mlp.onnx")
