"""Gradient rules of operators that only move, repeat or cut elements."""

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from federated_core.learning.gradients.application import Application, Gradients, Rule
from federated_core.learning.gradients.builder import Expr


def reshaped(at: Application) -> Gradients:
    """Differentiate y = the same elements in another shape (Reshape, Flatten, Squeeze, Unsqueeze)."""
    return [at.g.reshape(at.x.shape, at.x)]


def transpose(at: Application) -> Gradients:
    """Differentiate y = x with its axes permuted; the inverse permutation leads back."""
    order = at.integers("perm") or tuple(reversed(range(at.x.rank)))
    return [at.g.transpose([int(axis) for axis in np.argsort(order)])]


def expand(at: Application) -> Gradients:
    """Differentiate y = x broadcast to a shape."""
    return [at.g.sum_to(at.x.shape)]


def concat(at: Application) -> Gradients:
    """Differentiate y = inputs end to end: cut at the seams."""
    count = len(at.node.inputs)
    if count == 1:
        return [at.g]
    axis = at.integer("axis", 0) % at.g.rank
    shapes = [at.input(slot).shape for slot in range(count)]
    sizes = [shape[axis] for shape in shapes]
    if not all(isinstance(size, int) for size in sizes):
        raise at.refusal("the sizes along its axis must be fixed")
    cuts = at.builder.integers([int(size) for size in sizes])
    names = at.builder.emit("Split", [at.g, cuts], count, {"axis": axis})
    return [Expr(at.builder, name, at.g.dtype, shape) for name, shape in zip(names, shapes, strict=True)]


def split(at: Application) -> Gradients:
    """Differentiate y, z, ... = pieces of x: join them, zeros for pieces that nobody read."""
    axis = at.integer("axis", 0) % at.x.rank
    pieces = [at.gradient(slot) for slot in range(len(at.node.outputs))]
    return [at.builder.apply("Concat", *pieces, shape=at.x.shape, axis=axis)]


def tile(at: Application) -> Gradients:
    """Differentiate y = x repeated along its axes."""
    g, repeats = at.g, at.constant_integers(1) or ()
    for axis, (size, count) in enumerate(zip(at.x.shape, repeats, strict=True)):
        if count != 1:
            shape = (*g.shape[:axis], count, size, *g.shape[axis + 1 :])
            if sum(isinstance(dim, str) for dim in shape) > 1:
                raise at.refusal("at most one of its dimensions may be free")
            g = g.reshape(shape).sum([axis], keepdims=False)
    return [g, None]


def pad(at: Application) -> Gradients:
    """Differentiate y = x with a border: cut it off, and fold back what the border repeated."""
    mode = at.word("mode", "constant")
    pads = at.constant_integers(1) or ()
    given = at.constant_integers(3)
    axes = [axis % at.x.rank for axis in given] if given is not None else list(range(at.x.rank))
    g, border_sum = at.g, at.g
    for axis, begin, end in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        if not begin and not end:
            continue
        size = at.x.shape[axis]
        if not isinstance(size, int):
            raise at.refusal("the sizes along the axes it pads must be fixed")
        if mode == "constant":
            g = _cut(at, g, axis, (begin, end), size)
        else:
            g = _folded(at, g, axis, (begin, end), size, mode)
    value = None
    if at.wants(2) and mode == "constant":
        value = (border_sum.sum(keepdims=False) - g.sum(keepdims=False)).reshape(at.input(2).shape)
    return [g, None, value]


def _cut(at: Application, g: Expr, axis: int, border: tuple[int, int], size: int) -> Expr:
    begin, end = border
    kept = g.slice(axis, max(begin, 0), size + begin + min(end, 0))
    if begin >= 0 and end >= 0:
        return kept
    pads = at.builder.integers([max(-begin, 0), max(-end, 0)])
    shape = (*g.shape[:axis], size, *g.shape[axis + 1 :])
    return at.builder.apply("Pad", kept, pads, None, at.builder.integers([axis]), shape=shape)


