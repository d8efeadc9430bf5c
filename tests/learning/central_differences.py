"""Gradients of an ONNX model by the table of rules, against central differences in float64."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from federated_core.learning.gradients import active_names, backpropagate
from federated_core.learning.gradients.builder import Builder
from federated_core.learning.graph import (
    ONNX_TYPE_CODES,
    Attribute,
    Graph,
    Node,
    Tensor,
    TypedGraph,
    Value,
    check_graph,
    prune,
    topological_order,
)
from federated_core.learning.onnx_graph import emit_onnx

Arrays = Mapping[str, NDArray[Any]]


class Erf(OpRun):
    """Erf in the precision of its input; the reference's own rounds to float32."""

    def _run(self, x: NDArray[Any]) -> tuple[NDArray[Any]]:
        return (np.vectorize(math.erf, otypes=[x.dtype])(x),)


class Gelu(OpRun):
    """Gelu in the precision of its input, for the same reason."""

    def _run(self, x: NDArray[Any], approximate: str | None = None) -> tuple[NDArray[Any]]:
        if approximate == "tanh":
            return (0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),)
        return (0.5 * x * (1 + np.vectorize(math.erf, otypes=[x.dtype])(x * np.sqrt(0.5))),)


class MeanVarianceNormalization(OpRun):
    """The operator's own definition; the reference expands it with float32 constants."""

    def _run(self, x: NDArray[Any], axes: Sequence[int] | None = None) -> tuple[NDArray[Any]]:
        over = tuple(axes or (0, 2, 3))
        centered = x - x.mean(axis=over, keepdims=True)
        return (centered / (np.sqrt((centered**2).mean(axis=over, keepdims=True)) + 1e-9),)


class GroupNormalization(OpRun):
    """The operator's own definition; the reference expands it in float32."""

    def _run(
        self,
        x: NDArray[Any],
        scale: NDArray[Any],
        bias: NDArray[Any],
        epsilon: float = 1e-5,
        num_groups: int = 1,
        stash_type: int = 1,
    ) -> tuple[NDArray[Any]]:
        grouped = x.reshape((x.shape[0], num_groups, -1))
        centered = grouped - grouped.mean(axis=2, keepdims=True)
        h = centered / np.sqrt((centered**2).mean(axis=2, keepdims=True) + epsilon)
        per_channel = (-1, *(1,) * (x.ndim - 2))
        return (h.reshape(x.shape) * scale.reshape(per_channel) + bias.reshape(per_channel),)


PRECISE_OPERATORS = [Erf, Gelu, GroupNormalization, MeanVarianceNormalization]


class GradientGraph(NamedTuple):
    """A graph from inputs and seeds (the gradients of outputs) to gradients of inputs."""

    graph: Graph
    seeds: tuple[tuple[str, Value], ...]
    """Each float output, and the input that holds its gradient."""
    gradients: Mapping[str, str]
    """The output that holds the gradient of each wanted value."""


def gradient_graph(model: TypedGraph, wanted: Sequence[str]) -> GradientGraph:
    """Differentiate every float output with respect to ``wanted``."""
    source = model.graph
    builder = Builder(model.types, source.constants, source.nodes, source.opset)
    active = active_names(source.nodes, wanted)
    seeds = tuple(
        (value.name, Value(f"seed/{value.name}", value.dtype, value.shape))
        for value in source.outputs
        if value.dtype.startswith("float") and value.name in active
    )
    found = backpropagate(builder, {name: builder.declare(value) for name, value in seeds}, list(wanted))
    outputs = {value.name: Value(value.name, value.dtype, value.shape) for value in found.values()}
    inputs = (*source.inputs, *(value for _, value in seeds))
    nodes = topological_order(builder.nodes, {value.name for value in inputs} | set(builder.constants))
    graph = prune(Graph("gradients", source.opset, inputs, tuple(outputs.values()), builder.constants, nodes))
    check_graph(graph)
    return GradientGraph(graph, seeds, {name: value.name for name, value in found.items()})


