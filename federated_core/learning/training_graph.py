"""Forward, loss, backward and local optimizer in one graph of standard operators; and its siblings for evaluation.

The three graphs of a bundle come from one model. Parameters are inputs under their own names; what a step makes of
them are outputs named ``updated/<name>``. The state of the optimizer travels the same way.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from federated_core.errors import UntrainableModelError
from federated_core.learning.gradients import backpropagate
from federated_core.learning.gradients.builder import Builder, Expr
from federated_core.learning.graph import Graph, Node, TypedGraph, Value, prune, topological_order
from federated_core.learning.losses import Loss, loss_named
from federated_core.learning.optimizers import emit_updates
from federated_core.learning.step_interface import (
    CORRECT_COUNT,
    LABEL,
    LEARNING_RATE,
    LOSS,
    LOSS_SUM,
    UPDATED,
    Optimizer,
)


def inference_graph(model: TypedGraph, parameters: Sequence[str]) -> Graph:
    """Turn the constants named ``parameters`` into inputs.

    Parameters
    ----------
    model : TypedGraph
        From `import_onnx`.
    parameters : sequence of str
        Names of float32 constants.

    Returns
    -------
    Graph
        The model with the parameters after its own inputs.

    Raises
    ------
    UntrainableModelError
        If a parameter is no float32 constant of the model.

    Examples
    --------
    >>> x, y = Value("x", "float32", ("batch", 2)), Value("y", "float32", ("batch", 2))
    >>> import numpy as np
    >>> from federated_core.learning.graph import Tensor
    >>> constants = {"b": Tensor.of(np.zeros(2, np.float32))}
    >>> graph = Graph("shift", 18, (x,), (y,), constants, (Node("Add", ("x", "b"), ("y",)),))
    >>> types = {"x": x, "y": y, "b": Value("b", "float32", (2,))}
    >>> [value.name for value in inference_graph(TypedGraph(graph, types), ["b"]).inputs]
    ['x', 'b']
    """
    for name in parameters:
        constant = model.graph.constants.get(name)
        if constant is None or constant.dtype != "float32":
            raise UntrainableModelError(f"'{name}' is no float32 initializer of the model")
    rest = {name: tensor for name, tensor in model.graph.constants.items() if name not in set(parameters)}
    inputs = (*model.graph.inputs, *(model.types[name] for name in parameters))
    return prune(msgspec.structs.replace(model.graph, inputs=inputs, constants=rest))


def running_statistics(graph: Graph) -> dict[str, tuple[str, int]]:
    """Return the running means and variances that normalizations in training mode keep.

    Parameters
    ----------
    graph : Graph
        A model.

    Returns
    -------
    dict of str to tuple of str and int
        For each, by its name: the first output of its node, and the number of the output that holds its next value.

    Examples
    --------
    >>> running_statistics(Graph("empty", 18, (), (), {}, ()))
    {}
    """
    nodes = [node for node in graph.nodes if node.op == "BatchNormalization" and node.attributes.get("training_mode")]
    return {
        node.inputs[slot]: (node.outputs[0], output)
        for node in nodes
        for slot, output in ((3, 1), (4, 2))
        if node.inputs[slot] in graph.constants
    }


def at_rest(model: TypedGraph) -> TypedGraph:
    """Switch training mode off: batch normalizations use their running statistics, and nothing is dropped.

    Parameters
    ----------
    model : TypedGraph
        From `import_onnx`, exported for training or not.

    Returns
    -------
    TypedGraph
        The model as its users run it.

    Examples
    --------
    >>> x = Value("x", "float32", (1,))
    >>> node = Node("Dropout", ("x", "", "yes"), ("y",))
    >>> at_rest(TypedGraph(Graph("drop", 18, (x,), (), {}, (node,)), {})).graph.nodes[0].inputs
    ('x', '')
    """

    def rested(node: Node) -> Node:
        if node.op == "Dropout":
            return msgspec.structs.replace(node, inputs=node.inputs[:2])
        if node.op == "BatchNormalization" and node.attributes.get("training_mode"):
            attributes = {key: value for key, value in node.attributes.items() if key != "training_mode"}
            return msgspec.structs.replace(node, attributes=attributes, outputs=node.outputs[:1])
        return node

    nodes = tuple(rested(node) for node in model.graph.nodes)
    return TypedGraph(msgspec.structs.replace(model.graph, nodes=nodes), model.types)


def training_graph(
    model: TypedGraph,
    parameters: Sequence[str],
    trainable: Sequence[str],
    *,
    loss: str,
    output: str | None = None,
    optimizer: Optimizer | None = None,
) -> Graph:
    """Derive the graph of one training step.

    Parameters
    ----------
    model : TypedGraph
        From `import_onnx`; its float32 initializers are constants.
    parameters : sequence of str
        Constants that become inputs, in the order of the layout.
    trainable : sequence of str
        Which of them the step changes.
    loss : str
        A key of `LOSSES`.
    output : str, optional
        The output that the loss reads; the first by default. A final Softmax before a cross-entropy (or Sigmoid before
        a binary one) is looked through, since these losses start from logits.
    optimizer : Optimizer, optional
        Plain SGD by default.

    Returns
    -------
    Graph
        Inputs: the model's, ``label``, ``learning_rate`` (float32 scalar), the parameters, the optimizer's slots.
        Outputs: ``loss`` (mean over the batch), ``updated/<name>`` per trainable parameter and slot.

    Raises
    ------
    UntrainableModelError
        If an operator between a trainable parameter and the loss has no gradient rule, if the loss does not depend on
        a trainable parameter, or the output does not suit the loss.

    References
    ----------
    Zhu et al., "PockEngine", MICRO 2023, derives the backward pass ahead of time too. arXiv:2310.17752

    Examples
    --------
    >>> import numpy as np
    >>> from federated_core.learning.graph import Tensor
    >>> x, y = Value("x", "float32", ("batch", 2)), Value("y", "float32", ("batch", 2))
    >>> weight = {"w": Tensor.of(np.ones(2, np.float32))}
    >>> graph = Graph("scale", 18, (x,), (y,), weight, (Node("Mul", ("x", "w"), ("y",)),))
    >>> model = TypedGraph(graph, {"x": x, "y": y, "w": Value("w", "float32", (2,))})
    >>> [value.name for value in training_graph(model, ["w"], ["w"], loss="mean-squared-error").outputs]
    ['loss', 'updated/w']
    """
    head = _Head.of(model, parameters, loss, output)
    builder = head.builder
    learning_rate = Value(LEARNING_RATE, "float32", ())
    rate = builder.declare(learning_rate)
    reading = head.loss.train(head.logits, head.label)
    gradients = backpropagate(builder, {head.logits.name: reading.gradient}, trainable)
    missing = [name for name in trainable if name not in gradients]
    if missing:
        raise UntrainableModelError(f"the loss does not depend on '{missing[0]}': leave it out of the trainable set")
    updates = emit_updates(builder, gradients, rate, optimizer or Optimizer())
    results = {LOSS: reading.loss} | {UPDATED + name: value for name, value in updates.updated.items()}
    for name, (normalized, slot) in running_statistics(model.graph).items():
        if name in parameters:
            results[UPDATED + name] = builder.extra_output(normalized, slot, "float32", builder.value(name).shape)
    return head.graph("train", (learning_rate,), updates.declared, results)


def evaluation_graph(model: TypedGraph, parameters: Sequence[str], *, loss: str, output: str | None = None) -> Graph:
    """Derive the graph that scores a batch.

    Parameters
    ----------
    model : TypedGraph
        From `import_onnx`.
    parameters : sequence of str
        Constants that become inputs, in the order of the layout.
    loss : str
        A key of `LOSSES`.
    output : str, optional
        The output that the loss reads; the first by default.

    Returns
    -------
    Graph
        Inputs: the model's, ``label``, the parameters. Outputs: ``loss_sum`` (float32) and ``correct_count`` (int64),
        scalars that add up over batches.

    Raises
    ------
    UntrainableModelError
        If the output does not suit the loss.

    Examples
    --------
    >>> import numpy as np
    >>> from federated_core.learning.graph import Tensor
    >>> x, y = Value("x", "float32", ("batch", 2)), Value("y", "float32", ("batch", 2))
    >>> weight = {"w": Tensor.of(np.ones(2, np.float32))}
    >>> graph = Graph("scale", 18, (x,), (y,), weight, (Node("Mul", ("x", "w"), ("y",)),))
    >>> model = TypedGraph(graph, {"x": x, "y": y, "w": Value("w", "float32", (2,))})
    >>> [value.name for value in evaluation_graph(model, ["w"], loss="mean-squared-error").inputs]
    ['x', 'label', 'w']
    """
    head = _Head.of(at_rest(model), parameters, loss, output)
    scores = head.loss.evaluate(head.logits, head.label)
    return head.graph("evaluate", (), (), {LOSS_SUM: scores.loss_sum, CORRECT_COUNT: scores.correct_count})


class _Head(NamedTuple):
    """A model opened at the value that its loss reads."""

    infer: Graph
    input_count: int
    builder: Builder
    loss: Loss
    logits: Expr
    label: Expr

    @classmethod
    def of(cls, model: TypedGraph, parameters: Sequence[str], loss: str, output: str | None) -> "_Head":
        infer = inference_graph(model, parameters)
        chosen = loss_named(loss)
        name = loss_input(infer, loss, output)
        turned = _with_classes_second(model, infer, name, loss)
        types = {**model.types, **{value.name: value for _, value in turned}}
        builder = Builder(types, infer.constants, (*infer.nodes, *(node for node, _ in turned)), infer.opset)
        logits = builder.value(turned[0][1].name if turned else name)
        if logits.dtype != "float32":
            raise UntrainableModelError(f"output '{logits.name}' is {logits.dtype}, expected float32")
        label = builder.declare(Value(LABEL, chosen.label_dtype, chosen.label_shape(logits.shape)))
        return cls(infer, len(model.graph.inputs), builder, chosen, logits, label)

    def graph(self, name: str, before: Sequence[Value], after: Sequence[Value], results: Mapping[str, Expr]) -> Graph:
        """Close the graph: its results under their fixed names, nodes that nobody reads dropped."""
        label = Value(self.label.name, self.label.dtype, self.label.shape)
        examples, parameters = self.infer.inputs[: self.input_count], self.infer.inputs[self.input_count :]
        outputs = tuple(Value(key, value.dtype, value.shape) for key, value in results.items())
        nodes = _named(self.builder, {key: value.name for key, value in results.items()})
        inputs = (*examples, label, *before, *parameters, *after)
        known = {value.name for value in inputs} | set(self.builder.constants)
        ordered = topological_order(nodes, known)
        return prune(Graph(name, self.infer.opset, inputs, outputs, self.builder.constants, ordered))


def _with_classes_second(model: TypedGraph, infer: Graph, name: str, loss: str) -> tuple[tuple[Node, Value], ...]:
    """Return a Transpose to [batch, classes, ...] if the Softmax that is looked through has classes elsewhere."""
    after = [node for node in infer.nodes if name in node.inputs and node.op in SQUASHING.get(loss, ())]
    if loss != "softmax-cross-entropy" or not after or name not in model.types:
        return ()
    value = model.types[name]
    rank, axis = len(value.shape), after[0].attributes.get("axis", -1)
    if not isinstance(axis, int) or rank < 3 or axis % rank == 1:
        return ()
    order = (0, axis % rank, *(other for other in range(1, rank) if other != axis % rank))
    turned = Value(f"{name}/classes-second", value.dtype, tuple(value.shape[place] for place in order))
    return ((Node("Transpose", (name,), (turned.name,), {"perm": order}), turned),)


def _named(builder: Builder, results: Mapping[str, str]) -> tuple[Node, ...]:
    """Give each result its fixed name: by renaming what was emitted for it, or by an Identity."""
    renamed: dict[str, str] = {}
    identities = []
    for key, name in results.items():
        if builder.emitted_here(name) and name not in renamed:
            renamed[name] = key
        else:
            identities.append(Node("Identity", (renamed.get(name, name),), (key,)))

    def rename(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(renamed.get(name, name) for name in names)

    nodes = [
        msgspec.structs.replace(node, inputs=rename(node.inputs), outputs=rename(node.outputs))
        for node in builder.nodes
    ]
    return (*nodes, *identities)


def loss_input(graph: Graph, loss: str, output: str | None = None) -> str:
    """Name the value that a loss reads.

    Parameters
    ----------
    graph : Graph
        A model.
    loss : str
        A key of `LOSSES`.
    output : str, optional
        An output of the model; the first by default.

    Returns
    -------
    str
        That output, or what stands before a final Softmax or Sigmoid that the loss contains already (`SQUASHING`).

    Raises
    ------
    UntrainableModelError
        If there is no such output.

    Examples
    --------
    >>> y = Value("y", "float32", ("batch", 2))
    >>> graph = Graph("net", 18, (), (y,), {}, (Node("Softmax", ("z",), ("y",)),))
    >>> loss_input(graph, "softmax-cross-entropy"), loss_input(graph, "mean-squared-error")
    ('z', 'y')
    """
    names = [value.name for value in graph.outputs]
    if output is not None and output not in names:
        raise UntrainableModelError(f"the model has no output '{output}'; expected one of {', '.join(names)}")
    name = output or names[0]
    last = next((node for node in graph.nodes if name in node.outputs), None)
    while last is not None and last.op == "Identity":
        name = last.inputs[0]
        last = next((node for node in graph.nodes if name in node.outputs), None)
    if last is not None and last.op in SQUASHING.get(loss, ()):
        return last.inputs[0]
    return name


SQUASHING: Final[Mapping[str, tuple[str, ...]]] = {
    "softmax-cross-entropy": ("Softmax", "LogSoftmax"),
    "binary-cross-entropy": ("Sigmoid",),
}
"""What a model may end in although the loss starts from logits."""
