from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper

from federated_core.errors import LocalMisuseError, UntrainableModelError
from federated_core.learning.graph import check_graph
from federated_core.learning.losses import LOSSES, loss_named
from federated_core.learning.onnx_graph import import_onnx
from federated_core.learning.step_interface import Optimizer
from federated_core.learning.training_graph import evaluation_graph, inference_graph, running_statistics, training_graph
from tests.learning.central_differences import reference_in_float64, run_onnxruntime
from tests.learning.small_models import gesture_model, onnx_model, perceptron, weights

WEIGHTS = ["w1", "b1", "w2", "b2"]
LABELS = {
    "softmax-cross-entropy": np.array([0, 2, 1, 1, 0]),
    "mean-squared-error": np.random.default_rng(4).normal(size=(5, 3)).astype(np.float32),
    "binary-cross-entropy": np.random.default_rng(4).integers(0, 2, (5, 3)).astype(np.float32),
}


def batch() -> NDArray[np.float32]:
    return np.random.default_rng(2).normal(size=(5, 4)).astype(np.float32)


def initial_weights() -> dict[str, NDArray[np.float32]]:
    constants = import_onnx(perceptron()).graph.constants
    return {name: constants[name].array().astype(np.float32) for name in WEIGHTS}


def step(
    loss: str, tensors: dict[str, NDArray[np.float32]], rate: float, optimizer: Optimizer | None = None
) -> dict[str, NDArray[np.float32]]:
    graph = training_graph(import_onnx(perceptron()), WEIGHTS, WEIGHTS, loss=loss, optimizer=optimizer)
    rest = {
        value.name: np.zeros([int(dim) for dim in value.shape], np.float32)
        for value in graph.inputs
        if value.name.startswith("slot/")
    }
    anchors = {f"anchor/{name}": array + 1 for name, array in tensors.items()}
    feeds = {
        "x": batch(),
        "label": LABELS[loss],
        "learning_rate": np.array(rate, np.float32),
        **tensors,
        **rest,
        **anchors,
    }
    return run_onnxruntime(graph, feeds)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_of_sgd_goes_down_the_gradient_of_central_differences(loss: str) -> None:
    tensors = initial_weights()
    results = step(loss, tensors, 1.0)
    evaluate = reference_in_float64(evaluation_graph(import_onnx(perceptron()), WEIGHTS, loss=loss))
    rng = np.random.default_rng(9)
    label = LABELS[loss] if loss.startswith("softmax") else LABELS[loss].astype(np.float64)

    def mean_loss(moved: dict[str, NDArray[np.float64]]) -> float:
        return float(evaluate({"x": batch().astype(np.float64), "label": label, **moved})["loss_sum"]) / 5

    precise = {name: array.astype(np.float64) for name, array in tensors.items()}
    assert mean_loss(precise) == pytest.approx(float(results["loss"]), rel=1e-6)
    for name in WEIGHTS:
        direction = rng.normal(size=tensors[name].shape)
        ahead = mean_loss({**precise, name: precise[name] + 1e-6 * direction})
        behind = mean_loss({**precise, name: precise[name] - 1e-6 * direction})
        gradient = tensors[name].astype(np.float64) - results[f"updated/{name}"]
        assert float(np.sum(gradient * direction)) == pytest.approx((ahead - behind) / 2e-6, rel=2e-5, abs=1e-6)


def test_evaluation_adds_up_over_batches_and_counts_what_is_right() -> None:
    graph = evaluation_graph(import_onnx(perceptron()), WEIGHTS, loss="softmax-cross-entropy")
    label = LABELS["softmax-cross-entropy"]
    feeds = {"x": batch(), "label": label, **initial_weights()}
    whole = run_onnxruntime(graph, feeds)
    parts = [
        run_onnxruntime(graph, {**feeds, "x": batch()[part], "label": label[part]}) for part in (slice(2), slice(2, 5))
    ]
    assert float(whole["loss_sum"]) == pytest.approx(sum(float(part["loss_sum"]) for part in parts), rel=1e-6)
    assert int(whole["correct_count"]) == sum(int(part["correct_count"]) for part in parts)


def test_binary_evaluation_counts_an_example_only_if_all_its_outputs_are_right() -> None:
    model = import_onnx(perceptron())
    logits = run_onnxruntime(inference_graph(model, WEIGHTS), {"x": batch(), **initial_weights()})["y"]
    right = (logits > 0).astype(np.float32)
    right[0, 0] = 1 - right[0, 0]
    graph = evaluation_graph(model, WEIGHTS, loss="binary-cross-entropy")
    assert int(run_onnxruntime(graph, {"x": batch(), "label": right, **initial_weights()})["correct_count"]) == 4


