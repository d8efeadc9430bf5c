"""Gradient rules of recurrent layers: native forward, gates again for all steps at once, backward in a Scan.

The layer itself stays the runtime's own fast node. Its output holds every hidden state, so the gates of all steps come
from two matrix products; only the recurrence of the gradient runs step by step, with what does not depend on it
prepared outside. Weight gradients are one matrix product over all steps.

Letters as in the ONNX operators: X input, W and R weights of input and state, B biases, H hidden size.

References
----------
Werbos, "Backpropagation through time", Proceedings of the IEEE 78(10), 1990.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from federated_core.learning.gradients.application import Application, Gradients, Rule
from federated_core.learning.gradients.builder import Expr, flattened
from federated_core.learning.graph import Shape

_DEFAULT_ACTIVATIONS: Final = {"GRU": ("sigmoid", "tanh"), "LSTM": ("sigmoid", "tanh", "tanh"), "RNN": ("tanh",)}


class _Layer(NamedTuple):
    """One direction of a recurrent layer."""

    at: Application
    place: int
    backwards: bool
    x: Expr
    w: Expr
    r: Expr
    bias: Expr | None
    y: Expr
    gy: Expr
    previous: Expr
    """The hidden state before each step."""

    @property
    def hidden_size(self) -> int:
        return int(self.r.shape[-1])

    def gate(self, value: Expr, place: int) -> Expr:
        """Take one gate out of several along the last axis."""
        return value.slice(value.rank - 1, place * self.hidden_size, (place + 1) * self.hidden_size)

    def projected(self, value: Expr, weight: Expr, *, bias_half: int) -> Expr:
        """Return value W' + b for all steps at once."""
        builder = self.at.builder
        rows = value.reshape((flattened(value.shape[:-1]), value.shape[-1]))
        product = self.at.builder.matmul_2d(rows, weight, transpose_b=True)
        if self.bias is not None:
            width = int(weight.shape[0])
            product = product + self.bias.slice(0, bias_half * width, (bias_half + 1) * width)
        shape = (*value.shape[:-1], weight.shape[0])
        dims = builder.apply("Concat", _leading(value), builder.integers([int(weight.shape[0])]), shape=(3,), axis=0)
        return builder.apply("Reshape", product, dims, shape=shape)


def _leading(value: Expr) -> Expr:
    """Return the first two dimensions as a tensor, free or not."""
    return value.builder.apply("Shape", value, shape=(2,), dtype="int64", start=0, end=2)


class _Found(NamedTuple):
    """The gradients of one direction."""

    x: Expr
    w: Expr
    r: Expr
    bias: Expr
    states: tuple[Expr, ...]


def gru(at: Application) -> Gradients:
    """Differentiate a GRU (gates z, r, c), either way to apply the reset gate."""
    _check(at)
    return _assembled(at, [_gru(layer) for layer in _layers(at)], (5,))


