"""What a change of opset writes in several nodes, in one again."""

from collections.abc import Mapping

import msgspec

from federated_core.learning.graph import Graph, Node, Value


def rejoin_softmax(graph: Graph, types: Mapping[str, Value]) -> Graph:
    """Undo what lifting a Softmax from before opset 13 makes of it: Flatten, Softmax and Reshape.

    Parameters
    ----------
    graph : Graph
        A model.
    types : mapping of str to Value
        The type of its values.

    Returns
    -------
    Graph
        The same function; a loss finds the Softmax at its end again, and attention runs in one node less three times.

    Examples
    --------
    >>> x, y = Value("x", "float32", ("batch", 3, 4)), Value("y", "float32", ("batch", 3, 4))
    >>> flat = Node("Flatten", ("x",), ("f",), {"axis": 2})
    >>> nodes = (flat, Node("Softmax", ("f",), ("s",), {"axis": -1}), Node("Reshape", ("s", "shape"), ("y",)))
    >>> rejoin_softmax(Graph("net", 18, (x,), (y,), {}, nodes), {"x": x, "y": y}).nodes[2]
    Node(op='Softmax', inputs=('x',), outputs=('y',), attributes={'axis': -1}, name='')
    """
    producers = {name: node for node in graph.nodes for name in node.outputs}
    nodes = []
    for node in graph.nodes:
        softmax = producers.get(node.inputs[0]) if node.op == "Reshape" else None
        flat = producers.get(softmax.inputs[0]) if softmax and softmax.op in {"Softmax", "LogSoftmax"} else None
        if softmax is not None and flat is not None and _is_over_the_last_axis(flat, softmax, node, types):
            joined = {"inputs": flat.inputs, "outputs": node.outputs, "attributes": {"axis": -1}}
            nodes.append(msgspec.structs.replace(softmax, **joined))
        else:
            nodes.append(node)
    return msgspec.structs.replace(graph, nodes=tuple(nodes))


def _is_over_the_last_axis(flat: Node, softmax: Node, back: Node, types: Mapping[str, Value]) -> bool:
    before, after = types.get(flat.inputs[0]), types.get(back.outputs[0])
    if flat.op != "Flatten" or before is None or after is None or before.shape != after.shape:
        return False
    rank = len(before.shape)
    return flat.attributes.get("axis", 1) == rank - 1 and softmax.attributes.get("axis", -1) in {-1, 1}
