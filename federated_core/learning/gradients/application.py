"""What a gradient rule sees of the node it differentiates."""

from collections.abc import Callable, Sequence

from federated_core.errors import UntrainableModelError
from federated_core.learning.gradients.builder import Builder, Expr
from federated_core.learning.graph import Node


class Application:
    """One node of the forward graph, and the gradients that arrive at its outputs."""

    def __init__(self, builder: Builder, node: Node, gradients: Sequence[Expr | None], active: set[str]) -> None:
        self.builder = builder
        self.node = node
        self.gradients = gradients
        self._active = active

    @property
    def g(self) -> Expr:
        """The gradient of the first output; zeros if only a later output leads to the loss."""
        return self.gradient(0)

    def gradient(self, slot: int) -> Expr:
        """Return the gradient of output ``slot``, zeros if the loss does not read it."""
        found = self.gradients[slot]
        if found is not None:
            return found
        output = self.output(slot)
        return self.builder.zeros(output.shape, output.dtype, output)

    @property
    def x(self) -> Expr:
        """The first input."""
        return self.input(0)

    @property
    def y(self) -> Expr:
        """The first output."""
        return self.output(0)

    def input(self, slot: int) -> Expr:
        """Return input ``slot``."""
        return self.builder.value(self.node.inputs[slot])

    def output(self, slot: int) -> Expr:
        """Return output ``slot``."""
        return self.builder.value(self.node.outputs[slot])

    def has_input(self, slot: int) -> bool:
        """Tell whether optional input ``slot`` is given."""
        return len(self.node.inputs) > slot and self.node.inputs[slot] != ""

    def wants(self, slot: int) -> bool:
        """Tell whether the gradient of input ``slot`` leads to a wanted parameter."""
        return self.has_input(slot) and self.node.inputs[slot] in self._active

    def integer(self, key: str, default: int) -> int:
        """Return an integer attribute."""
        value = self.node.attributes.get(key, default)
        if not isinstance(value, int):
            raise self.refusal(f"attribute '{key}' must be an integer")
        return value

    def number(self, key: str, default: float) -> float:
        """Return a float attribute."""
        value = self.node.attributes.get(key, default)
        if not isinstance(value, int | float):
            raise self.refusal(f"attribute '{key}' must be a number")
        return float(value)

    def word(self, key: str, default: str) -> str:
        """Return a string attribute."""
        value = self.node.attributes.get(key, default)
        if not isinstance(value, str):
            raise self.refusal(f"attribute '{key}' must be a word")
        return value

    def integers(self, key: str) -> tuple[int, ...] | None:
        """Return an attribute of several integers, None if it is left out."""
        value = self.node.attributes.get(key)
        if value is None:
            return None
        if not isinstance(value, tuple):
            raise self.refusal(f"attribute '{key}' must be integers")
        return tuple(int(item) for item in value)

    def constant_integers(self, slot: int) -> tuple[int, ...] | None:
        """Return input ``slot`` (axes, pads, a shape) if it is given; it must be fixed."""
        if not self.has_input(slot):
            return None
        array = self.builder.constant_value(self.node.inputs[slot])
        if array is None:
            raise self.refusal(f"input {slot} ('{self.node.inputs[slot]}') must be a constant")
        return tuple(int(item) for item in array.reshape(-1))

    def refusal(self, reason: str) -> UntrainableModelError:
        """Return the error that says why this node cannot be differentiated."""
        name = self.node.name or self.node.outputs[0]
        return UntrainableModelError(f"node '{name}' ({self.node.op}) cannot be differentiated: {reason}")


Gradients = Sequence[Expr | None]
Rule = Callable[[Application], Gradients]