def _gru(layer: _Layer) -> _Found:
    hp, builder, size = layer.previous, layer.at.builder, layer.hidden_size
    ax = layer.projected(layer.x, layer.w, bias_half=0)
    ah = layer.projected(hp, layer.r, bias_half=1)
    update = (layer.gate(ax, 0) + layer.gate(ah, 0)).unary("Sigmoid")
    reset = (layer.gate(ax, 1) + layer.gate(ah, 1)).unary("Sigmoid")
    if layer.at.integer("linear_before_reset", 0):
        state_part = layer.gate(ah, 2)
        candidate = (layer.gate(ax, 2) + reset * state_part).unary("Tanh")
        kc = (1.0 - update) * (1.0 - candidate * candidate)
        kz = (hp - candidate) * update * (1.0 - update)
        kr = kc * state_part * reset * (1.0 - reset)
        coefficients = _joined([kz, kr, kc * reset])

        def step(state: list[Expr], item: list[Expr]) -> tuple[list[Expr], list[Expr]]:
            gy, k, z = item
            dh = state[0] + gy
            da = _joined([dh, dh, dh]) * k
            return [da.builder.matmul_2d(da, layer.r) + dh * z], [dh, da]

        (s,), (dh, dah) = builder.scan(
            [_last_state(layer, 1)], [layer.gy, coefficients, update], step, backwards=not layer.backwards
        )
        dax = _joined([layer.gate(dah, 0), layer.gate(dah, 1), dh * kc])
        return _collected(layer, dax, dah, [(dah, hp)], (s,))

    rows = layer.r.slice(0, 2 * size, 3 * size)
    others = layer.r.slice(0, 0, 2 * size)
    candidate_layer = layer.projected(reset * hp, layer.r, bias_half=1)
    candidate = (layer.gate(ax, 2) + layer.gate(candidate_layer, 2)).unary("Tanh")
    kc = (1.0 - update) * (1.0 - candidate * candidate)
    kz = (hp - candidate) * update * (1.0 - update)
    kr = hp * reset * (1.0 - reset)

    def late_step(state: list[Expr], item: list[Expr]) -> tuple[list[Expr], list[Expr]]:
        gy, k_z, k_r, k_c, z, r = item
        dh = state[0] + gy
        dc = dh * k_c
        gated = dc.builder.matmul_2d(dc, rows)
        dzr = _joined([dh * k_z, gated * k_r])
        carried = dzr.builder.matmul_2d(dzr, others) + dh * z + gated * r
        return [carried], [_joined([dzr, dc])]

    (s,), (da,) = builder.scan(
        [_last_state(layer, 1)],
        [layer.gy, kz, kr, kc, update, reset],
        late_step,
        backwards=not layer.backwards,
    )
    zr, c = da.slice(da.rank - 1, 0, 2 * size), layer.gate(da, 2)
    return _collected(layer, da, da, [(zr, hp), (c, reset * hp)], (s,))


def lstm(at: Application) -> Gradients:
    """Differentiate an LSTM (gates i, o, f, g); a Scan recovers the cell states, which the node does not return."""
    _check(at)
    if at.has_input(7):
        raise at.refusal("peepholes are not supported")
    if at.integer("input_forget", 0):
        raise at.refusal("coupled input and forget gates are not supported")
    return _assembled(at, [_lstm(layer) for layer in _layers(at)], (5, 6))


def _lstm(layer: _Layer) -> _Found:
    hp, builder = layer.previous, layer.at.builder
    a = layer.projected(layer.x, layer.w, bias_half=0) + layer.projected(hp, layer.r, bias_half=1)
    i, o, f = (layer.gate(a, place).unary("Sigmoid") for place in range(3))
    g = layer.gate(a, 3).unary("Tanh")

    def cell(state: list[Expr], item: list[Expr]) -> tuple[list[Expr], list[Expr]]:
        forget, added = item
        return [forget * state[0] + added], [state[0].unary("Identity")]

    start = _initial(layer, 6)
    _, (cp,) = builder.scan([start], [f, i * g], cell, backwards=layer.backwards)
    t = (f * cp + i * g).unary("Tanh")
    ko, kt = t * o * (1.0 - o), o * (1.0 - t * t)
    ki, kf, kg = g * i * (1.0 - i), cp * f * (1.0 - f), i * (1.0 - g * g)

    def step(state: list[Expr], item: list[Expr]) -> tuple[list[Expr], list[Expr]]:
        gy, k_o, k_t, k_i, k_f, k_g, forget = item
        dh = state[0] + gy
        dc = state[1] + dh * k_t
        da = _joined([dc * k_i, dh * k_o, dc * k_f, dc * k_g])
        return [da.builder.matmul_2d(da, layer.r), dc * forget], [da]

    (s, sc), (da,) = builder.scan(
        [_last_state(layer, 1), _last_state(layer, 2)],
        [layer.gy, ko, kt, ki, kf, kg, f],
        step,
        backwards=not layer.backwards,
    )
    return _collected(layer, da, da, [(da, hp)], (s, sc))


