"""What an operator of the numpy engine is: arrays and attributes in, arrays out."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from federated_core.errors import LocalMisuseError
from federated_core.learning.graph import Attribute, Node, Tensor

Array = NDArray[Any]


class Call(NamedTuple):
    """One node about to run."""

    node: Node
    inputs: tuple[Array | None, ...]

    @property
    def x(self) -> Array:
        """The first input."""
        return self.input(0)

    def has(self, slot: int) -> bool:
        """Tell whether optional input ``slot`` is given."""
        return len(self.inputs) > slot and self.inputs[slot] is not None

    def input(self, slot: int) -> Array:
        """Return input ``slot``."""
        found = self.inputs[slot] if slot < len(self.inputs) else None
        if found is None:
            raise LocalMisuseError(f"{self.node.op} needs input {slot}")
        return found

    def integer(self, key: str, default: int) -> int:
        """Return an integer attribute."""
        return int(self._number(key, default))

    def number(self, key: str, default: float) -> float:
        """Return a float attribute."""
        return float(self._number(key, default))

    def _number(self, key: str, default: float) -> float:
        value = self.node.attributes.get(key, default)
        if not isinstance(value, int | float):
            raise LocalMisuseError(f"{self.node.op}: attribute '{key}' must be a number")
        return value

    def word(self, key: str, default: str) -> str:
        """Return a string attribute."""
        return str(self.node.attributes.get(key, default))

    def integers(self, key: str) -> tuple[int, ...] | None:
        """Return an attribute of several integers, None if it is left out."""
        value: Attribute | None = self.node.attributes.get(key)
        return tuple(int(item) for item in value) if isinstance(value, tuple) else None

    def tensor(self, key: str) -> Array | None:
        """Return a constant attribute, None if it is left out."""
        value = self.node.attributes.get(key)
        return value.array() if isinstance(value, Tensor) else None

    def axes(self, slot: int) -> tuple[int, ...] | None:
        """Return axes given as input ``slot``, None if they are left out."""
        return tuple(int(axis) for axis in self.input(slot)) if self.has(slot) else None


Operator = Callable[[Call], "Array | tuple[Array, ...]"]
Operators = Mapping[str, Operator]


def each(function: Callable[..., Any]) -> Operator:
    """Make an operator of a numpy function that keeps the type of its first input."""

    def run(call: Call) -> Array:
        return np.asarray(function(*(array for array in call.inputs if array is not None)))

    return run
