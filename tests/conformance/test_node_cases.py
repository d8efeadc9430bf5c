"""The ONNX project's own node tests as a suite of gradient tests: every float case of an operator that has a rule.

The figure compared is a derivative along a random direction: by the rule's graph on onnxruntime in float32, and by
central differences of the ONNX reference in float64.
"""

import functools
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from federated_core.learning.gradients import GRADIENTS
from federated_core.learning.graph import OPSET_MAX
from federated_core.learning.onnx_graph import import_onnx
from tests.learning.central_differences import worst_error

pytestmark = pytest.mark.conformance

TOLERANCE = 1e-5

NO_DERIVATIVE = {
    "test_acosh_example": "x = 1, where the function ends",
    "test_elu_example": "x = 0",
    "test_l1normalization_axis_last": "x = 0",
    "test_l2normalization_axis_0": "a norm of zero",
    "test_leakyrelu_example": "x = 0",
    "test_maxpool_3d_dilations": "equal maxima in a window",
    "test_maxpool_3d_dilations_use_ref_impl": "equal maxima in a window",
    "test_reduce_min_default_axes_keepdims_example": "equal minima",
    "test_scatternd_max": "equal maxima",
    "test_scatternd_min": "equal minima",
    "test_selu_example": "x = 0",
    "test_thresholdedrelu_example": "x = alpha",
}
RANDOM_MASK = {
    "test_training_dropout_default": "a mask is drawn",
    "test_training_dropout_default_mask": "a mask is drawn",
    "test_training_dropout": "a mask is drawn",
    "test_training_dropout_mask": "a mask is drawn",
}
NO_KERNEL = {
    "test_gru_batchwise": "onnxruntime has no layout 1",
    "test_lstm_batchwise": "onnxruntime has no layout 1",
    "test_simple_rnn_batchwise": "onnxruntime has no layout 1",
    "test_resize_downsample_scales_cubic_align_corners": "onnxruntime rounds the size first, the reference does not",
    "test_resize_downsample_scales_linear_align_corners": "onnxruntime rounds the size first, the reference does not",
    "test_mod_float32_mixed_sign_fmod_0": "onnxruntime has no Mod of floats without fmod",
    "test_mod_float_edge_cases_fmod_0_float32": "onnxruntime has no Mod of floats without fmod",
}
NOT_SUPPORTED = {
    "test_lstm_with_peepholes": "peepholes and sequence_lens",
    "test_resize_tf_crop_and_resize": "a region of interest",
    "test_resize_tf_crop_and_resize_axes_2_3": "a region of interest",
    "test_resize_tf_crop_and_resize_axes_3_2": "a region of interest",
    "test_resize_tf_crop_and_resize_extrapolation_value": "a region of interest",
}
LOST_DIGITS = {
    "test_rnn_seq_length": "tanh is so near 1 that 1 - y^2 keeps three digits in float32",
    "test_simple_rnn_bidirectional": "tanh is so near 1 that 1 - y^2 keeps three digits in float32",
}
EXCLUDED = NO_DERIVATIVE | RANDOM_MASK | NO_KERNEL | NOT_SUPPORTED | LOST_DIGITS

DIFFERENTIATED_SLOTS = {"BatchNormalization": 3, "CastLike": 1, "Dropout": 1, "Resize": 1}
"""Operators of which only the first inputs have gradients: the rest are settings, types or running statistics."""


@functools.cache
def node_cases() -> dict[str, Any]:
    """Collect the cases of one float32 node with a gradient rule."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    return {case.name: case for case in cases if _is_applicable(case)}


def _is_applicable(case: Any) -> bool:
    graph = case.model.graph
    if len(graph.node) != 1 or graph.node[0].domain or graph.node[0].op_type not in GRADIENTS:
        return False
    if "_expanded" in case.name or any(value.type.WhichOneof("value") != "tensor_type" for value in graph.input):
        return False
    return bool(_wanted(case.model)) and any(_is_float(value) for value in graph.output)


def _is_float(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT)


def _wanted(model: onnx.ModelProto) -> list[str]:
    node = model.graph.node[0]
    slots = node.input[: DIFFERENTIATED_SLOTS.get(node.op_type, len(node.input))]
    return [value.name for value in model.graph.input if _is_float(value) and value.name in slots]


def _with_settings_inside(case: Any) -> tuple[bytes, dict[str, NDArray[Any]]]:
    """Return the model with everything but the differentiated inputs as initializers, and the feeds of those."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    wanted = _wanted(model)
    arrays = {
        value.name: onnx.numpy_helper.to_array(array) if isinstance(array, onnx.TensorProto) else np.asarray(array)
        for value, array in zip(model.graph.input, case.data_sets[0][0], strict=True)
    }
    for name, array in arrays.items():
        if name not in wanted:
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    if model.graph.node[0].op_type == "BatchNormalization":
        del model.graph.output[1:]  # Running statistics are state: nothing is differentiated through them.
    for entry in model.opset_import:
        entry.version = min(entry.version, OPSET_MAX)
    return model.SerializeToString(), {name: arrays[name] for name in wanted}


@pytest.mark.parametrize("operator", sorted(GRADIENTS))
def test_an_operators_node_cases_have_the_gradient_of_central_differences(operator: str) -> None:
    errors: dict[str, float] = {}
    for name, case in node_cases().items():
        if case.model.graph.node[0].op_type == operator and name not in EXCLUDED:
            data, feeds = _with_settings_inside(case)
            with np.errstate(all="ignore"):
                errors[name] = worst_error(import_onnx(data), feeds, list(feeds), np.random.default_rng(0))
    assert {name: error for name, error in errors.items() if not error < TOLERANCE} == {}


def test_few_cases_are_excluded_and_each_of_them_exists() -> None:
    cases = node_cases()
    assert set(EXCLUDED) <= set(cases)
    assert len(EXCLUDED) <= 32
    assert len(cases) - len(EXCLUDED) >= 400