def test_logits_of_any_size_give_a_finite_loss() -> None:
    tensors = {name: array * 1e4 for name, array in initial_weights().items()}
    for loss in ("softmax-cross-entropy", "binary-cross-entropy"):
        results = step(loss, tensors, 0.1)
        assert all(np.isfinite(array).all() for array in results.values())


def test_a_final_softmax_is_looked_through() -> None:
    plain, squashed = (
        training_graph(import_onnx(model), WEIGHTS, WEIGHTS, loss="softmax-cross-entropy")
        for model in (perceptron(), perceptron(final="Softmax"))
    )
    assert "Softmax" not in {node.op for node in squashed.nodes}
    assert len(plain.nodes) == len(squashed.nodes)


def test_momentum_remembers_its_velocity() -> None:
    tensors = initial_weights()
    plain = step("mean-squared-error", tensors, 1.0)
    results = step("mean-squared-error", tensors, 0.5, optimizer=Optimizer("momentum"))
    velocity = results["updated/slot/velocity/w1"]
    assert np.allclose(velocity, tensors["w1"] - plain["updated/w1"], atol=1e-6)
    assert np.allclose(results["updated/w1"], tensors["w1"] - 0.5 * velocity, atol=1e-6)


def test_the_first_step_of_adam_has_the_size_of_the_rate() -> None:
    tensors = initial_weights()
    results = step("mean-squared-error", tensors, 0.01, optimizer=Optimizer("adam"))
    assert np.allclose(np.abs(results["updated/w1"] - tensors["w1"]), 0.01, rtol=1e-3)
    assert float(results["updated/slot/step_count"]) == 1.0


def test_the_proximal_term_pulls_towards_the_anchor() -> None:
    tensors = initial_weights()
    plain = step("mean-squared-error", tensors, 1.0)
    pulled = step("mean-squared-error", tensors, 1.0, optimizer=Optimizer(proximal=0.25))
    # The anchor is the parameter plus 1, so the pull is 0.25 * (w - (w + 1)) = -0.25, and a step of rate 1 adds 0.25.
    assert np.allclose(pulled["updated/b2"] - plain["updated/b2"], 0.25, atol=1e-6)


def test_weight_decay_adds_a_share_of_the_parameter() -> None:
    tensors = initial_weights()
    plain = step("mean-squared-error", tensors, 1.0)
    decayed = step("mean-squared-error", tensors, 1.0, optimizer=Optimizer(weight_decay=0.5))
    assert np.allclose(plain["updated/w2"] - decayed["updated/w2"], 0.5 * tensors["w2"], atol=1e-6)


@pytest.mark.parametrize(("bound", "expected"), [(0.01, 0.01), (1e6, None)])
def test_clipping_bounds_the_norm_of_the_whole_gradient(bound: float, expected: float | None) -> None:
    tensors = initial_weights()

    def norm(results: dict[str, NDArray[np.float32]]) -> float:
        return float(np.sqrt(sum(((tensors[name] - results[f"updated/{name}"]) ** 2).sum() for name in WEIGHTS)))

    plain = norm(step("mean-squared-error", tensors, 1.0))
    clipped = norm(step("mean-squared-error", tensors, 1.0, optimizer=Optimizer(clip_norm=bound)))
    assert clipped == pytest.approx(expected or plain, rel=1e-3)


def test_training_a_head_costs_a_head() -> None:
    model = import_onnx(gesture_model())
    head = training_graph(model, ["fc.weight"], ["fc.weight"], loss="softmax-cross-entropy")
    assert {"ConvTranspose", "ScatterElements", "Sign"}.isdisjoint(node.op for node in head.nodes)
    assert [value.name for value in head.outputs] == ["loss", "updated/fc.weight"]


