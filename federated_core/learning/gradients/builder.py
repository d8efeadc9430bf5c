"""Graph nodes written like arithmetic: what gradient rules, losses and optimizers emit their nodes with.

`Builder` collects nodes; the same operator on the same inputs is emitted once. An `Expr` is a name with a type and a
shape; its operators append nodes. A dimension that is a word is free, and two equal words are one size.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from federated_core.errors import LocalMisuseError, UntrainableModelError
from federated_core.learning.graph import ONNX_TYPE_CODES, Attribute, DType, Graph, Node, Shape, Tensor, Value, product

_RANDOM: Final = frozenset({"Dropout"})
_KEY = msgspec.msgpack.Encoder(order="deterministic")

type_of_index: Final[DType] = "int64"


class Builder:
    """Nodes and constants under fresh names, on top of the nodes of a forward graph."""

    def __init__(
        self,
        types: Mapping[str, Value],
        constants: Mapping[str, Tensor],
        nodes: Iterable[Node],
        opset: int,
        *,
        prefix: str = "",
    ) -> None:
        self.opset = opset
        self._prefix = prefix
        self.constants = dict(constants)
        self._types = dict(types)
        self._nodes = list(nodes)
        self._position = {name: index for index, node in enumerate(self._nodes) for name in node.outputs if name}
        self._taken = set(types) | set(constants) | set(self._position)
        self._taken |= {name for node in self._nodes for name in node.inputs}
        self._emitted = {_key(node.op, node.inputs, node.attributes): node.outputs for node in self._nodes}
        self._counts: dict[str, int] = {}
        self._own: set[str] = set()

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Return all nodes so far, forward ones first."""
        return tuple(self._nodes)

    def emitted_here(self, name: str) -> bool:
        """Tell whether ``name`` is the output of a node that this builder emitted, so that it may be renamed."""
        return name in self._own

    def fresh(self, stem: str) -> str:
        """Return a name that nothing has."""
        while True:
            count = self._counts.get(stem, 0)
            self._counts[stem] = count + 1
            name = f"{self._prefix}{stem}/{count}"
            if name not in self._taken:
                self._taken.add(name)
                return name

    def value(self, name: str) -> "Expr":
        """Return the value ``name`` of the forward graph, or an input declared by `declare`."""
        if name not in self._types:
            raise UntrainableModelError(
                f"the shape of '{name}' cannot be inferred: export the model with fixed sizes, all but the batch"
            )
        known = self._types[name]
        return Expr(self, name, known.dtype, known.shape)

    def declare(self, value: Value) -> "Expr":
        """Return a new graph input; its name must be free."""
        if value.name in self._taken:
            raise UntrainableModelError(f"the model uses the name '{value.name}', which training needs: rename it")
        self._taken.add(value.name)
        self._types[value.name] = value
        return self.value(value.name)

    def constant(self, array: NDArray[Any]) -> "Expr":
        """Return a constant; equal constants are one."""
        tensor = Tensor.of(array)
        key = _KEY.encode(("", tensor))
        if key not in self._emitted:
            name = self.fresh("constant")
            self.constants[name] = tensor
            self._emitted[key] = (name,)
        return Expr(self, self._emitted[key][0], tensor.dtype, tensor.shape)

    def integers(self, values: Sequence[int]) -> "Expr":
        """Return a 1-D int64 constant: axes, a shape, pads."""
        return self.constant(np.asarray(values, np.int64))

    def constant_value(self, name: str) -> NDArray[Any] | None:
        """Return what ``name`` holds if that is fixed, else None."""
        tensor = self.constants.get(name)
        return None if tensor is None else tensor.array()

    def emit(
        self,
        op: str,
        inputs: Sequence["Expr | None"],
        count: int = 1,
        attributes: Mapping[str, Attribute] | None = None,
    ) -> tuple[str, ...]:
        """Append a node and return the names of its ``count`` outputs; a node that is already there is reused."""
        names = tuple("" if value is None else value.name for value in inputs)
        while names and not names[-1]:
            names = names[:-1]
        ordered = dict(sorted((attributes or {}).items()))
        key = _key(op, names, ordered)
        emitted = self._emitted.get(key)
        if emitted is not None and len(emitted) >= count and all(emitted[:count]) and op not in _RANDOM:
            return emitted[:count]
        outputs = tuple(self.fresh(op) for _ in range(count))
        self._nodes.append(Node(op, names, outputs, ordered))
        self._own.update(outputs)
        self._emitted[key] = outputs
        return outputs

    def apply(
        self,
        op: str,
        *inputs: "Expr | None",
        shape: Shape,
        dtype: DType | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        **more: Attribute,
    ) -> "Expr":
        """Append a node with one output of ``shape``; its type is the first input's unless said."""
        first = next(value for value in inputs if value is not None)
        name = self.emit(op, inputs, attributes={**(attributes or {}), **more})[0]
        return Expr(self, name, dtype or first.dtype, shape)

    def forward_node(self, output: str) -> Node:
        """Return the node that computes ``output``."""
        return self._nodes[self._position[output]]

    def replace_forward(self, output: str, node: Node) -> None:
        """Put ``node`` in the place of the one that computes ``output``: same outputs, perhaps more."""
        index = self._position[output]
        self._nodes[index] = node
        self._position |= {name: index for name in node.outputs if name}
        self._taken.update(node.outputs)
        self._emitted[_key(node.op, node.inputs, node.attributes)] = node.outputs

    def extra_output(self, output: str, slot: int, dtype: DType, shape: Shape) -> "Expr":
        """Return output number ``slot`` of the node that computes ``output``, asking the node for it if need be."""
        node = self.forward_node(output)
        names = list(node.outputs) + [""] * (slot + 1 - len(node.outputs))
        if not names[slot]:
            names[slot] = self.fresh(node.op)
            self.replace_forward(output, msgspec.structs.replace(node, outputs=tuple(names)))
        return Expr(self, names[slot], dtype, shape)

    def sum(self, terms: Sequence["Expr"]) -> "Expr":
        """Add up any number of values of one shape."""
        if len(terms) == 1:
            return terms[0]
        return self.apply("Sum", *terms, shape=terms[0].shape)

    def zeros(self, shape: Shape, dtype: DType, like: "Expr") -> "Expr":
        """Return zeros of ``shape``; free dimensions are read from ``like``, which has that shape."""
        dims = self.shape_tensor(shape, like)
        value = Tensor.of(np.zeros(1, dtype))
        return self.apply("ConstantOfShape", dims, shape=shape, dtype=dtype, value=value)

    def shape_tensor(self, shape: Shape, like: "Expr | None" = None) -> "Expr":
        """Return ``shape`` as an int64 tensor; ``like`` has that shape and tells free dimensions."""
        if is_static(shape):
            return self.integers([int(dim) for dim in shape])
        if like is None:
            raise LocalMisuseError(f"the shape {shape} has free dimensions and nothing to read them from")
        return self.apply("Shape", like, shape=(len(shape),), dtype=type_of_index)

    def scan(
        self,
        states: Sequence["Expr"],
        sequences: Sequence["Expr"],
        step: "Callable[[list[Expr], list[Expr]], tuple[list[Expr], list[Expr]]]",
        *,
        backwards: bool = False,
    ) -> tuple[list["Expr"], list["Expr"]]:
        """Repeat ``step`` over the first axis of ``sequences``; return the last states and what each step gave.

        ``step`` turns states and one item of each sequence into new states and results, with the builder that these
        belong to; a weight from outside may be read, as the second factor.
        """
        prefix = self.fresh("body") + "/"
        inside = Builder({}, {}, (), self.opset, prefix=prefix)
        old = [
            inside.declare(Value(f"{prefix}state/{place}", item.dtype, item.shape)) for place, item in enumerate(states)
        ]
        items = [
            inside.declare(Value(f"{prefix}item/{place}", item.dtype, item.shape[1:]))
            for place, item in enumerate(sequences)
        ]
        new, results = step(old, items)
        closing = [*new, *results]
        outputs = tuple(Value(item.name, item.dtype, item.shape) for item in closing)
        inputs = tuple(Value(item.name, item.dtype, item.shape) for item in (*old, *items))
        body = Graph("step", self.opset, inputs, outputs, inside.constants, inside.nodes)
        attributes: dict[str, Attribute] = {"body": body, "num_scan_inputs": len(sequences)}
        if backwards:
            attributes["scan_input_directions"] = (1,) * len(sequences)
            attributes["scan_output_directions"] = (1,) * len(results)
        names = self.emit("Scan", [*states, *sequences], len(closing), attributes)
        last = [Expr(self, name, item.dtype, item.shape) for name, item in zip(names, states, strict=False)]
        length = sequences[0].shape[0]
        stacked = [
            Expr(self, name, item.dtype, (length, *item.shape))
            for name, item in zip(names[len(states) :], results, strict=True)
        ]
        return last, stacked

    def matmul_2d(self, a: "Expr", b: "Expr", *, transpose_a: bool = False, transpose_b: bool = False) -> "Expr":
        """Multiply two matrices, either one transposed."""
        rows = a.shape[1] if transpose_a else a.shape[0]
        columns = b.shape[0] if transpose_b else b.shape[1]
        if not transpose_a and not transpose_b:
            return self.apply("MatMul", a, b, shape=(rows, columns))
        return self.apply("Gemm", a, b, shape=(rows, columns), transA=int(transpose_a), transB=int(transpose_b))