def _folded(at: Application, g: Expr, axis: int, border: tuple[int, int], size: int, mode: str) -> Expr:
    """Add each element of the border to the one that it repeats."""
    begin, end = border
    if min(border) < 0:
        raise at.refusal(f"it cuts in mode '{mode}'")
    if mode != "edge":
        source = np.pad(np.arange(size), border, mode=_NUMPY_MODES[mode])  # type: ignore[call-overload]
        return returned(g, axis, source, size)
    if size == 1:
        return g.sum([axis])
    ends = [g.slice(axis, 0, begin + 1).sum([axis]), g.slice(axis, begin + size - 1, begin + size + end).sum([axis])]
    shape = (*g.shape[:axis], size, *g.shape[axis + 1 :])
    middle = [g.slice(axis, begin + 1, begin + size - 1)] if size > 2 else []
    return at.builder.apply("Concat", ends[0], *middle, ends[1], shape=shape, axis=axis)


def returned(g: Expr, axis: int, source: NDArray[np.int64], size: int) -> Expr:
    """Add element ``i`` along ``axis`` to place ``source[i]`` of ``size``: one Gather per round of visitors."""
    rounds = [np.full(size, len(source))]
    for index, place in enumerate(source):
        turn = next((turn for turn in rounds if turn[place] == len(source)), None)
        if turn is None:
            turn = np.full(size, len(source))
            rounds.append(turn)
        turn[place] = index
    shape = (*g.shape[:axis], size, *g.shape[axis + 1 :])
    builder, longer = g.builder, (*g.shape[:axis], len(source) + 1, *g.shape[axis + 1 :])
    pads = [builder.integers([0, 1]), None, builder.integers([axis])]
    with_zero = builder.apply("Pad", g, *pads, shape=longer)  # Whom nobody visits reads the zero at the end.
    return builder.sum(
        [builder.apply("Gather", with_zero, builder.integers(turn.tolist()), shape=shape, axis=axis) for turn in rounds]
    )


_END: Final = 2**31 - 1
"""What exporters write for "to the end", or more."""
_NUMPY_MODES: Final = {"reflect": "reflect", "wrap": "wrap"}


def cut_out(at: Application) -> Gradients:
    """Differentiate y = x[start:end:step]: unit steps are padded back, others are scattered."""
    starts, ends = at.constant_integers(1) or (), at.constant_integers(2) or ()
    given = at.constant_integers(3)
    steps = at.constant_integers(4) or (1,) * len(starts)
    axes = [axis % at.x.rank for axis in given] if given is not None else list(range(len(starts)))
    g = at.g
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size = at.x.shape[axis]
        if start == 0 and step == 1 and (end >= _END or at.y.shape[axis] == size):
            continue  # All of it, whatever its size.
        if not isinstance(size, int):
            raise at.refusal(f"the size along axis {axis} must be fixed")
        chosen = range(size)[slice(start, end if step > 0 or end >= -size else None, step)]
        shape = (*g.shape[:axis], size, *g.shape[axis + 1 :])
        if len(chosen) == size and step == 1:
            continue
        if step == 1 and len(chosen):
            pads = at.builder.integers([chosen[0], size - 1 - chosen[-1]])
            g = at.builder.apply("Pad", g, pads, None, at.builder.integers([axis]), shape=shape)
        else:
            g = returned(g, axis, np.array(chosen, np.int64), size)
    return [g]


def depth_to_space(at: Application) -> Gradients:
    """Differentiate y = channels dealt out over blocks of pixels."""
    block = at.integer("blocksize", 1)
    batch, channels, height, width = at.x.shape
    if not all(isinstance(dim, int) for dim in (channels, height, width)):
        raise at.refusal("all sizes but the batch must be fixed")
    depth, rows, columns = int(channels) // block**2, int(height), int(width)
    g = at.g.reshape((batch, depth, rows, block, columns, block))
    order = (0, 1, 3, 5, 2, 4) if at.word("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    return [g.transpose(order).reshape(at.x.shape)]


def space_to_depth(at: Application) -> Gradients:
    """Differentiate y = blocks of pixels stacked as channels; DepthToSpace leads back."""
    block = at.integer("blocksize", 1)
    return [at.builder.apply("DepthToSpace", at.g, shape=at.x.shape, blocksize=block, mode=at.word("mode", "DCR"))]


RULES: Final[Mapping[str, Rule]] = {
    "Concat": concat,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Flatten": reshaped,
    "Pad": pad,
    "Reshape": reshaped,
    "Slice": cut_out,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": reshaped,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": reshaped,
}
"""Rules by operator."""
