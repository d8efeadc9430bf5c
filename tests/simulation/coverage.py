"""Which (state, event) pairs of the machines were met: the machines' `step` functions, watched."""

import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from cloud_aggregator import task_progress, training_round
from edge_agent import session
from federated_core.adapters import chunk_sender
from federated_core.protocol import transfer

Pair = tuple[str, str, str]  # Machine, state, event.
Counts = dict[Pair, int]

_MACHINES: tuple[tuple[str, ModuleType, str, Any, Any], ...] = (
    ("session", session, "step", session.SessionState, session.SessionEvent),
    ("round", training_round, "step", training_round.RoundState, training_round.RoundEvent),
    ("task", task_progress, "step", task_progress.TaskState, task_progress.TaskEvent),
    ("fetch", transfer, "step_fetch", transfer.FetchState, transfer.FetchEvent),
    ("send", chunk_sender, "step_send", transfer.Sending, transfer.SendEvent),
)


def all_pairs() -> tuple[Pair, ...]:
    """List every pair that exists, whether or not it can come about."""
    return tuple(
        (name, state.__name__, event.__name__)
        for name, _, _, states, events in _MACHINES
        for state in typing.get_args(states) or (states,)
        for event in typing.get_args(events)
    )


@contextmanager
def watched(counts: Counts, saw: Callable[[str, str, str, str, tuple[str, ...]], None]) -> Iterator[None]:
    """Count each step of every machine, and tell ``saw`` its machine, state, event, next state and actions."""
    originals = [(module, function, getattr(module, function)) for _, module, function, _, _ in _MACHINES]

    def watch(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def watched_step(state: Any, event: Any, *more: Any) -> Any:
            result = step(state, event, *more)
            pair = (name, type(state).__name__, type(event).__name__)
            counts[pair] = counts.get(pair, 0) + 1
            saw(*pair, type(result[0]).__name__, tuple(type(action).__name__ for action in result[1]))
            return result

        return watched_step

    for (name, _, _, _, _), (module, function, step) in zip(_MACHINES, originals, strict=True):
        setattr(module, function, watch(name, step))
    try:
        yield
    finally:
        for module, function, step in originals:
            setattr(module, function, step)
