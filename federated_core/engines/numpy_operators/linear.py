"""Matrix products, convolutions, pools and recurrent layers."""

import math
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from federated_core.engines.numpy_operators.elementwise import sigmoid
from federated_core.engines.numpy_operators.operator import Array, Call, Operators
from federated_core.errors import LocalMisuseError


def _gemm(call: Call) -> Array:
    a = call.x.T if call.integer("transA", 0) else call.x
    b = call.input(1).T if call.integer("transB", 0) else call.input(1)
    alpha, beta = call.number("alpha", 1.0), call.number("beta", 1.0)
    y = a @ b if alpha == 1.0 else alpha * (a @ b)
    if not call.has(2):
        return np.asarray(y)
    return np.asarray(y + (call.input(2) if beta == 1.0 else beta * call.input(2)))


def _matmul(call: Call) -> Array:
    return np.asarray(call.x @ call.input(1))


def _einsum(call: Call) -> Array:
    return np.asarray(np.einsum(call.word("equation", ""), *(array for array in call.inputs if array is not None)))


def _pads(call: Call, kernel: tuple[int, ...], sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    axes = len(kernel)
    strides, dilations = call.integers("strides") or (1,) * axes, call.integers("dilations") or (1,) * axes
    auto_pad = call.word("auto_pad", "NOTSET")
    if auto_pad in {"SAME_UPPER", "SAME_LOWER"}:
        totals = [
            max(0, (-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size)
            for size, stride, k, dilation in zip(sizes, strides, kernel, dilations, strict=True)
        ]
        halves = [(total // 2, total - total // 2) for total in totals]
        return halves if auto_pad == "SAME_UPPER" else [(high, low) for low, high in halves]
    pads = (call.integers("pads") if auto_pad == "NOTSET" else None) or (0,) * (2 * axes)
    return list(zip(pads[:axes], pads[axes:], strict=True))


def _windows(x: Array, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]) -> Array:
    """Return a view [N, C, *outputs, *kernel] of a padded array."""
    axes = tuple(range(2, x.ndim))
    reach = tuple((k - 1) * dilation + 1 for k, dilation in zip(kernel, dilations, strict=True))
    view = sliding_window_view(x, reach, axis=axes)
    steps = tuple(slice(None, None, stride) for stride in strides)
    gaps = tuple(slice(None, None, dilation) for dilation in dilations)
    return view[(slice(None), slice(None), *steps, *gaps)]


def _convolution(call: Call) -> Array:
    x, weight = call.x, call.input(1)
    kernel, axes = weight.shape[2:], weight.ndim - 2
    group = call.integer("group", 1)
    padded = np.pad(x, [(0, 0), (0, 0), *_pads(call, kernel, x.shape[2:])])
    windows = _windows(
        padded, kernel, call.integers("strides") or (1,) * axes, call.integers("dilations") or (1,) * axes
    )
    outputs = windows.shape[2 : 2 + axes]
    batch, inner, outer = x.shape[0], weight.shape[1], weight.shape[0]
    # [N, G, C/G, *outputs, *kernel] -> [G, N outputs, C/G kernel]: one matrix product per group.
    split = windows.reshape((batch, group, inner, *outputs, *kernel))
    order = (1, 0, *range(3, 3 + axes), 2, *range(3 + axes, 3 + 2 * axes))
    columns = split.transpose(order).reshape((group, batch * math.prod(outputs), inner * math.prod(kernel)))
    rows = weight.reshape((group, outer // group, inner * math.prod(kernel)))
    product = columns @ rows.transpose(0, 2, 1)
    y = product.reshape((group, batch, *outputs, outer // group))
    y = y.transpose((1, 0, 2 + axes, *range(2, 2 + axes))).reshape((batch, outer, *outputs))
    return y + call.input(2).reshape((-1, *(1,) * axes)) if call.has(2) else np.ascontiguousarray(y)


def _transposed_convolution(call: Call) -> Array:
    x, weight = call.x, call.input(1)
    kernel, axes = weight.shape[2:], weight.ndim - 2
    group, (batch, inner), sizes = call.integer("group", 1), x.shape[:2], x.shape[2:]
    strides, dilations = call.integers("strides") or (1,) * axes, call.integers("dilations") or (1,) * axes
    extra = call.integers("output_padding") or (0,) * axes
    wanted = call.integers("output_shape")
    auto_pad = call.word("auto_pad", "NOTSET")
    reach = [
        (size - 1) * stride + (k - 1) * dilation + 1 + more
        for size, stride, k, dilation, more in zip(sizes, strides, kernel, dilations, extra, strict=True)
    ]
    pads = call.integers("pads") or (0,) * (2 * axes)
    borders = list(zip(pads[:axes], pads[axes:], strict=True))
    beyond = [0] * axes
    if auto_pad == "VALID":
        borders = [(0, 0)] * axes
    elif auto_pad != "NOTSET" or wanted is not None:
        targets = wanted[-axes:] if wanted else [size * stride for size, stride in zip(sizes, strides, strict=True)]
        totals = [max(0, full - target) for full, target in zip(reach, targets, strict=True)]
        beyond = [max(0, target - full) for full, target in zip(reach, targets, strict=True)]
        halves = [(total // 2, total - total // 2) for total in totals]
        borders = halves if auto_pad == "SAME_UPPER" else [(high, low) for low, high in halves]
    outer = weight.shape[1]
    rows = x.reshape((batch, group, inner // group, -1))
    y = np.zeros((batch, group, outer, *(full + more for full, more in zip(reach, beyond, strict=True))), x.dtype)
    for offset in np.ndindex(*kernel):
        tap = weight[(slice(None), slice(None), *offset)].reshape((group, inner // group, outer))
        part = (tap.transpose(0, 2, 1) @ rows).reshape((batch, group, outer, *sizes))
        place = tuple(
            slice(at * dilation, at * dilation + (size - 1) * stride + 1, stride)
            for at, dilation, size, stride in zip(offset, dilations, sizes, strides, strict=True)
        )
        y[(slice(None), slice(None), slice(None), *place)] += part
    cut = tuple(slice(low, size - high) for (low, high), size in zip(borders, y.shape[3:], strict=True))
    y = y[(slice(None), slice(None), slice(None), *cut)]
    y = y.reshape((batch, group * outer, *y.shape[3:]))
    return y + call.input(2).reshape((-1, *(1,) * axes)) if call.has(2) else y


def _pool_windows(call: Call, fill: float) -> tuple[Array, list[tuple[int, int]]]:
    """Return the windows of a pool, and the pads in front and behind with what ceil_mode adds."""
    kernel = call.integers("kernel_shape") or ()
    axes, sizes = len(kernel), call.x.shape[2:]
    strides, dilations = call.integers("strides") or (1,) * axes, call.integers("dilations") or (1,) * axes
    pads = _pads(call, kernel, sizes)
    if call.integer("ceil_mode", 0):
        pads = [
            (low, high + _overhang(size + low + high, (k - 1) * dilation + 1, stride, size + low))
            for (low, high), size, k, dilation, stride in zip(pads, sizes, kernel, dilations, strides, strict=True)
        ]
    padded = np.pad(call.x, [(0, 0), (0, 0), *pads], constant_values=fill)
    return _windows(padded, kernel, strides, dilations), pads


def _overhang(padded: int, reach: int, stride: int, start_limit: int) -> int:
    """Return how far the last window of ceil_mode hangs over; it must begin inside the input or the begin pad."""
    count = -(-(padded - reach) // stride) + 1
    if (count - 1) * stride >= start_limit:
        count -= 1
    return max(0, (count - 1) * stride + reach - padded)


def _max_pool(call: Call) -> tuple[Array, ...] | Array:
    windows, pads = _pool_windows(call, -np.inf if call.x.dtype.kind == "f" else np.iinfo(call.x.dtype).min)
    axes = call.x.ndim - 2
    flat = windows.reshape((*windows.shape[: 2 + axes], -1))
    if len(call.node.outputs) < 2:
        return np.asarray(flat.max(axis=-1))
    if call.integer("storage_order", 0):
        raise LocalMisuseError("MaxPool with column-major indices is not supported")
    best = flat.argmax(axis=-1)
    kernel, sizes = windows.shape[2 + axes :], call.x.shape[2:]
    strides, dilations = call.integers("strides") or (1,) * axes, call.integers("dilations") or (1,) * axes
    index = np.zeros(best.shape, np.int64)
    inside = np.unravel_index(best, kernel)
    for axis in range(axes):
        starts = np.arange(best.shape[2 + axis]) * strides[axis] - pads[axis][0]
        column = starts.reshape((-1, *(1,) * (axes - 1 - axis))) + inside[axis] * dilations[axis]
        index = index * sizes[axis] + column
    channels = np.arange(call.x.shape[0] * call.x.shape[1]).reshape((*call.x.shape[:2], *(1,) * axes))
    return np.take_along_axis(flat, best[..., None], axis=-1)[..., 0], index + channels * math.prod(sizes)


def _average_pool(call: Call) -> Array:
    windows, pads = _pool_windows(call, 0.0)
    axes = call.x.ndim - 2
    last = tuple(range(2 + axes, windows.ndim))
    declared = _pads(call, call.integers("kernel_shape") or (), call.x.shape[2:])
    include = call.integer("count_include_pad", 0)
    ones = np.ones((1, 1, *call.x.shape[2:]), call.x.dtype)
    if include:
        ones = np.pad(ones, [(0, 0), (0, 0), *declared], constant_values=1)
        pads = [(0, high - own) for (_, high), (_, own) in zip(pads, declared, strict=True)]
    strides, dilations = call.integers("strides") or (1,) * axes, call.integers("dilations") or (1,) * axes
    cells = _windows(np.pad(ones, [(0, 0), (0, 0), *pads]), windows.shape[2 + axes :], strides, dilations)
    return np.asarray(windows.sum(axis=last) / cells.sum(axis=last))


def _global_average_pool(call: Call) -> Array:
    return np.asarray(call.x.mean(axis=tuple(range(2, call.x.ndim)), keepdims=True))


def _global_max_pool(call: Call) -> Array:
    return np.asarray(call.x.max(axis=tuple(range(2, call.x.ndim)), keepdims=True))


_ACTIVATIONS: Final[Mapping[str, Callable[[Array], Array]]] = {
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
}


def _recurrent(call: Call) -> tuple[Array, ...]:
    """Run a GRU, LSTM or RNN of default activations step by step."""
    if call.has(4) or call.has(7) or call.integer("layout", 0) or "clip" in call.node.attributes:
        raise LocalMisuseError(f"{call.node.op} with sequence_lens, peepholes, clip or layout 1 is not supported")
    x, directions = call.x, call.input(1).shape[0]
    ways = {"forward": [1], "reverse": [-1], "bidirectional": [1, -1]}[call.word("direction", "forward")]
    results = [_one_direction(call, place, way) for place, way in zip(range(directions), ways, strict=True)]
    y = np.stack([hidden for hidden, *_ in results], axis=1) if len(x) else np.zeros((0,), x.dtype)
    states = [np.stack([result[place] for result in results]) for place in range(1, len(results[0]))]
    return y, *states


def _one_direction(call: Call, place: int, way: int) -> tuple[Array, ...]:
    op, x = call.node.op, call.x[::way]
    w, r = call.input(1)[place], call.input(2)[place]
    size = r.shape[1]
    bias = call.input(3)[place] if call.has(3) else np.zeros(2 * len(r), x.dtype)
    wb, rb = bias[: len(r)], bias[len(r) :]
    h = call.input(5)[place] if call.has(5) else np.zeros((x.shape[1], size), x.dtype)
    c = call.input(6)[place] if call.has(6) else np.zeros_like(h)
    names = call.node.attributes.get("activations")
    activation = str(names[place]).lower() if op == "RNN" and isinstance(names, tuple) and names else "tanh"
    projected = x @ w.T + wb
    found = []
    for a in projected:
        if op == "GRU":
            h = _gru_step(call, a, h, r, rb)
        elif op == "LSTM":
            gates = a + h @ r.T + rb
            i, o, f = (sigmoid(gates[:, at * size : (at + 1) * size]) for at in range(3))
            c = f * c + i * np.tanh(gates[:, 3 * size :])
            h = o * np.tanh(c)
        else:
            h = _ACTIVATIONS[activation](a + h @ r.T + rb)
        found.append(h)
    hidden = np.stack(found)[::way]
    return (hidden, h, c) if op == "LSTM" else (hidden, h)


def _gru_step(call: Call, a: Array, h: Array, r: Array, rb: Array) -> Array:
    size = h.shape[1]
    zr = sigmoid(a[:, : 2 * size] + h @ r[: 2 * size].T + rb[: 2 * size])
    z, reset = zr[:, :size], zr[:, size:]
    if call.integer("linear_before_reset", 0):
        candidate = np.tanh(a[:, 2 * size :] + reset * (h @ r[2 * size :].T + rb[2 * size :]))
    else:
        candidate = np.tanh(a[:, 2 * size :] + (reset * h) @ r[2 * size :].T + rb[2 * size :])
    return np.asarray((1 - z) * candidate + z * h)


OPERATORS: Final[Operators] = {
    "AveragePool": _average_pool,
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Einsum": _einsum,
    "GRU": _recurrent,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "GlobalMaxPool": _global_max_pool,
    "LSTM": _recurrent,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "RNN": _recurrent,
}
"""Operators by name."""