def rnn(at: Application) -> Gradients:
    """Differentiate a plain recurrent layer with tanh or relu."""
    _check(at)
    return _assembled(at, [_rnn(layer) for layer in _layers(at)], (5,))


def _rnn(layer: _Layer) -> _Found:
    relu = _activations(layer.at)[layer.place] == "relu"
    slope = layer.y.unary("Sign") if relu else 1.0 - layer.y * layer.y

    def step(state: list[Expr], item: list[Expr]) -> tuple[list[Expr], list[Expr]]:
        gy, k = item
        da = (state[0] + gy) * k
        return [da.builder.matmul_2d(da, layer.r)], [da]

    (s,), (da,) = layer.at.builder.scan([_last_state(layer, 1)], [layer.gy, slope], step, backwards=not layer.backwards)
    return _collected(layer, da, da, [(da, layer.previous)], (s,))


def _activations(at: Application) -> tuple[str, ...]:
    given = at.node.attributes.get("activations")
    directions = 2 if at.word("direction", "forward") == "bidirectional" else 1
    if not isinstance(given, tuple) or not given:
        return _DEFAULT_ACTIVATIONS[at.node.op] * directions
    return tuple(str(name).lower() for name in given)


def _check(at: Application) -> None:
    expected = _DEFAULT_ACTIVATIONS[at.node.op]
    directions = 2 if at.word("direction", "forward") == "bidirectional" else 1
    found = _activations(at)
    plain = at.node.op == "RNN" and set(found) <= {"tanh", "relu"}
    if found != expected * directions and not plain:
        raise at.refusal(f"activations {', '.join(found)} are not supported, only {', '.join(expected)}")
    if at.has_input(4):
        raise at.refusal("sequence_lens is not supported: pad the sequences and leave it out")
    if at.integer("layout", 0):
        raise at.refusal("layout 1 is not supported: transpose around the layer")
    if "clip" in at.node.attributes:
        raise at.refusal("clip is not supported")


def _layers(at: Application) -> list[_Layer]:
    direction = at.word("direction", "forward")
    ways = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    return [_layer(at, index, backwards) for index, backwards in enumerate(ways)]


def _layer(at: Application, index: int, backwards: bool) -> _Layer:  # noqa: FBT001 - a fact of the layer.
    builder, x = at.builder, at.x
    r = _picked(at.input(2), index)
    size = int(r.shape[-1])
    directions = at.input(2).shape[0]
    states: Shape = (x.shape[0], directions, x.shape[1], size)
    y = _direction(_hidden_states(at, states), index)
    gradient = at.gradients[0]
    gy = y * 0.0 if gradient is None else _direction(gradient, index)
    integers = builder.integers
    head, tail = (integers([1]), integers([2**31])) if backwards else (integers([0]), integers([-1]))
    rest = builder.apply("Slice", y, head, tail, integers([0]), shape=(f"{x.shape[0]}-1", *y.shape[1:]))
    partial = _Layer(at, index, backwards, x, _picked(at.input(1), index), r, None, y, gy, y)
    first = _initial(partial, 5)
    first = builder.apply("Unsqueeze", first, integers([0]), shape=(1, *first.shape))
    previous = builder.apply("Concat", *([rest, first] if backwards else [first, rest]), shape=y.shape, axis=0)
    bias = _picked(at.input(3), index) if at.has_input(3) else None
    return partial._replace(bias=bias, previous=previous)


def _hidden_states(at: Application, states: Shape) -> Expr:
    """Return the output that holds all hidden states, asking the node for it if nobody reads it."""
    name = next(name for name in at.node.outputs if name)
    return at.builder.extra_output(name, 0, at.x.dtype, states)


def _picked(value: Expr, index: int) -> Expr:
    return value.slice(0, index, index + 1).reshape(value.shape[1:]) if value.shape[0] != 1 else _dropped(value)


