"""Local optimizers as graph nodes: how one training step changes a parameter, given its gradient.

Each is a pure emitter. What an optimizer remembers between steps (a velocity, moments, a step count) is a *slot*: one
more input of the training-step graph and one more output, zero when a session opens and never sent anywhere.
"""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from federated_core.learning.gradients.builder import Builder, Expr
from federated_core.learning.graph import Shape, Value
from federated_core.learning.step_interface import ANCHOR, SLOT, Optimizer


class Updates(NamedTuple):
    """What a step adds to a graph: inputs that it declared, and what parameters and slots become, by name."""

    declared: tuple[Value, ...]
    updated: Mapping[str, Expr]


class Memory:
    """The slots of one step: declared as inputs when first asked for, and what they become."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder
        self._slots: dict[str, Expr] = {}
        self.updated: dict[str, Expr] = {}

    @property
    def declared(self) -> tuple[Value, ...]:
        """Return the slots as graph inputs, in the order of declaration."""
        return tuple(Value(slot.name, slot.dtype, slot.shape) for slot in self._slots.values())

    def slot(self, name: str, shape: Shape) -> Expr:
        """Return the state ``name`` as it was before the step."""
        if name not in self._slots:
            self._slots[name] = self._builder.declare(Value(SLOT + name, "float32", shape))
        return self._slots[name]

    def remember(self, slot: Expr, value: Expr) -> None:
        """Say what ``slot`` is after the step."""
        self.updated[slot.name] = value


class Step(NamedTuple):
    """One parameter in one step."""

    parameter: Expr
    gradient: Expr
    learning_rate: Expr
    memory: Memory


def emit_updates(builder: Builder, gradients: Mapping[str, Expr], learning_rate: Expr, optimizer: Optimizer) -> Updates:
    """Emit one optimizer step for every parameter that has a gradient.

    Parameters
    ----------
    builder : Builder
        Knows the parameters as values.
    gradients : mapping of str to Expr
        The gradient of the loss by parameter name.
    learning_rate : Expr
        A float32 scalar.
    optimizer : Optimizer
        What to do with them: weight decay and the proximal pull are added to the gradient, the sum is clipped to the
        norm, the optimizer proper comes last.

    Returns
    -------
    Updates
        ``anchor/<name>`` inputs (where the proximal pull leads) and slots; the new value of parameters and slots.

    References
    ----------
    Li et al., "Federated Optimization in Heterogeneous Networks" (FedProx), MLSys 2020. arXiv:1812.06127

    Examples
    --------
    >>> builder = Builder({"w": Value("w", "float32", (2,)), "g": Value("g", "float32", (2,))}, {}, (), 18)
    >>> rate = builder.declare(Value("rate", "float32", ()))
    >>> updates = emit_updates(builder, {"w": builder.value("g")}, rate, Optimizer("momentum"))
    >>> [value.name for value in updates.declared], sorted(updates.updated)
    (['slot/velocity/w'], ['slot/velocity/w', 'w'])
    """
    memory = Memory(builder)
    anchors: list[Value] = []
    pulled: dict[str, Expr] = {}
    for name, gradient in gradients.items():
        parameter, pull = builder.value(name), gradient
        if optimizer.weight_decay:
            pull = pull + parameter * optimizer.weight_decay
        if optimizer.proximal:
            anchor = Value(ANCHOR + name, parameter.dtype, parameter.shape)
            anchors.append(anchor)
            pull = pull + (parameter - builder.declare(anchor)) * optimizer.proximal
        pulled[name] = pull
    if optimizer.clip_norm and pulled:
        squares = [(pull * pull).sum(keepdims=False) for pull in pulled.values()]
        norm = builder.sum(squares).unary("Sqrt")
        scale = norm.greater(optimizer.clip_norm).where(optimizer.clip_norm / norm, 1.0)
        pulled = {name: pull * scale for name, pull in pulled.items()}
    emit = OPTIMIZERS[optimizer.name]
    updated = {
        name: emit(Step(builder.value(name), pull, learning_rate, memory), optimizer) for name, pull in pulled.items()
    }
    return Updates((*anchors, *memory.declared), {**updated, **memory.updated})


def _sgd(step: Step, optimizer: Optimizer) -> Expr:  # noqa: ARG001 - one signature for all.
    """Emit w - rate * g."""
    return step.parameter - step.learning_rate * step.gradient


def _momentum(step: Step, optimizer: Optimizer) -> Expr:
    """Emit v' = m v + g and w - rate * v' (PyTorch's form, no dampening)."""
    slot = step.memory.slot(f"velocity/{step.parameter.name}", step.parameter.shape)
    velocity = slot * optimizer.momentum + step.gradient
    step.memory.remember(slot, velocity)
    return step.parameter - step.learning_rate * velocity


def _adam(step: Step, optimizer: Optimizer) -> Expr:
    """Emit Adam with bias correction (Kingma and Ba, ICLR 2015, algorithm 1, arXiv:1412.6980)."""
    memory, name, shape = step.memory, step.parameter.name, step.parameter.shape
    first_slot = memory.slot(f"first_moment/{name}", shape)
    second_slot = memory.slot(f"second_moment/{name}", shape)
    count_slot = memory.slot("step_count", ())
    first = first_slot * optimizer.momentum + step.gradient * (1.0 - optimizer.momentum)
    squared = step.gradient * step.gradient
    second = second_slot * optimizer.second_momentum + squared * (1.0 - optimizer.second_momentum)
    count = count_slot + 1.0
    memory.remember(first_slot, first)
    memory.remember(second_slot, second)
    memory.remember(count_slot, count)
    unbiased = 1.0 - count.scalar(optimizer.momentum) ** count
    second_unbiased = 1.0 - count.scalar(optimizer.second_momentum) ** count
    scale = (second / second_unbiased).unary("Sqrt") + optimizer.epsilon
    return step.parameter - (step.learning_rate / unbiased) * (first / scale)


OPTIMIZERS: Final[Mapping[str, Callable[[Step, Optimizer], Expr]]] = {"sgd": _sgd, "momentum": _momentum, "adam": _adam}
"""Emitters by name: given a parameter and its gradient, the parameter after the step."""