def run_onnxruntime(graph: Graph, feeds: Arrays) -> dict[str, NDArray[Any]]:
    """Run a graph on stock onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(emit_onnx(graph), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in graph.outputs]
    read = {value.name for value in session.get_inputs()}
    return dict(zip(names, session.run(names, {key: feeds[key] for key in read}), strict=True))


def in_float64(graph: Graph) -> Graph:
    """Return the same graph for float64 where it was for float32: values, constants and casts."""

    def wider(tensor: Tensor) -> Tensor:
        return Tensor.of(tensor.array().astype(np.float64)) if tensor.dtype == "float32" else tensor

    def value(old: Value) -> Value:
        return msgspec.structs.replace(old, dtype="float64") if old.dtype == "float32" else old

    def attribute(node: Node, key: str, old: Attribute) -> Attribute:
        if isinstance(old, Tensor):
            return wider(old)
        if isinstance(old, Graph):
            return in_float64(old)
        single = ONNX_TYPE_CODES["float32"]
        return ONNX_TYPE_CODES["float64"] if node.op == "Cast" and key == "to" and old == single else old

    nodes = tuple(
        msgspec.structs.replace(
            node, attributes={key: attribute(node, key, old) for key, old in node.attributes.items()}
        )
        for node in graph.nodes
    )
    return msgspec.structs.replace(
        graph,
        inputs=tuple(value(old) for old in graph.inputs),
        outputs=tuple(value(old) for old in graph.outputs),
        constants={name: wider(constant) for name, constant in graph.constants.items()},
        nodes=nodes,
    )


def reference_in_float64(graph: Graph) -> Callable[[Arrays], dict[str, NDArray[Any]]]:
    """Return a function that runs a graph in float64 on the ONNX project's own reference."""
    model = onnx.load_model_from_string(emit_onnx(in_float64(graph)))
    evaluator = ReferenceEvaluator(model, new_ops=PRECISE_OPERATORS)
    names = [value.name for value in graph.outputs]

    def run(feeds: Arrays) -> dict[str, NDArray[Any]]:
        return dict(zip(names, evaluator.run(names, dict(feeds)), strict=True))

    return run


def worst_error(
    model: TypedGraph, feeds: Arrays, wanted: Sequence[str], rng: np.random.Generator, *, width: float = 1e-6
) -> float:
    """Compare each gradient along one random direction; return the worst relative error.

    The error is relative to the larger of the derivative and the norm of the gradient: a direction may be
    perpendicular to it by chance.
    """
    built = gradient_graph(model, wanted)
    forward = reference_in_float64(model.graph)
    precise = {name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in feeds.items()}
    shapes = forward(precise)
    seeds = {value.name: rng.normal(size=shapes[name].shape).astype(np.float32) for name, value in built.seeds}
    computed = run_onnxruntime(built.graph, {**feeds, **seeds})

    def total(inputs: Arrays) -> float:
        outputs = forward(inputs)
        for name, _ in built.seeds:
            assert outputs[name].dtype == np.float64, f"{name} is {outputs[name].dtype}"
        return sum(float(np.sum(outputs[name] * seeds[value.name].astype(np.float64))) for name, value in built.seeds)

    worst = 0.0
    for name in wanted:
        gradient = computed[built.gradients[name]] if name in built.gradients else np.zeros(feeds[name].shape)
        assert gradient.shape == feeds[name].shape, f"{name}: {gradient.shape} is not {feeds[name].shape}"
        if not gradient.size:
            continue
        direction = rng.normal(size=feeds[name].shape)
        ahead = total({**precise, name: precise[name] + width * direction})
        behind = total({**precise, name: precise[name] - width * direction})
        expected = (ahead - behind) / (2 * width)
        found = float(np.sum(gradient.astype(np.float64) * direction))
        scale = max(abs(expected), float(np.linalg.norm(gradient)), 1e-3)
        error = abs(found - expected) / scale
        worst = error if math.isnan(error) else max(error, worst)
    return worst
