"""The windows of convolutions and pools: explicit strides, pads and dilations for every way to write them."""

from typing import NamedTuple

from federated_core.learning.gradients.application import Application
from federated_core.learning.graph import Shape


class Windows(NamedTuple):
    """One entry per spatial axis."""

    sizes: tuple[int, ...]
    outputs: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def pads(self) -> tuple[int, ...]:
        """Return the pads as the attribute has them: all begins, then all ends."""
        return self.begins + self.ends

    @property
    def overlap(self) -> bool:
        """Tell whether two windows may share an element."""
        return any(
            stride < (size - 1) * dilation + 1
            for stride, size, dilation in zip(self.strides, self.kernel, self.dilations, strict=True)
        )


def spatial(at: Application, shape: Shape) -> tuple[int, ...]:
    """Return the spatial sizes of ``shape``; a rule with windows needs them fixed."""
    sizes = shape[2:]
    if not all(isinstance(size, int) for size in sizes):
        raise at.refusal(
            f"its spatial sizes {list(sizes)} must be fixed (the batch may be free): give sizes to the model's free "
            "dimensions"
        )
    return tuple(int(size) for size in sizes)


def windows(at: Application, kernel: tuple[int, ...], small: tuple[int, ...], large: tuple[int, ...]) -> Windows:
    """Resolve the attributes of a convolution or pool that maps sizes ``large`` to ``small``."""
    axes = len(kernel)
    strides = at.integers("strides") or (1,) * axes
    dilations = at.integers("dilations") or (1,) * axes
    auto_pad = at.word("auto_pad", "NOTSET")
    if auto_pad in {"SAME_UPPER", "SAME_LOWER"}:
        totals = [
            max(0, (out - 1) * stride + (size - 1) * dilation + 1 - whole)
            for out, stride, size, dilation, whole in zip(small, strides, kernel, dilations, large, strict=True)
        ]
        halves = tuple(total // 2 for total in totals)
        others = tuple(total - half for total, half in zip(totals, halves, strict=True))
        begins, ends = (halves, others) if auto_pad == "SAME_UPPER" else (others, halves)
    else:
        pads = (at.integers("pads") if auto_pad == "NOTSET" else None) or (0,) * (2 * axes)
        begins, ends = pads[:axes], pads[axes:]
    if not len(strides) == len(dilations) == len(begins) == len(ends) == axes:
        raise at.refusal("strides, dilations and pads need one entry per spatial axis")
    return Windows(large, small, kernel, strides, dilations, begins, ends)
