"""Gradient rules of convolutions: each is made of other convolutions.

References
----------
Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016. arXiv:1603.07285
"""

from collections.abc import Mapping
from typing import Final

from federated_core.learning.gradients.application import Application, Gradients, Rule
from federated_core.learning.gradients.builder import Expr, flattened
from federated_core.learning.gradients.windows import Windows, spatial, windows


def convolution(at: Application) -> Gradients:
    """Differentiate y = W * x + b."""
    x, weight = at.x, at.input(1)
    shape = spatial(at, weight.shape)
    window = windows(at, shape, spatial(at, at.y.shape), spatial(at, x.shape))
    group = at.integer("group", 1)
    gx = _transposed(at, weight, window, group) if at.wants(0) else None
    gw = _weight(at, x, at.g, window, group, weight) if at.wants(1) else None
    return [gx, gw, _bias(at)]


def transposed_convolution(at: Application) -> Gradients:
    """Differentiate y = the transpose of a convolution applied to x, plus b: Conv's rule with x and g exchanged."""
    x, weight = at.x, at.input(1)
    window = _transposed_windows(at, spatial(at, weight.shape), spatial(at, x.shape), spatial(at, at.y.shape))
    group = at.integer("group", 1)
    gx = None
    if at.wants(0):
        gx = at.builder.apply("Conv", at.g, weight, shape=x.shape, attributes=_attributes(window, group))
        gx = _cropped(gx, spatial(at, x.shape))
    gw = _weight(at, at.g, x, window, group, weight) if at.wants(1) else None
    return [gx, gw, _bias(at)]


def _bias(at: Application) -> Expr | None:
    if not at.wants(2):
        return None
    axes = [0, *range(2, at.g.rank)]
    return at.g.sum(axes, keepdims=False)


def _attributes(window: Windows, group: int) -> dict[str, tuple[int, ...] | int]:
    return {
        "dilations": window.dilations,
        "group": group,
        "kernel_shape": window.kernel,
        "pads": window.pads,
        "strides": window.strides,
    }


def _transposed(at: Application, weight: Expr, window: Windows, group: int) -> Expr:
    left_over = tuple(
        size - ((out - 1) * stride + (k - 1) * dilation + 1 - begin - end)
        for size, out, k, stride, dilation, begin, end in zip(
            window.sizes, window.outputs, window.kernel, window.strides, window.dilations, window.begins, window.ends,
            strict=True,
        )
    )  # fmt: skip
    return at.builder.apply(
        "ConvTranspose", at.g, weight, shape=at.x.shape, output_padding=left_over, attributes=_attributes(window, group)
    )


def _weight(at: Application, x: Expr, g: Expr, window: Windows, group: int, weight: Expr) -> Expr:
    """Correlate x with g: a convolution over the batch, with the roles of stride and dilation exchanged."""
    axes = len(window.kernel)
    plain = all(k == 1 for k in window.kernel) and all(s == 1 for s in window.strides) and not any(window.pads)
    if plain and group == 1:
        return _pointwise_weight(at, x, g, weight)
    swap = (1, 0, *range(2, axes + 2))
    inner, outer = x.shape[1], g.shape[1]
    kernel, image = g.transpose(swap), x.transpose(swap)
    if group > 1:
        # [N, G, C/G, ...] -> [C/G, G N, ...]: the groups of the weight become groups of the batch.
        image = _grouped(x, group).transpose((2, 1, 0, *range(3, axes + 3)))
        image = image.reshape((int(inner) // group, flattened((group, x.shape[0])), *x.shape[2:]))
        kernel = _grouped(g, group).transpose((1, 2, 0, *range(3, axes + 3)))
        kernel = kernel.reshape((outer, g.shape[0], *g.shape[2:]))
    sizes = tuple(
        ((size + begin + end) - ((out - 1) * stride + 1)) // dilation + 1
        for size, out, stride, dilation, begin, end in zip(
            window.sizes, window.outputs, window.strides, window.dilations, window.begins, window.ends, strict=True
        )
    )
    found = at.builder.apply(
        "Conv",
        image,
        kernel,
        shape=(image.shape[0], outer, *sizes),
        dilations=window.strides,
        group=group,
        pads=window.pads,
        strides=window.dilations,
    )
    return _cropped(found, window.kernel).transpose(swap)


def _grouped(x: Expr, group: int) -> Expr:
    return x.reshape((x.shape[0], group, int(x.shape[1]) // group, *x.shape[2:]))


def _pointwise_weight(at: Application, x: Expr, g: Expr, weight: Expr) -> Expr:
    def rows(value: Expr) -> Expr:
        swapped = value.transpose((1, 0, *range(2, value.rank)))
        return swapped.reshape((value.shape[1], flattened((value.shape[0], *value.shape[2:]))))

    return at.builder.matmul_2d(rows(g), rows(x), transpose_b=True).reshape(weight.shape)


def _cropped(x: Expr, sizes: tuple[int, ...]) -> Expr:
    for axis, size in enumerate(sizes, start=2):
        if x.shape[axis] != size:
            x = x.slice(axis, 0, size)
    return x


def _transposed_windows(
    at: Application, kernel: tuple[int, ...], small: tuple[int, ...], large: tuple[int, ...]
) -> Windows:
    """Resolve ConvTranspose's pads, which follow a formula of their own when the output's shape rules."""
    axes = len(kernel)
    strides = at.integers("strides") or (1,) * axes
    dilations = at.integers("dilations") or (1,) * axes
    extra = at.integers("output_padding") or (0,) * axes
    auto_pad = at.word("auto_pad", "NOTSET")
    pads = at.integers("pads") or (0,) * (2 * axes)
    begins, ends = pads[:axes], pads[axes:]
    if auto_pad == "VALID":
        begins = ends = (0,) * axes
    elif auto_pad != "NOTSET" or at.integers("output_shape") is not None:
        totals = [
            max(0, stride * (size - 1) + more + (k - 1) * dilation + 1 - whole)
            for stride, size, more, k, dilation, whole in zip(
                strides, small, extra, kernel, dilations, large, strict=True
            )
        ]
        halves = tuple(total // 2 for total in totals)
        others = tuple(total - half for total, half in zip(totals, halves, strict=True))
        begins, ends = (halves, others) if auto_pad == "SAME_UPPER" else (others, halves)
    return Windows(large, small, kernel, strides, dilations, begins, ends)


RULES: Final[Mapping[str, Rule]] = {"Conv": convolution, "ConvTranspose": transposed_convolution}
"""Rules by operator."""