def _dropped(value: Expr) -> Expr:
    axis = value.builder.integers([0])
    return value.builder.apply("Squeeze", value, axis, shape=value.shape[1:])


def _direction(value: Expr, index: int) -> Expr:
    """Take one direction of [T, directions, N, H]."""
    one = value.slice(1, index, index + 1) if value.shape[1] != 1 else value
    axis = value.builder.integers([1])
    return value.builder.apply("Squeeze", one, axis, shape=(value.shape[0], *value.shape[2:]))


def _initial(layer: _Layer, slot: int) -> Expr:
    """Return the state before the first step: an input of the node, or zeros."""
    at, builder = layer.at, layer.at.builder
    if at.has_input(slot):
        return _one_of_states(at.input(slot), layer.place)
    one = builder.apply("Gather", layer.y, builder.constant(np.asarray(0, np.int64)), shape=layer.y.shape[1:], axis=0)
    return builder.zeros(one.shape, one.dtype, one)


def _last_state(layer: _Layer, output: int) -> Expr:
    """Return the gradient of the state after the last step (Y_h, Y_c): zeros unless the loss reads it."""
    gradients = layer.at.gradients
    found = gradients[output] if output < len(gradients) else None
    if found is not None:
        return _one_of_states(found, layer.place)
    first = _initial(layer, 5)
    return layer.at.builder.zeros(first.shape, first.dtype, first)


def _one_of_states(value: Expr, index: int) -> Expr:
    one = value.slice(0, index, index + 1) if value.shape[0] != 1 else value
    return value.builder.apply("Squeeze", one, value.builder.integers([0]), shape=value.shape[1:])


def _collected(
    layer: _Layer, dax: Expr, dah: Expr, pairs: Sequence[tuple[Expr, Expr]], states: tuple[Expr, ...]
) -> _Found:
    """Turn the gradients before the gates of all steps into those of weights, biases and input."""
    builder = layer.at.builder

    def rows(value: Expr) -> Expr:
        return value.reshape((flattened(value.shape[:-1]), value.shape[-1]))

    dw = builder.matmul_2d(rows(dax), rows(layer.x), transpose_a=True)
    dr = _joined([builder.matmul_2d(rows(da), rows(h), transpose_a=True) for da, h in pairs], axis=0)
    dbias = _joined([dax.sum([0, 1], keepdims=False), dah.sum([0, 1], keepdims=False)])
    dx = builder.matmul_2d(rows(dax), layer.w).reshape(layer.x.shape, layer.x)
    return _Found(dx, dw, dr, dbias, states)


def _assembled(at: Application, found: Sequence[_Found], state_slots: tuple[int, ...]) -> Gradients:
    """Put the directions together again: inputs add up, everything else is stacked."""
    gradients: list[Expr | None] = [None] * 8
    gradients[0] = at.builder.sum([item.x for item in found])
    gradients[1] = _stacked([item.w for item in found])
    gradients[2] = _stacked([item.r for item in found])
    gradients[3] = _stacked([item.bias for item in found]) if at.has_input(3) else None
    for place, slot in enumerate(state_slots):
        if at.has_input(slot):
            gradients[slot] = _stacked([item.states[place] for item in found])
    return gradients


def _stacked(values: Sequence[Expr]) -> Expr:
    builder = values[0].builder
    lifted = [builder.apply("Unsqueeze", value, builder.integers([0]), shape=(1, *value.shape)) for value in values]
    return _joined(lifted, axis=0)


def _joined(values: Sequence[Expr], axis: int | None = None) -> Expr:
    if len(values) == 1:
        return values[0]
    place = values[0].rank - 1 if axis is None else axis
    total = sum(int(value.shape[place]) for value in values)
    shape = (*values[0].shape[:place], total, *values[0].shape[place + 1 :])
    return values[0].builder.apply("Concat", *values, shape=shape, axis=place)


RULES: Final[Mapping[str, Rule]] = {"GRU": gru, "LSTM": lstm, "RNN": rnn}
"""Rules by operator."""
