"""The ONNX project's own node tests on the numpy engine: every case of an operator that it runs."""

import functools
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from federated_core.engines.numpy_engine import Program
from federated_core.engines.numpy_operators import NUMPY_OPERATORS
from federated_core.errors import UntrainableModelError
from federated_core.learning.graph import OPSET_MAX
from federated_core.learning.onnx_graph import import_onnx

pytestmark = pytest.mark.conformance

EXCLUDED = {
    "test_averagepool_2d_ceil_last_window_starts_on_pad": "its expected values have four digits",
    "test_gru_batchwise": "layout 1",
    "test_lstm_batchwise": "layout 1",
    "test_lstm_with_peepholes": "peepholes",
    "test_maxpool_with_argmax_2d_precomputed_strides": "column-major indices",
    "test_reduce_log_sum_exp_empty_set": "a maximum of nothing",
    "test_reduce_max_empty_set": "a maximum of nothing",
    "test_reduce_min_empty_set": "a minimum of nothing",
    "test_resize_tf_crop_and_resize": "a region of interest",
    "test_resize_tf_crop_and_resize_axes_2_3": "a region of interest",
    "test_resize_tf_crop_and_resize_axes_3_2": "a region of interest",
    "test_resize_tf_crop_and_resize_extrapolation_value": "a region of interest",
    "test_simple_rnn_batchwise": "layout 1",
    "test_training_dropout": "a mask is drawn",
    "test_training_dropout_default": "a mask is drawn",
    "test_training_dropout_default_mask": "a mask is drawn",
    "test_training_dropout_mask": "a mask is drawn",
    "test_training_dropout_zero_ratio": "a mask is drawn",
    "test_training_dropout_zero_ratio_mask": "a mask is drawn",
}
TOLERANCES = {np.dtype(np.float16): 1e-2}


@functools.cache
def node_cases() -> dict[str, Any]:
    """Collect the cases of one node that the engine runs."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    return {case.name: case for case in cases if _is_applicable(case)}


def _is_applicable(case: Any) -> bool:
    nodes = case.model.graph.node
    known = len(nodes) == 1 and not nodes[0].domain and nodes[0].op_type in NUMPY_OPERATORS
    return known and "_expanded" not in case.name


def _array(value: Any) -> NDArray[Any]:
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def _is_right(case: Any) -> bool:
    """Run a case; one whose types the graph form cannot hold counts as right."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    inputs, outputs = case.data_sets[0]
    feeds = {value.name: _array(array) for value, array in zip(model.graph.input, inputs, strict=True)}
    for entry in model.opset_import:
        entry.version = min(entry.version, OPSET_MAX)
    for name, array in feeds.items():
        if array.dtype.kind != "f":
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    try:
        graph = import_onnx(model.SerializeToString()).graph
    except UntrainableModelError:
        return True
    with np.errstate(all="ignore"):
        found = Program(graph).run({value.name: feeds[value.name] for value in graph.inputs})
    for value, output in zip(case.model.graph.output, outputs, strict=True):
        expected, got = _array(output), found[value.name]
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype), case.name
        tolerance = TOLERANCES.get(expected.dtype, 1e-5)
        if not np.allclose(got, expected, rtol=tolerance, atol=1e-6, equal_nan=True):
            return False
    return True


@pytest.mark.parametrize("operator", sorted(NUMPY_OPERATORS))
def test_an_operators_node_cases_give_the_expected_values(operator: str) -> None:
    cases = {name: case for name, case in node_cases().items() if case.model.graph.node[0].op_type == operator}
    assert [name for name, case in cases.items() if name not in EXCLUDED and not _is_right(case)] == []


def test_the_excluded_cases_exist() -> None:
    assert set(EXCLUDED) <= set(node_cases())
    assert len(node_cases()) > 700
