"""Operators that move, repeat, cut and pick elements."""

from typing import Final

import numpy as np

from federated_core.engines.numpy_operators.operator import Array, Call, Operators
from federated_core.learning.interpolation import interpolation_matrix


def _reshape(call: Call) -> Array:
    wanted = [int(size) for size in call.input(1)]
    if not call.integer("allowzero", 0):
        wanted = [call.x.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return call.x.reshape(wanted)


def _flatten(call: Call) -> Array:
    axis = call.integer("axis", 1)
    rows = int(np.prod(call.x.shape[: axis if axis >= 0 else call.x.ndim + axis], dtype=np.int64))
    columns = call.x.size // rows if rows else int(np.prod(call.x.shape[axis:], dtype=np.int64))
    return call.x.reshape((rows, columns))


def _squeeze(call: Call) -> Array:
    return np.squeeze(call.x, axis=call.axes(1))


def _unsqueeze(call: Call) -> Array:
    return np.expand_dims(call.x, call.axes(1) or ())


def _transpose(call: Call) -> Array:
    return np.transpose(call.x, call.integers("perm"))


def _expand(call: Call) -> Array:
    shape = tuple(int(size) for size in call.input(1))
    return np.broadcast_to(call.x, np.broadcast_shapes(call.x.shape, shape))


def _concat(call: Call) -> Array:
    return np.concatenate([array for array in call.inputs if array is not None], axis=call.integer("axis", 0))


def _split(call: Call) -> tuple[Array, ...]:
    axis, count = call.integer("axis", 0), len(call.node.outputs)
    if call.has(1):
        return tuple(np.split(call.x, np.cumsum(call.input(1))[:-1], axis=axis))
    size = -(-call.x.shape[axis] // count)
    return tuple(np.split(call.x, [size * place for place in range(1, count)], axis=axis))


def _slice(call: Call) -> Array:
    starts, ends = call.input(1), call.input(2)
    axes = call.axes(3) or tuple(range(len(starts)))
    steps = call.input(4) if call.has(4) else np.ones(len(starts), np.int64)
    index = [slice(None)] * call.x.ndim
    for axis, start, end, step in zip(axes, starts.tolist(), ends.tolist(), steps.tolist(), strict=True):
        size = call.x.shape[axis]
        low = start + size if start < 0 else start
        high = end + size if end < 0 else end
        if step > 0:
            index[axis] = slice(min(max(low, 0), size), min(max(high, 0), size), step)
        else:
            index[axis] = slice(min(max(low, -1), size - 1), max(high, -1) if high >= 0 else None, step)
    return call.x[tuple(index)]


def _pad(call: Call) -> Array:
    amounts, axes = call.input(1), call.axes(3) or tuple(range(call.x.ndim))
    widths = [(0, 0)] * call.x.ndim
    for place, axis in enumerate(axes):
        widths[axis] = (int(amounts[place]), int(amounts[place + len(axes)]))
    inside = tuple(
        slice(max(-low, 0), size - max(-high, 0)) for (low, high), size in zip(widths, call.x.shape, strict=True)
    )
    outside = [(max(low, 0), max(high, 0)) for low, high in widths]
    mode = call.word("mode", "constant")
    if mode != "constant":
        return np.asarray(np.pad(call.x[inside], outside, mode=mode))  # type: ignore[call-overload]
    value = call.input(2).item() if call.has(2) else 0
    return np.pad(call.x[inside], outside, constant_values=value)


def _tile(call: Call) -> Array:
    return np.tile(call.x, [int(count) for count in call.input(1)])


def _shape(call: Call) -> Array:
    return np.asarray(call.x.shape, np.int64)[call.integer("start", 0) : call.integer("end", call.x.ndim)]


def _size(call: Call) -> Array:
    return np.asarray(call.x.size, np.int64)


def _constant_of_shape(call: Call) -> Array:
    value = call.tensor("value")
    fill = np.zeros(1, np.float32) if value is None else value
    return np.full([int(size) for size in call.x], fill.reshape(()))


def _range(call: Call) -> Array:
    return np.asarray(np.arange(*(call.input(slot).item() for slot in range(3)), dtype=call.x.dtype))


def _one_hot(call: Call) -> Array:
    depth, values, axis = int(call.input(1).item()), call.input(2), call.integer("axis", -1)
    hot = np.mod(call.x, depth)[..., None] == np.arange(depth)
    return np.asarray(np.where(np.moveaxis(hot, -1, axis), values[1], values[0]))


def _gather(call: Call) -> Array:
    return np.asarray(np.take(call.x, call.input(1).astype(np.int64), axis=call.integer("axis", 0), mode="wrap"))


def _gather_elements(call: Call) -> Array:
    axis = call.integer("axis", 0)
    return np.take_along_axis(call.x, call.input(1) % call.x.shape[axis], axis=axis)


def _gather_nd(call: Call) -> Array:
    return np.asarray(call.x[tuple(np.moveaxis(call.input(1), -1, 0))])


_REDUCTIONS: Final = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _scatter(target: Array, index: tuple[Array, ...], values: Array, reduction: str) -> Array:
    result = np.array(target)
    if reduction == "none":
        result[index] = values
    elif reduction == "add" and len(index) == 1 and result.ndim == 1 and result.dtype.kind == "f":
        result += np.bincount(index[0] % result.size, weights=values, minlength=result.size).astype(result.dtype)
    else:
        _REDUCTIONS[reduction].at(result, index, values)
    return result


def _scatter_elements(call: Call) -> Array:
    indices, axis = call.input(1), call.integer("axis", 0)
    grid = list(np.indices(indices.shape, sparse=True)) if indices.ndim > 1 else [indices]
    grid[axis] = indices
    return _scatter(call.x, tuple(grid), call.input(2), call.word("reduction", "none"))


def _scatter_nd(call: Call) -> Array:
    index = tuple(np.moveaxis(call.input(1), -1, 0))
    return _scatter(call.x, index, call.input(2), call.word("reduction", "none"))


def _depth_to_space(call: Call) -> Array:
    block = call.integer("blocksize", 1)
    batch, channels, height, width = call.x.shape
    depth = channels // block**2
    if call.word("mode", "DCR") == "CRD":
        parts = call.x.reshape(batch, depth, block, block, height, width).transpose(0, 1, 4, 2, 5, 3)
    else:
        parts = call.x.reshape(batch, block, block, depth, height, width).transpose(0, 3, 4, 1, 5, 2)
    return parts.reshape(batch, depth, height * block, width * block)


def _space_to_depth(call: Call) -> Array:
    block = call.integer("blocksize", 1)
    batch, channels, height, width = call.x.shape
    parts = call.x.reshape(batch, channels, height // block, block, width // block, block)
    order = (0, 1, 3, 5, 2, 4) if call.word("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    return parts.transpose(order).reshape(batch, channels * block**2, height // block, width // block)


def _resize(call: Call) -> Array:
    x, rank = call.x, call.x.ndim
    axes = [axis % rank for axis in call.integers("axes") or range(rank)]
    if call.has(2) and call.input(2).size:
        scales = [float(scale) for scale in call.input(2)]
        after = [int(x.shape[axis] * scale) for axis, scale in zip(axes, scales, strict=True)]
    else:
        after = [int(size) for size in call.input(3)]
        scales = [size / x.shape[axis] for axis, size in zip(axes, after, strict=True)]
        policy = call.word("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            scales = [min(scales) if policy == "not_larger" else max(scales)] * len(axes)
            after = [int(x.shape[axis] * scale + 0.5) for axis, scale in zip(axes, scales, strict=True)]
    y = x
    for axis, size, scale in zip(axes, after, scales, strict=True):
        if size != x.shape[axis] or scale != 1.0:
            matrix = interpolation_matrix(call.node.attributes, x.shape[axis], size, scale).astype(x.dtype)
            y = np.moveaxis(np.moveaxis(y, axis, -1) @ matrix.T, -1, axis)
    return y


OPERATORS: Final[Operators] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Range": _range,
    "Resize": _resize,
    "Reshape": _reshape,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""Operators by name."""
