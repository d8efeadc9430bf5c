"""Nets exported by PyTorch train like PyTorch: gradients of matching parameters, and losses over twenty steps."""

import copy
import io
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'fallow[conformance]'")

from cloud_aggregator.model_building import BuiltBundle, build_bundle  # noqa: E402
from federated_core.engines.engine import Engine  # noqa: E402
from federated_core.engines.numpy_engine import NumpyEngine, Program  # noqa: E402
from federated_core.engines.onnxruntime_engine import OnnxruntimeEngine  # noqa: E402
from federated_core.learning.bundle import decode_bundle  # noqa: E402
from federated_core.learning.step_interface import Optimizer  # noqa: E402
from tests.conformance.torch_models import NETS  # noqa: E402
from tests.learning.central_differences import in_float64, run_onnxruntime  # noqa: E402

pytestmark = pytest.mark.conformance

GRADIENT_TOLERANCE = 3e-6
PRECISE_TOLERANCE = 3e-7
"""Of the same graph in float64: what constants that the exporter rounded to float32 leave."""
ZERO_GRADIENT_RATIO = 1e-3
"""Of a gradient that is zero by construction (the bias of an attention's keys) only rounding is left to compare."""
LOSS_TOLERANCE = 1e-6
BATCH = 8
FOLDED = "depthwise CNN"
"""The exporter folds its normalizations into other weights, so there are no same parameters to step."""
STYLES: Mapping[str, dict[str, Any]] = {
    "TorchScript": {"dynamo": False, "opset_version": 17, "do_constant_folding": True},
    "TorchScript, unfolded": {"dynamo": False, "opset_version": 17, "do_constant_folding": False},
    "dynamo": {"dynamo": True, "opset_version": 18, "external_data": False},
}


def batch(name: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(11)
    net = NETS[name]
    return rng.normal(size=(BATCH, *net.shape)).astype(np.float32), rng.integers(0, net.class_count, BATCH)


def made(name: str) -> Any:
    """Make a net whose parameters all differ: exporters merge equal ones (two fresh normalizations)."""
    torch.manual_seed(5)
    net = NETS[name].make()
    with torch.no_grad():
        for value in net.parameters():
            if value.ndim == 1:
                value.add_(torch.randn_like(value) * 0.05)
    return net.eval()


def exported(net: Any, x: NDArray[np.float32], style: str, *, free_batch: bool) -> bytes:
    options = dict(STYLES[style])
    if free_batch and options["dynamo"]:
        options["dynamic_shapes"] = ({0: torch.export.Dim("batch")},)
    elif free_batch:
        options["dynamic_axes"] = {"x": {0: "batch"}, "y": {0: "batch"}}
    target = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (torch.from_numpy(x),), target, input_names=["x"], output_names=["y"], **options)
    return target.getvalue()


def torch_gradients(net: Any, x: NDArray[np.float32], label: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Return PyTorch's gradients in float64: in float32 its own are off by up to 2e-5 (sums over an image)."""
    precise = copy.deepcopy(net).double()
    torch.nn.functional.cross_entropy(precise(torch.from_numpy(x).double()), torch.from_numpy(label)).backward()
    return {name: value.grad.numpy() for name, value in precise.named_parameters()}


def counterpart(
    values: NDArray[np.float32], weights: dict[str, NDArray[np.float32]], gradients: dict[str, NDArray[np.float64]]
) -> NDArray[np.float64] | None:
    """Find the gradient of the PyTorch parameter with the same values, as it is or transposed."""
    for name, weight in weights.items():
        if weight.shape == values.shape and np.array_equal(weight, values):
            return gradients[name]
        if weight.ndim == 2 and weight.T.shape == values.shape and np.array_equal(weight.T, values):
            return gradients[name].T
    return None


@pytest.mark.parametrize("free_batch", [True, False], ids=["free batch", "fixed batch"])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", NETS)
def test_gradients_are_pytorchs_where_parameters_match(name: str, style: str, free_batch: bool) -> None:
    x, label = batch(name)
    net = made(name)
    model = exported(net, x, style, free_batch=free_batch)
    built = build_bundle(model, name="net", loss="softmax-cross-entropy", optimizer=Optimizer("momentum"))
    graph = decode_bundle(built.data).graph("train")
    feeds: dict[str, NDArray[Any]] = {"x": x, "label": label, "learning_rate": np.array(0.1, np.float32)}
    feeds |= built.tensors | {f"slot/velocity/{key}": np.zeros_like(value) for key, value in built.tensors.items()}
    single = run_onnxruntime(graph, feeds)
    wider = {key: array.astype(np.float64) if array.dtype == np.float32 else array for key, array in feeds.items()}
    double = Program(in_float64(graph)).run(wider)
    weights = {key: value.detach().numpy().copy() for key, value in net.named_parameters()}
    gradients = torch_gradients(net, x, label)
    largest = max(float(np.abs(gradient).max()) for gradient in gradients.values())
    errors, precise_errors = {}, {}
    for key, values in built.tensors.items():
        expected = counterpart(values, weights, gradients)
        if expected is not None:  # The first velocity is the gradient.
            slot = f"updated/slot/velocity/{key}"
            scale = max(float(np.abs(expected).max()), ZERO_GRADIENT_RATIO * largest)
            errors[key] = float(np.abs(single[slot] - expected).max()) / scale
            precise_errors[key] = float(np.abs(double[slot] - expected).max()) / scale
    assert len(errors) >= 2
    assert {key: error for key, error in errors.items() if error > GRADIENT_TOLERANCE} == {}
    assert {key: error for key, error in precise_errors.items() if error > PRECISE_TOLERANCE} == {}


def losses(
    engine: Engine, built: BuiltBundle, x: NDArray[np.float32], label: NDArray[np.int64], rate: float
) -> list[float]:
    session = engine.open_training(decode_bundle(built.data))
    session.load(built.tensors)
    return [session.step({"x": x}, label, rate) for _ in range(20)]


@pytest.mark.parametrize("name", [name for name in NETS if name != FOLDED])
def test_twenty_steps_of_momentum_have_pytorchs_losses(name: str) -> None:
    x, label = batch(name)
    net = made(name)
    model = exported(net, x, "TorchScript", free_batch=True)
    built = build_bundle(model, name="net", loss="softmax-cross-entropy", optimizer=Optimizer("momentum"))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    expected = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(torch.from_numpy(x)), torch.from_numpy(label))
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    found = losses(OnnxruntimeEngine(), built, x, label, 0.02)
    assert np.abs(np.array(found) - expected).max() <= LOSS_TOLERANCE * max(expected)


@pytest.mark.parametrize("name", NETS)
def test_the_numpy_engine_has_the_same_losses(name: str) -> None:
    x, label = batch(name)
    model = exported(made(name), x, "TorchScript", free_batch=True)
    built = build_bundle(model, name="net", loss="softmax-cross-entropy", optimizer=Optimizer("momentum"))
    left, right = (losses(engine, built, x, label, 0.01) for engine in (NumpyEngine(), OnnxruntimeEngine()))
    assert left == pytest.approx(right, rel=1e-5)
