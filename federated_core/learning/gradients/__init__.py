"""Reverse-mode differentiation of graphs: `GRADIENTS` has one rule per operator, `backpropagate` walks the graph once.

To add an operator: write a rule in the module of its family (what comes in is an `Application`, what goes out is one
gradient per input, None where there is none), put it into that module's ``RULES``, and the conformance suite picks up
the operator's ONNX node cases by itself. ``docs/training-compiler.md`` walks through an example.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from federated_core.errors import UntrainableModelError
from federated_core.learning.gradients import (
    convolution,
    elementwise,
    indexing,
    linear,
    normalization,
    pooling,
    recurrent,
    reductions,
    resizing,
    shaping,
)
from federated_core.learning.gradients.application import Application, Rule
from federated_core.learning.gradients.builder import Builder, Expr
from federated_core.learning.graph import Node, needed_names

GRADIENTS: Final[Mapping[str, Rule]] = {
    **elementwise.RULES,
    **linear.RULES,
    **convolution.RULES,
    **pooling.RULES,
    **shaping.RULES,
    **indexing.RULES,
    **reductions.RULES,
    **normalization.RULES,
    **recurrent.RULES,
    **resizing.RULES,
}
"""The gradient rule of each operator."""

_NO_GRADIENT = """
ArgMax ArgMin And Ceil ConstantOfShape DynamicQuantizeLinear Equal EyeLike Floor Greater GreaterOrEqual Hardmax IsInf
IsNaN Less LessOrEqual NonZero Not OneHot Or QuantizeLinear Range Round Shape Sign Size Xor
"""
NO_GRADIENT: Final = frozenset(_NO_GRADIENT.split())
"""Operators whose derivative is zero wherever it exists: the walk stops at them."""


def active_names(nodes: Sequence[Node], wanted: Sequence[str]) -> set[str]:
    """Return ``wanted`` and every value that depends on one of them through operators with a gradient."""
    active = set(wanted)
    for node in nodes:
        if node.op not in NO_GRADIENT and active & needed_names(node):
            active.update(name for name in node.outputs if name)
    return active


def leading_names(nodes: Sequence[Node], ends: Iterable[str]) -> set[str]:
    """Return ``ends`` and every value that one of them depends on through operators with a gradient."""
    leading = set(ends)
    for node in reversed(nodes):
        if node.op not in NO_GRADIENT and leading.intersection(node.outputs):
            leading |= needed_names(node)
    return leading


def backpropagate(builder: Builder, seeds: Mapping[str, Expr], wanted: Sequence[str]) -> dict[str, Expr]:
    """Emit the nodes that compute the gradients of ``wanted``.

    Only what depends on a wanted value *and* leads to a seed is differentiated, so training a head costs a head.

    Parameters
    ----------
    builder : Builder
        Holds the forward nodes in topological order, and their types.
    seeds : mapping of str to Expr
        The gradient of the loss with respect to some forward values, of their shapes.
    wanted : sequence of str
        Parameters, or any values of the forward graph.

    Returns
    -------
    dict of str to Expr
        The gradient of each wanted value that the seeds depend on.

    Raises
    ------
    UntrainableModelError
        If an operator on the way has no rule, or a rule cannot cope with the node's shapes or attributes.

    References
    ----------
    Griewank and Walther, "Evaluating Derivatives", SIAM 2008, chapter 3: reverse accumulation with activity analysis.

    Examples
    --------
    >>> from federated_core.learning.graph import Value
    >>> x, y = Value("x", "float32", (2,)), Value("y", "float32", (2,))
    >>> builder = Builder({"x": x, "y": y}, {}, [Node("Exp", ("x",), ("y",))], 18)
    >>> seed = builder.declare(Value("seed", "float32", (2,)))
    >>> gradient = backpropagate(builder, {"y": seed}, ["x"])["x"]
    >>> builder.nodes[-1].op, builder.nodes[-1].inputs, builder.nodes[-1].outputs == (gradient.name,)
    ('Mul', ('seed', 'y'), True)
    """
    forward = builder.nodes
    active = active_names(forward, wanted)
    terms: dict[str, list[Expr]] = {name: [seed] for name, seed in seeds.items() if name in active}
    for index in reversed(range(len(forward))):
        node = forward[index]
        if node.op in NO_GRADIENT or not active.intersection(node.inputs):
            continue
        arriving = tuple(builder.sum(terms[name]) if name in terms else None for name in node.outputs)
        if all(gradient is None for gradient in arriving):
            continue
        rule = GRADIENTS.get(node.op)
        if rule is None:
            raise UntrainableModelError(
                f"node '{node.name or node.outputs[0]}' uses {node.op}, which has no gradient rule: "
                f"{_remedy(forward, node, wanted)}, or export the model without it"
            )
        try:
            found = rule(Application(builder, node, arriving, active))
        except UntrainableModelError as error:
            raise UntrainableModelError(f"{error}; {_remedy(forward, node, wanted)}") from error
        for name, gradient in zip(node.inputs, found, strict=False):
            if gradient is not None and name in active:
                terms.setdefault(name, []).append(gradient)
    return {name: builder.sum(terms[name]) for name in wanted if name in terms}


def _remedy(nodes: Sequence[Node], node: Node, wanted: Sequence[str]) -> str:
    """Say which parameters could be trained without differentiating ``node``."""
    before = leading_names(nodes, node.inputs)
    after = [name for name in wanted if name not in before]
    if not after:
        return "no parameter lies behind it, so freezing does not help"
    listed = " ".join(f"--trainable '{name}'" for name in after[:NAMED_MAX])
    more = f" and {len(after) - NAMED_MAX} more" if len(after) > NAMED_MAX else ""
    return f"freeze up to here: {listed}{more}"


NAMED_MAX: Final = 8
"""How many parameters an error names."""
