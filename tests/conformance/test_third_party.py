"""Files that nobody here made train too: the loss falls, gradients are right, and the weights go back into the file."""

from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from cloud_aggregator.model_building import BuiltBundle, build_bundle, write_parameters
from federated_core.engines.numpy_engine import Program
from federated_core.engines.onnxruntime_engine import OnnxruntimeEngine
from federated_core.learning.bundle import Bundle, decode_bundle
from federated_core.learning.graph import Value
from federated_core.learning.step_interface import LABEL, LOSS, SLOT, UPDATED, Optimizer
from tests.conformance.third_party import FILES, drawn, fetched
from tests.learning.central_differences import in_float64, run_onnxruntime

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(400)]

STEP_COUNT = 50
LENGTH = 6
"""Of a free dimension that is not the batch."""
FALL_MIN = 0.3
PRECISE_TOLERANCE = 1e-4
VANISHING_RATIO = 1e-6
"""Of a gradient that differences of the whole loss cannot measure (the bias of an attention's keys is zero)."""
TOLERANCE = 3e-3
"""Of float32 through dozens of layers, relative to the gradient's norm along a direction."""


class Case:
    """A file, built to be trained, and one batch for it."""

    def __init__(self, name: str, optimizer: str) -> None:
        self.file = FILES[name]
        self.model = fetched(self.file)
        self.built: BuiltBundle = build_bundle(
            self.model,
            name="third party",
            loss=self.file.loss,
            output=self.file.output,
            fixed=self.file.fixed,
            optimizer=Optimizer("adam" if optimizer == "adam" else "momentum"),
        )
        self.bundle: Bundle = decode_bundle(self.built.data)
        rng = np.random.default_rng(3)
        description = self.bundle.description
        self.inputs = {value.name: drawn(value.dtype, self.shape(value), rng) for value in description.inputs}
        outputs = OnnxruntimeEngine().infer(self.bundle, self.built.tensors, self.inputs)
        output = outputs[self.file.output or description.outputs[0].name]
        shape = self.shape(description.label)
        self.label: NDArray[Any]
        if self.file.loss == "softmax-cross-entropy":
            self.label = rng.integers(0, output.shape[-1], shape)
        elif self.file.loss == "binary-cross-entropy":
            self.label = np.ones(shape, np.float32)
        else:  # Something that it can learn to say: its own answer, backwards.
            self.label = np.flip(output, axis=-1) if output.shape[-1] > 1 else 1 - output

    def shape(self, value: Value) -> tuple[int, ...]:
        """Give free dimensions sizes: the first one of each value is the batch."""
        first = self.bundle.description.inputs[0].shape[0]
        words = {dim for dim in value.shape if isinstance(dim, str)}
        sizes = {word: self.file.batch if word in {first, "batch"} else LENGTH for word in words}
        return tuple(dim if isinstance(dim, int) else sizes[dim] for dim in value.shape)


class Trained(NamedTuple):
    """A file after fifty steps on one batch."""

    case: Case
    losses: list[float]
    parameters: dict[str, NDArray[np.float32]]


@pytest.fixture(scope="module", params=FILES)
def trained(request: pytest.FixtureRequest) -> Trained:
    """Train once for the tests that look at the outcome."""
    case = Case(request.param, "adam")
    session = OnnxruntimeEngine().open_training(case.bundle)
    session.load(case.built.tensors)
    losses = [session.step(case.inputs, case.label, case.file.rate) for _ in range(STEP_COUNT + 1)]
    return Trained(case, losses, session.parameters())


def test_the_loss_falls_by_a_third_in_fifty_steps(trained: Trained) -> None:
    assert trained.losses[-1] <= (1 - FALL_MIN) * trained.losses[0]


def test_the_file_with_new_weights_gives_the_same_outputs_in_plain_onnxruntime(trained: Trained) -> None:
    case, _, parameters = trained
    expected = OnnxruntimeEngine().infer(case.bundle, parameters, case.inputs)
    session = onnxruntime.InferenceSession(write_parameters(case.model, parameters), providers=["CPUExecutionProvider"])
    answers = {key: np.array(number) for key, number in case.file.fixed.items()}
    feeds = {item.name: case.inputs.get(item.name, answers.get(item.name)) for item in session.get_inputs()}
    found = dict(zip([item.name for item in session.get_outputs()], session.run(None, feeds), strict=True))
    for key, array in expected.items():
        scale = max(1e-6, float(np.abs(array.astype(np.float64)).max()))
        assert float(np.abs(found[key].astype(np.float64) - array).max()) <= 1e-4 * scale, key


@pytest.mark.parametrize("name", FILES)
def test_three_random_parameters_have_the_gradient_of_central_differences(name: str) -> None:
    case = Case(name, "momentum")
    graph = case.bundle.graph("train")
    slots = {f"{SLOT}velocity/{key}": np.zeros_like(array) for key, array in case.built.tensors.items()}
    rate = {"learning_rate": np.array(1.0, np.float32)}
    feeds: dict[str, NDArray[Any]] = {**case.inputs, LABEL: case.label, **rate, **case.built.tensors, **slots}
    precise = {key: array.astype(np.float64) if array.dtype == np.float32 else array for key, array in feeds.items()}
    program = Program(in_float64(graph))
    single, double = run_onnxruntime(graph, feeds), program.run(precise)
    rng = np.random.default_rng(7)
    norms = {key: float(np.linalg.norm(double[f"{UPDATED}{SLOT}velocity/{key}"])) for key in case.built.tensors}
    alive = [key for key, norm in norms.items() if norm > VANISHING_RATIO * max(norms.values())]
    for key in rng.choice(alive, 3, replace=False):
        gradient = double[f"{UPDATED}{SLOT}velocity/{key}"]
        direction = rng.normal(size=gradient.shape)
        slope = float(np.sum(gradient * direction))
        size = max(abs(slope), float(np.linalg.norm(gradient)))
        differences = [
            _difference(program, precise, key, direction * width / np.linalg.norm(direction)) / width
            for width in (1e-4, 1e-5, 1e-6)
        ]
        scaled = slope / float(np.linalg.norm(direction))
        floor = size / float(np.linalg.norm(direction))
        # A kink may lie within one width, and cancellation spoils another: one of three must agree.
        assert min(abs(difference - scaled) for difference in differences) <= PRECISE_TOLERANCE * floor + 1e-12, key
        error = single[f"{UPDATED}{SLOT}velocity/{key}"] - gradient
        assert float(np.linalg.norm(error)) <= TOLERANCE * float(np.linalg.norm(gradient)) + 1e-9, key


def _difference(program: Program, feeds: dict[str, NDArray[Any]], key: str, move: NDArray[np.float64]) -> float:
    ahead, behind = (program.run({**feeds, key: feeds[key] + sign * move})[LOSS] for sign in (0.5, -0.5))
    return float(ahead - behind)