def test_running_statistics_follow_the_batch_and_evaluation_uses_them() -> None:
    node = helper.make_node
    rng = np.random.default_rng(0)
    model = import_onnx(
        onnx_model(
            [
                node("MatMul", ["x", "w"], ["h"]),
                node("BatchNormalization", ["h", "scale", "bias", "mean", "var"], ["y", "m", "v"], training_mode=1),
            ],
            {"x": ["batch", 4]},
            {"y": ["batch", 3]},
            {
                "w": weights(rng, 4, 3),
                "scale": np.ones(3, np.float32),
                "bias": np.zeros(3, np.float32),
                "mean": np.zeros(3, np.float32),
                "var": np.ones(3, np.float32),
            },
        )
    )
    names = list(model.graph.constants)
    assert set(running_statistics(model.graph)) == {"mean", "var"}
    loss = "mean-squared-error"
    train = training_graph(model, names, ["w", "scale", "bias"], loss=loss)
    tensors = {name: model.graph.constants[name].array() for name in names}
    feeds = {"x": batch(), "label": LABELS[loss], "learning_rate": np.array(0.1, np.float32), **tensors}
    results = run_onnxruntime(train, feeds)
    h = batch() @ tensors["w"]
    assert np.allclose(results["updated/mean"], 0.1 * h.mean(axis=0), atol=1e-6)
    assert np.allclose(results["updated/var"], 0.9 + 0.1 * h.var(axis=0), atol=1e-6)
    evaluate = evaluation_graph(model, names, loss=loss)
    scored = run_onnxruntime(evaluate, {key: value for key, value in feeds.items() if key != "learning_rate"})
    expected = (((h / np.sqrt(1 + 1e-5)) - LABELS[loss]) ** 2).mean(axis=1).sum()
    assert float(scored["loss_sum"]) == pytest.approx(expected, rel=1e-5)


def test_every_derived_graph_passes_the_check_of_a_device() -> None:
    model = import_onnx(gesture_model())
    names = list(model.graph.constants)
    for name in LOSSES:
        if name == "softmax-cross-entropy":
            check_graph(training_graph(model, names, names, loss=name, optimizer=Optimizer("adam", clip_norm=1.0)))
        check_graph(evaluation_graph(model, names, loss=name))


def test_a_parameter_that_the_loss_does_not_read_is_refused_by_name() -> None:
    with pytest.raises(UntrainableModelError, match="no float32 initializer"):
        inference_graph(import_onnx(perceptron()), ["nothing"])
    model = import_onnx(perceptron(final="Softmax"))
    with pytest.raises(UntrainableModelError, match="no output 'z'"):
        training_graph(model, WEIGHTS, WEIGHTS, loss="softmax-cross-entropy", output="z")


def test_an_unknown_loss_is_refused_with_the_known_ones() -> None:
    with pytest.raises(LocalMisuseError, match="mean-squared-error"):
        loss_named("hinge")


def segmentation(*, final: bool) -> bytes:
    """A net that gives each of four places one of three classes; the Softmax at its end has classes last."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["scores"])]
    nodes += [helper.make_node("Softmax", ["scores"], ["y"], axis=-1)] if final else []
    nodes += [] if final else [helper.make_node("Transpose", ["scores"], ["y"], perm=[0, 2, 1])]
    shape: list[int | str] = ["batch", 4, 3] if final else ["batch", 3, 4]
    return onnx_model(nodes, {"x": ["batch", 4, 5]}, {"y": shape}, {"w": weights(np.random.default_rng(0), 5, 3)})


@pytest.mark.parametrize("final", [True, False])
def test_cross_entropy_over_several_places_averages_over_them(final: bool) -> None:
    model = import_onnx(segmentation(final=final))
    rng = np.random.default_rng(1)
    x, label = rng.normal(size=(2, 4, 5)).astype(np.float32), rng.integers(0, 3, (2, 4))
    w = model.graph.constants["w"].array()
    probability = np.exp(x @ w) / np.exp(x @ w).sum(axis=-1, keepdims=True)
    expected = -np.log(np.take_along_axis(probability, label[..., None], axis=-1)).mean()
    slope = x.reshape(8, 5).T @ (probability - np.eye(3)[label]).reshape(8, 3) / 8
    feeds: dict[str, NDArray[Any]] = {"x": x, "label": label, "w": w}
    step_graph = training_graph(model, ["w"], ["w"], loss="softmax-cross-entropy")
    results = run_onnxruntime(step_graph, {**feeds, "learning_rate": np.array(1.0, np.float32)})
    assert float(results["loss"]) == pytest.approx(expected, rel=1e-5)
    assert np.allclose(w - results["updated/w"], slope, atol=1e-6)
    best = probability.argmax(axis=-1)
    best[1, 3] = (best[1, 3] + 1) % 3
    feeds["label"] = best
    scores = run_onnxruntime(evaluation_graph(model, ["w"], loss="softmax-cross-entropy"), feeds)
    assert int(scores["correct_count"]) == 1
