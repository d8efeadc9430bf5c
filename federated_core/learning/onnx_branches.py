"""Branches that a file decides although it need not: an If whose condition is known becomes the branch that is taken.

PyTorch's exporter writes an If around a squeeze whose axis it did not know, and models for several sample rates ask an
input which of their halves to run.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from federated_core.errors import UntrainableModelError
from federated_core.learning.onnx_types import array_of, infer_types

BRANCH_COUNT_MAX = 256
BRANCHES = ("then_branch", "else_branch")


def inline_branches(model: onnx.ModelProto, fixed: Mapping[str, int] | None = None) -> onnx.ModelProto:
    """Replace every If whose condition is known by the nodes of the branch taken.

    Parameters
    ----------
    model : onnx.ModelProto
        Its Constant nodes are initializers; changed in place.
    fixed : mapping of str to int, optional
        Sizes of free dimensions, by name.

    Returns
    -------
    onnx.ModelProto
        The same model; an If whose condition depends on an input is left as it is. What a branch defines is named
        after the branch, see `branch_name`.

    Raises
    ------
    UntrainableModelError
        If there are more than `BRANCH_COUNT_MAX` branches, or the model's types contradict each other.

    Examples
    --------
    >>> inline_branches(onnx.ModelProto()).graph.node
    []
    """
    for _ in range(BRANCH_COUNT_MAX):
        if not any(node.op_type == "If" for node in model.graph.node):
            return model
        conditions = {tensor.name: array_of(tensor) for tensor in model.graph.initializer if _is_scalar(tensor)}
        conditions |= infer_types(model, fixed)[1]
        nodes, changed = [], False
        for node in model.graph.node:
            if node.op_type == "If" and node.input[0] in conditions:
                nodes += _taken(model.graph, node, conditions[node.input[0]])
                changed = True
            else:
                nodes.append(node)
        if not changed:
            return model
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    raise UntrainableModelError(f"expected at most {BRANCH_COUNT_MAX} branches inside each other")


def branch_name(output: str, branch: str, name: str) -> str:
    """Return the name that an inlined graph has for what a branch calls ``name``.

    Parameters
    ----------
    output : str
        The first output of the If.
    branch : str
        One of `BRANCHES`.
    name : str
        A value that is defined in the branch.

    Returns
    -------
    str
        A name that no other branch has.

    Examples
    --------
    >>> branch_name("y", "then_branch", "weight")
    'y.then/weight'
    """
    return f"{output}.{branch.removesuffix('_branch')}/{name}"


def _is_scalar(tensor: onnx.TensorProto) -> bool:
    return int(np.prod(tensor.dims, dtype=np.int64)) == 1 and tensor.data_type == onnx.TensorProto.BOOL


def _taken(graph: onnx.GraphProto, node: onnx.NodeProto, condition: NDArray[Any]) -> list[onnx.NodeProto]:
    """Move the chosen branch's constants into ``graph`` and return its nodes, and an Identity for each output."""
    branch = BRANCHES[0] if condition.reshape(-1)[0] else BRANCHES[1]
    body = next(attribute.g for attribute in node.attribute if attribute.name == branch)
    inner = [tensor.name for tensor in body.initializer] + [name for item in body.node for name in item.output if name]
    renamed = {name: branch_name(node.output[0], branch, name) for name in inner}
    _rename(body, renamed)
    for tensor in body.initializer:
        tensor.name = renamed[tensor.name]
        graph.initializer.append(tensor)
    aliases = [
        onnx.helper.make_node("Identity", [renamed.get(value.name, value.name)], [output])
        for value, output in zip(body.output, node.output, strict=True)
    ]
    return [*body.node, *aliases]


def _rename(graph: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    """Rename what nodes read and write, also in branches inside; a name defined inside again is that one's own."""
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = renamed.get(name, name)
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                own = {tensor.name for tensor in body.initializer} | {
                    name for item in body.node for name in item.output
                }
                own |= {value.name for value in body.input}
                _rename(body, {old: new for old, new in renamed.items() if old not in own})
                for value in body.output:
                    if value.name not in own:
                        value.name = renamed.get(value.name, value.name)
