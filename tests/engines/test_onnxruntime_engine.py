import gc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cloud_aggregator.model_building import build_bundle
from federated_core.engines.onnxruntime_engine import OnnxruntimeEngine
from federated_core.errors import AdapterError, LocalMisuseError
from federated_core.learning.bundle import Bundle, decode_bundle
from federated_core.learning.step_interface import Optimizer
from tests.learning.central_differences import run_onnxruntime
from tests.learning.small_models import gesture_model

Tensors = dict[str, NDArray[np.float32]]


def opened(optimizer: Optimizer | None = None) -> tuple[Bundle, Tensors]:
    built = build_bundle(gesture_model(), name="gestures", loss="softmax-cross-entropy", optimizer=optimizer)
    return decode_bundle(built.data), built.tensors


def examples(count: int = 24) -> tuple[Tensors, NDArray[np.int64]]:
    rng = np.random.default_rng(1)
    label = rng.integers(0, 5, count)
    x = rng.normal(size=(count, 3, 32)).astype(np.float32)
    x[np.arange(count), label % 3, label * 5] += 4
    return {"x": x}, label


@pytest.mark.parametrize("optimizer", [Optimizer("sgd"), Optimizer("momentum"), Optimizer("adam", clip_norm=1.0)])
def test_training_on_a_fixed_batch_brings_the_loss_down(optimizer: Optimizer) -> None:
    bundle, tensors = opened(optimizer)
    session = OnnxruntimeEngine().open_training(bundle)
    session.load(tensors)
    inputs, label = examples()
    losses = [session.step(inputs, label, 0.01 if optimizer.name == "adam" else 0.05) for _ in range(60)]
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("optimizer", [Optimizer("sgd"), Optimizer("adam")])
def test_a_session_takes_the_same_steps_as_plain_runs_of_its_graph(optimizer: Optimizer) -> None:
    # Plain runs never share a buffer; an output bound onto its own input would differ here.
    bundle, tensors = opened(optimizer)
    inputs, label = examples()
    session = OnnxruntimeEngine().open_training(bundle)
    session.load(tensors)
    graph = bundle.graph("train")
    state = {**tensors}
    for value in graph.inputs:
        if value.name.startswith("slot/"):
            state[value.name] = np.zeros([int(dim) for dim in value.shape], np.float32)
    for _ in range(5):
        feeds: dict[str, NDArray[Any]] = {
            **inputs,
            "label": label,
            "learning_rate": np.array(0.05, np.float32),
            **state,
        }
        results = run_onnxruntime(graph, feeds)
        loss = session.step(inputs, label, 0.05)
        assert loss == float(results.pop("loss"))
        state |= {name.removeprefix("updated/"): array for name, array in results.items()}
    for name, array in session.parameters().items():
        assert np.array_equal(array, state[name]), name


def test_parameters_are_copies_that_outlive_the_session() -> None:
    bundle, tensors = opened()
    session = OnnxruntimeEngine().open_training(bundle)
    session.load(tensors)
    inputs, label = examples()
    session.step(inputs, label, 0.05)
    taken = session.parameters()
    frozen = {name: array.copy() for name, array in taken.items()}
    session.step(inputs, label, 0.05)
    del session
    gc.collect()
    assert all(np.array_equal(taken[name], frozen[name]) for name in taken)


def test_loading_copies_and_forgets() -> None:
    bundle, tensors = opened(Optimizer("momentum"))
    before = {name: array.copy() for name, array in tensors.items()}
    session = OnnxruntimeEngine().open_training(bundle)
    inputs, label = examples()
    runs = []
    for _ in range(2):
        session.load(tensors)
        runs.append([session.step(inputs, label, 0.05) for _ in range(3)])
    assert runs[0] == runs[1]
    assert all(np.array_equal(tensors[name], before[name]) for name in tensors)


def test_batches_may_have_any_size() -> None:
    bundle, tensors = opened()
    session = OnnxruntimeEngine().open_training(bundle)
    session.load(tensors)
    inputs, label = examples()
    for size in (1, 24, 7):
        assert np.isfinite(session.step({"x": inputs["x"][:size]}, label[:size], 0.05))


def test_evaluation_does_not_depend_on_the_batch_size() -> None:
    bundle, tensors = opened()
    session = OnnxruntimeEngine().open_evaluation(bundle)
    inputs, label = examples()
    small, large = (session.evaluate(tensors, inputs, label, batch_size=size) for size in (5, 64))
    assert small.example_count == large.example_count == 24
    assert small.correct_count == large.correct_count
    assert small.loss_sum == pytest.approx(large.loss_sum, rel=1e-5)


def test_inference_gives_the_models_outputs_by_name() -> None:
    bundle, tensors = opened()
    inputs, _ = examples()
    assert OnnxruntimeEngine().infer(bundle, tensors, inputs)["logits"].shape == (24, 5)


def test_what_does_not_fit_the_model_is_refused_before_it_runs() -> None:
    bundle, tensors = opened()
    session = OnnxruntimeEngine().open_training(bundle)
    inputs, label = examples()
    with pytest.raises(LocalMisuseError, match="load parameters"):
        session.step(inputs, label, 0.1)
    with pytest.raises(LocalMisuseError, match=r"differs in 'fc\.bias'"):
        session.load({name: array for name, array in tensors.items() if name != "fc.bias"})
    session.load(tensors)
    with pytest.raises(LocalMisuseError, match="'x': expected shape"):
        session.step({"x": inputs["x"][:, :2]}, label, 0.1)
    with pytest.raises(LocalMisuseError, match="no input 'z'"):
        session.step({**inputs, "z": inputs["x"]}, label, 0.1)
    with pytest.raises(LocalMisuseError, match="'label': expected int64"):
        session.step(inputs, label.astype(np.float32), 0.1)


def test_a_graph_that_onnxruntime_refuses_is_an_error_of_the_adapter() -> None:
    with pytest.raises(AdapterError, match="cannot open"):
        OnnxruntimeEngine()._open(b"nonsense")
