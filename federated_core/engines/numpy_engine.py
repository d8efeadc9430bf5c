"""The engine on numpy alone: for boards without an onnxruntime wheel, and in float64 a judge of the other engine.

It reads the bundle's ``.graph`` files, so it needs neither onnxruntime nor onnx nor protobuf. Values are dropped after
their last reader.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from federated_core.engines.engine import Evaluation, as_declared, evaluate_in_batches, example_feeds, initial_state
from federated_core.engines.numpy_operators import NUMPY_OPERATORS
from federated_core.engines.numpy_operators.operator import Array, Call
from federated_core.errors import LocalMisuseError
from federated_core.learning.bundle import Bundle
from federated_core.learning.graph import Graph, Node, needed_names
from federated_core.learning.step_interface import CORRECT_COUNT, LABEL, LEARNING_RATE, LOSS, LOSS_SUM, UPDATED


class Program:
    """A graph ready to run: constants as arrays, and after which node each value is done with."""

    def __init__(self, graph: Graph) -> None:
        unknown = sorted({node.op for node in graph.nodes} - set(NUMPY_OPERATORS) - {"Scan"})
        if unknown:
            raise LocalMisuseError(f"the numpy engine does not run {', '.join(unknown)}")
        self.graph = graph
        self._constants = {name: constant.array() for name, constant in graph.constants.items()}
        kept = {value.name for value in graph.outputs}
        last_reader = {name: index for index, node in enumerate(graph.nodes) for name in needed_names(node)}
        self._done: list[list[str]] = [[] for _ in graph.nodes]
        own = {value.name for value in graph.inputs} | {name for node in graph.nodes for name in node.outputs}
        for name in own.intersection(last_reader) - kept:
            self._done[last_reader[name]].append(name)
        self._bodies = {
            index: Program(body)
            for index, node in enumerate(graph.nodes)
            if isinstance(body := node.attributes.get("body"), Graph)
        }

    def run(self, feeds: Mapping[str, Array], outer: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Compute the outputs by name; ``outer`` holds what a body reads from outside."""
        values: dict[str, Array] = {**(outer or {}), **self._constants, **feeds}
        for index, node in enumerate(self.graph.nodes):
            inputs = tuple(values[name] if name else None for name in node.inputs)
            if index in self._bodies:
                results = self._scan(node, self._bodies[index], inputs, values)
            else:
                found = NUMPY_OPERATORS[node.op](Call(node, inputs))
                results = found if isinstance(found, tuple) else (found,)
            values.update((name, result) for name, result in zip(node.outputs, results, strict=False) if name)
            for name in self._done[index]:
                del values[name]
        return {value.name: values[value.name] for value in self.graph.outputs}

    @staticmethod
    def _scan(
        node: Node, body: "Program", inputs: tuple[Array | None, ...], values: Mapping[str, Array]
    ) -> tuple[Array, ...]:
        count = node.attributes["num_scan_inputs"]
        directions = node.attributes.get("scan_input_directions") or (0,)
        assert isinstance(count, int)
        assert isinstance(directions, tuple)
        given = [array for array in inputs if array is not None]
        states, sequences = given[: len(given) - count], given[len(given) - count :]
        steps = range(len(sequences[0]))
        collected: list[list[Array]] = []
        names = [value.name for value in body.graph.inputs]
        for at in reversed(steps) if directions[0] else steps:
            items = [sequence[at] for sequence in sequences]
            results = list(body.run(dict(zip(names, [*states, *items], strict=True)), values).values())
            states, row = results[: len(states)], results[len(states) :]
            collected.append(row)
        if directions[0]:
            collected.reverse()
        return *states, *(np.stack(column) for column in zip(*collected, strict=True))


class NumpyEngine:
    """Opens bundles with numpy."""

    def open_training(self, bundle: Bundle) -> "NumpyTrainingSession":
        """Open the training-step graph."""
        return NumpyTrainingSession(bundle)

    def open_evaluation(self, bundle: Bundle) -> "NumpyEvaluationSession":
        """Open the evaluation graph."""
        return NumpyEvaluationSession(bundle)

    def open_inference(self, bundle: Bundle, tensors: Mapping[str, NDArray[np.float32]]) -> "NumpyInferenceSession":
        """Open the inference graph with these parameters, which the caller must not change any more."""
        return NumpyInferenceSession(bundle, tensors)

    def infer(
        self, bundle: Bundle, tensors: Mapping[str, NDArray[np.float32]], inputs: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        """Run the model once and return its outputs by name."""
        return self.open_inference(bundle, tensors).run(inputs)


class NumpyTrainingSession:
    """A training-step graph with its parameters; see `TrainingSession`."""

    def __init__(self, bundle: Bundle) -> None:
        self._graph = bundle.graph("train")
        self._program = Program(self._graph)
        self._layout = bundle.description.layout
        self._state: dict[str, NDArray[np.float32]] = {}

    def load(self, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        """Set every parameter of the layout; what the optimizer remembered is forgotten."""
        self._state = initial_state(self._graph, self._layout, tensors)

    def step(self, inputs: Mapping[str, NDArray[Any]], label: NDArray[Any], learning_rate: float) -> float:
        """Train on one batch of any size and return its mean loss before the step."""
        if not self._state:
            raise LocalMisuseError("load parameters before the first step")
        feeds = example_feeds(self._graph, {**inputs, LABEL: label})
        rate = {LEARNING_RATE: np.array(learning_rate, np.float32)}
        results = self._program.run({**feeds, **rate, **self._state})
        loss = float(results.pop(LOSS))
        self._state |= {name.removeprefix(UPDATED): array for name, array in results.items()}
        return loss

    def parameters(self) -> dict[str, NDArray[np.float32]]:
        """Return copies of all parameters."""
        if not self._state:
            raise LocalMisuseError("load parameters before asking for them")
        return {spec.name: self._state[spec.name].copy() for spec in self._layout.parameters}


class NumpyEvaluationSession:
    """An evaluation graph; see `EvaluationSession`."""

    def __init__(self, bundle: Bundle) -> None:
        self._graph = bundle.graph("evaluate")
        self._program = Program(self._graph)

    def evaluate(
        self,
        tensors: Mapping[str, NDArray[np.float32]],
        inputs: Mapping[str, NDArray[Any]],
        label: NDArray[Any],
        *,
        batch_size: int = 64,
    ) -> Evaluation:
        """Score examples in batches."""
        declared = {value.name: value for value in self._graph.inputs}
        parameters = {name: as_declared(declared[name], array) for name, array in tensors.items()}
        examples = example_feeds(self._graph, {**inputs, LABEL: label})

        def score(batch: dict[str, NDArray[Any]]) -> tuple[float, int]:
            results = self._program.run({**parameters, **batch})
            return float(results[LOSS_SUM]), int(results[CORRECT_COUNT])

        return evaluate_in_batches(score, examples, len(label), batch_size)


class NumpyInferenceSession:
    """An inference graph with its parameters; see `InferenceSession`."""

    def __init__(self, bundle: Bundle, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        self._graph = bundle.graph("infer")
        self._program = Program(self._graph)
        self._parameters = example_feeds(self._graph, tensors)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the model on a batch and return its outputs by name."""
        return self._program.run({**self._parameters, **example_feeds(self._graph, inputs)})
