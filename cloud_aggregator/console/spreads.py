"""How accuracy differs between the devices of a round; closed rounds never change, so each is read once."""

import threading
from collections.abc import Sequence

import msgspec

from cloud_aggregator.console.records import Spread
from cloud_aggregator.training_round import Accepted

_KEPT_MAX = 100_000


class _Accepted(msgspec.Struct, frozen=True):
    """The part of a round's state that the spread is made of; the rest is skipped when it is read."""

    accepted: tuple[Accepted, ...] = ()


_DECODER = msgspec.msgpack.Decoder(_Accepted)


class SpreadCache:
    """Spreads of closed rounds, by task and number."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], Spread | None] = {}
        self._lock = threading.Lock()

    def __contains__(self, key: tuple[str, int]) -> bool:
        return key in self._known

    def get(self, key: tuple[str, int]) -> Spread | None:
        """Return what is known of a round; None also if no device had a holdout."""
        return self._known.get(key)

    def add(self, task: str, number: int, state: bytes) -> None:
        """Read the spread of a closed round from its ``state``."""
        with self._lock:
            if len(self._known) >= _KEPT_MAX:
                self._known.clear()
            self._known[task, number] = spread_of(_DECODER.decode(state).accepted)


def spread_of(accepted: Sequence[Accepted]) -> Spread | None:
    """Return the quartiles of the devices' accuracies, each device counting once; None without any holdout."""
    metrics = (one.metrics for one in accepted)
    ordered = sorted(one.correct_count / one.example_count for one in metrics if one.example_count)
    if not ordered:
        return None
    return Spread(len(ordered), *(_quantile(ordered, quarter / 4) for quarter in range(5)))


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Between the two nearest values, in proportion (the usual definition, Hyndman and Fan's seventh)."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