class Expr:
    """A value of the graph under construction."""

    __slots__ = ("builder", "dtype", "name", "shape")

    def __init__(self, builder: Builder, name: str, dtype: DType, shape: Shape) -> None:
        self.builder = builder
        self.name = name
        self.dtype = dtype
        self.shape = shape

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def scalar(self, number: float) -> "Expr":
        """Return ``number`` as a constant of this value's type."""
        return self.builder.constant(np.asarray(number, self.dtype))

    def _binary(self, op: str, left: "Expr | float", right: "Expr | float", dtype: DType | None = None) -> "Expr":
        a = left if isinstance(left, Expr) else self.scalar(left)
        b = right if isinstance(right, Expr) else self.scalar(right)
        return self.builder.apply(op, a, b, shape=broadcast(a.shape, b.shape), dtype=dtype)

    def __add__(self, other: "Expr | float") -> "Expr":
        return self._binary("Add", self, other)

    def __sub__(self, other: "Expr | float") -> "Expr":
        return self._binary("Sub", self, other)

    def __rsub__(self, other: float) -> "Expr":
        return self._binary("Sub", other, self)

    def __mul__(self, other: "Expr | float") -> "Expr":
        return self._binary("Mul", self, other)

    __radd__ = __add__
    __rmul__ = __mul__

    def __truediv__(self, other: "Expr | float") -> "Expr":
        return self._binary("Div", self, other)

    def __rtruediv__(self, other: float) -> "Expr":
        return self._binary("Div", other, self)

    def __pow__(self, other: "Expr | float") -> "Expr":
        return self._binary("Pow", self, other)

    def __neg__(self) -> "Expr":
        return self.unary("Neg")

    def greater(self, other: "Expr | float") -> "Expr":
        """Return where this is greater, as bool."""
        return self._binary("Greater", self, other, "bool")

    def greater_or_equal(self, other: "Expr | float") -> "Expr":
        """Return where this is greater or equal, as bool."""
        return self._binary("GreaterOrEqual", self, other, "bool")

    def less(self, other: "Expr | float") -> "Expr":
        """Return where this is less, as bool."""
        return self._binary("Less", self, other, "bool")

    def less_or_equal(self, other: "Expr | float") -> "Expr":
        """Return where this is less or equal, as bool."""
        return self._binary("LessOrEqual", self, other, "bool")

    def equals(self, other: "Expr | float") -> "Expr":
        """Return where both are the same, as bool."""
        return self._binary("Equal", self, other, "bool")

    def both(self, other: "Expr") -> "Expr":
        """Return the logical and of two bools."""
        return self._binary("And", self, other)

    def where(self, then: "Expr | float", otherwise: "Expr | float") -> "Expr":
        """Choose by this bool between two values, at least one of them an `Expr`."""
        like = then if isinstance(then, Expr) else otherwise
        assert isinstance(like, Expr)
        a = then if isinstance(then, Expr) else like.scalar(then)
        b = otherwise if isinstance(otherwise, Expr) else like.scalar(otherwise)
        shape = broadcast(self.shape, broadcast(a.shape, b.shape))
        return self.builder.apply("Where", self, a, b, shape=shape, dtype=like.dtype)

    def unary(self, op: str, **attributes: Attribute) -> "Expr":
        """Apply an operator that keeps shape and type."""
        return self.builder.apply(op, self, shape=self.shape, attributes=attributes)

    def cast(self, dtype: DType) -> "Expr":
        """Convert to another type."""
        if dtype == self.dtype:
            return self
        return self.builder.apply("Cast", self, shape=self.shape, dtype=dtype, to=ONNX_TYPE_CODES[dtype])

    def sum(self, axes: Sequence[int] | None = None, *, keepdims: bool = True) -> "Expr":
        """Add up over ``axes`` (all by default)."""
        return self._reduce("ReduceSum", axes, keepdims=keepdims)

    def mean(self, axes: Sequence[int] | None = None, *, keepdims: bool = True) -> "Expr":
        """Average over ``axes`` (all by default)."""
        return self._reduce("ReduceMean", axes, keepdims=keepdims)

    def _reduce(self, op: str, axes: Sequence[int] | None, *, keepdims: bool) -> "Expr":
        over = set(range(self.rank) if axes is None else axes)
        if not over:
            return self
        shape = tuple(1 if axis in over else dim for axis, dim in enumerate(self.shape) if keepdims or axis not in over)
        tensor = self.builder.integers(sorted(over))
        return self.builder.apply(op, self, tensor, shape=shape, keepdims=int(keepdims))

    def reshape(self, shape: Shape, like: "Expr | None" = None) -> "Expr":
        """Reshape; with two or more free dimensions, ``like`` must have the wanted shape."""
        if shape == self.shape:
            return self
        free = [axis for axis, dim in enumerate(shape) if isinstance(dim, str)]
        if len(free) > 1 or (free and 0 in shape):
            dims = self.builder.shape_tensor(shape, like)
        else:
            dims = self.builder.integers([-1 if isinstance(dim, str) else dim for dim in shape])
        if 0 in shape:
            return self.builder.apply("Reshape", self, dims, shape=shape, allowzero=1)
        return self.builder.apply("Reshape", self, dims, shape=shape)

    def transpose(self, permutation: Sequence[int]) -> "Expr":
        """Permute axes; moving only axes of size 1 is a Reshape, which copies nothing."""
        order = tuple(permutation)
        if order == tuple(range(self.rank)):
            return self
        shape = tuple(self.shape[axis] for axis in order)
        moving = [axis for axis in order if self.shape[axis] != 1]
        if moving == sorted(moving) and sum(isinstance(dim, str) for dim in shape) <= 1:
            return self.reshape(shape)
        return self.builder.apply("Transpose", self, shape=shape, perm=order)

    def expand(self, shape: Shape, like: "Expr | None" = None) -> "Expr":
        """Broadcast to ``shape``; free dimensions are read from ``like``."""
        if shape == self.shape:
            return self
        return self.builder.apply("Expand", self, self.builder.shape_tensor(shape, like), shape=shape)

    def slice(self, axis: int, start: int, end: int) -> "Expr":
        """Take ``start:end`` of one axis of known size."""
        integers = self.builder.integers
        shape = (*self.shape[:axis], end - start, *self.shape[axis + 1 :])
        return self.builder.apply("Slice", self, integers([start]), integers([end]), integers([axis]), shape=shape)

    def sum_to(self, shape: Shape) -> "Expr":
        """Add up over the axes along which ``shape`` was broadcast to this shape."""
        if shape == self.shape:
            return self
        extra = self.rank - len(shape)
        axes = [axis for axis, dim in enumerate(self.shape) if axis < extra or (shape[axis - extra] == 1 != dim)]
        for axis in range(extra, self.rank):
            if axis not in axes and self.shape[axis] != shape[axis - extra]:
                raise UntrainableModelError(
                    f"'{self.name}' of shape {self.shape} does not come from {shape} by broadcasting: give free "
                    "dimensions that are the same size the same name"
                )
        if all(axis < extra for axis in axes):
            return self.sum(axes, keepdims=False)
        return self.sum(axes).reshape(shape)

    def element_count(self, axes: Sequence[int] | None = None) -> "Expr":
        """Return the number of elements along ``axes`` as a scalar of this type: a constant if sizes are fixed."""
        over = range(self.rank) if axes is None else axes
        dims = tuple(self.shape[axis] for axis in over)
        if is_static(dims):
            return self.scalar(math.prod(int(dim) for dim in dims))
        if len(dims) == self.rank:
            return self.builder.apply("Size", self, shape=(), dtype=type_of_index).cast(self.dtype)
        picked = self.builder.apply(
            "Gather",
            self.builder.shape_tensor(self.shape, self),
            self.builder.integers(list(over)),
            shape=(len(dims),),
        )
        product_of_all = self.builder.apply("ReduceProd", picked, shape=(), keepdims=0)
        return product_of_all.cast(self.dtype)


def is_static(shape: Shape) -> bool:
    """Tell whether every dimension is a number."""
    return all(isinstance(dim, int) for dim in shape)


def broadcast(a: Shape, b: Shape) -> Shape:
    """Return the shape that two shapes broadcast to; of two different words the first wins."""
    longest = max(len(a), len(b))
    left = (1,) * (longest - len(a)) + a
    right = (1,) * (longest - len(b)) + b
    return tuple(y if x == 1 else x for x, y in zip(left, right, strict=True))


def flattened(shape: Shape) -> int | str:
    """Return the number of elements of ``shape``."""
    return product(shape)


def _key(op: str, inputs: tuple[str, ...], attributes: Mapping[str, Attribute]) -> bytes:
    return _KEY.encode((op, inputs, attributes))
