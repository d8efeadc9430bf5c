"""Gradient rules of operators that pick or place elements by index: what was gathered is scattered, and back."""

from collections.abc import Mapping
from typing import Final

from federated_core.learning.gradients.application import Application, Gradients, Rule
from federated_core.learning.gradients.builder import Expr
from federated_core.learning.graph import Attribute


def gather(at: Application) -> Gradients:
    """Differentiate y = x[..., indices, ...] along one axis: scatter and add at the front, move the axis back."""
    x, indices, builder = at.x, at.input(1).cast("int64"), at.builder
    axis = at.integer("axis", 0) % x.rank
    to_front = [*range(axis, axis + indices.rank), *range(axis), *range(axis + indices.rank, at.g.rank)]
    rows = at.g.transpose(to_front)
    front = (x.shape[axis], *x.shape[:axis], *x.shape[axis + 1 :])
    order = [axis, *(other for other in range(x.rank) if other != axis)]
    zeros = builder.zeros(x.shape, x.dtype, x).transpose(order)
    places = builder.apply("Unsqueeze", indices, builder.integers([-1]), shape=(*indices.shape, 1))
    added = builder.apply("ScatterND", zeros, places, rows, shape=front, reduction="add")
    back = [*range(1, axis + 1), 0, *range(axis + 1, x.rank)]
    return [added.transpose(back), None]


def gather_elements(at: Application) -> Gradients:
    """Differentiate y[i][j] = x[index[i][j]][j]."""
    zeros = at.builder.zeros(at.x.shape, at.x.dtype, at.x)
    axis = at.integer("axis", 0)
    return [
        at.builder.apply("ScatterElements", zeros, at.input(1), at.g, shape=at.x.shape, axis=axis, reduction="add"),
        None,
    ]


def gather_nd(at: Application) -> Gradients:
    """Differentiate y = x at a list of index tuples."""
    if at.integer("batch_dims", 0):
        raise at.refusal("batch_dims is not supported")
    zeros = at.builder.zeros(at.x.shape, at.x.dtype, at.x)
    return [
        at.builder.apply("ScatterND", zeros, at.input(1), at.g, shape=at.x.shape, reduction="add"),
        None,
    ]


def scatter(at: Application) -> Gradients:
    """Differentiate y = x with updates put, added, multiplied or compared at indices (elements or index tuples).

    Of equal maxima or minima each gets the whole gradient; a product is divided by each update, which must not be 0.
    """
    put, take = at.node.op, at.node.op.replace("Scatter", "Gather")
    axis: dict[str, Attribute] = {"axis": at.integer("axis", 0)} if put == "ScatterElements" else {}
    x, indices, updates, g, builder = at.x, at.input(1), at.input(2), at.g, at.builder

    def place(target: Expr, values: Expr, reduction: str) -> Expr:
        return builder.apply(put, target, indices, values, shape=x.shape, attributes=axis, reduction=reduction)

    def pick(source: Expr) -> Expr:
        return builder.apply(take, source, indices, shape=updates.shape, attributes=axis)

    match at.word("reduction", "none"):
        case "none":
            gx = place(g, builder.zeros(updates.shape, updates.dtype, updates), "none") if at.wants(0) else None
            return [gx, None, pick(g)]
        case "add":
            return [g, None, pick(g)]
        case "mul":
            ones = builder.zeros(x.shape, x.dtype, x) + 1.0
            return [g * place(ones, updates, "mul"), None, pick(g * at.y) / updates]
        case _:
            return [x.equals(at.y).where(g, 0.0), None, updates.equals(pick(at.y)).where(pick(g), 0.0)]


def top_k(at: Application) -> Gradients:
    """Differentiate the values of the k largest along an axis; the second output is where they were."""
    axis = at.integer("axis", -1)
    indices = at.builder.extra_output(at.node.outputs[0], 1, "int64", at.y.shape)
    zeros = at.builder.zeros(at.x.shape, at.x.dtype, at.x)
    return [
        at.builder.apply("ScatterElements", zeros, indices, at.g, shape=at.x.shape, axis=axis, reduction="add"),
        None,
    ]


RULES: Final[Mapping[str, Rule]] = {
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "ScatterElements": scatter,
    "ScatterND": scatter,
    "TopK": top_k,
}
"""Rules by operator."""
