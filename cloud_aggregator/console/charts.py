"""Geometry of the charts: from the rounds' figures to the paths of an SVG; the table behind it holds the figures."""

import math
from collections.abc import Callable, Iterable, Sequence

import msgspec

WIDTH, HEIGHT = 400, 210
LEFT, RIGHT, TOP, BOTTOM = 66, 14, 14, 28
_DOTS_MAX = 40
_TICKS_WANTED = 4


class Series(msgspec.Struct, frozen=True):
    """One line: values by round; None leaves a gap. ``tone`` names its colour in the stylesheet."""

    name: str
    tone: str
    values: tuple[float | None, ...]


class Tick(msgspec.Struct, frozen=True):
    """A mark on an axis."""

    place: float
    label: str


class Line(msgspec.Struct, frozen=True):
    """A line as drawn."""

    name: str
    tone: str
    path: str
    dots: tuple[tuple[float, float], ...]


class Chart(msgspec.Struct, frozen=True):
    """A chart as drawn; a script finds the round under the pointer by ``first`` and ``last``."""

    key: str
    title: str
    summary: str
    lines: tuple[Line, ...]
    band: str
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    first: int
    last: int
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def draw(
    key: str,
    title: str,
    numbers: Sequence[int],
    series: Sequence[Series],
    *,
    spread: Sequence[tuple[float, float] | None] = (),
    largest: float | None = None,
    label: Callable[[float], str],
) -> Chart | None:
    """Return the chart of ``series`` over the rounds ``numbers``; None if there is nothing to draw.

    ``spread`` is a band from low to high; no axis goes beyond ``largest``.
    """
    values = [value for one in series for value in one.values if value is not None]
    values += [edge for edges in spread if edges is not None for edge in edges]
    if not values:
        return None
    steps = ticks(min(values), max(values), largest)
    first, last = numbers[0], numbers[-1]
    x = _scale(first, last, LEFT, WIDTH - RIGHT)
    y = _scale(steps[0], steps[-1], HEIGHT - BOTTOM, TOP)
    return Chart(
        key=key,
        title=title,
        summary="; ".join(_summarize(one, numbers, label) for one in series),
        lines=tuple(
            Line(
                one.name,
                one.tone,
                _path([(x(number), y(value)) if value is not None else None for number, value in _pairs(numbers, one)]),
                _dots(numbers, one, x, y),
            )
            for one in series
        ),
        band=_band(numbers, spread, x, y),
        across=tuple(Tick(x(number), f"{number:,}") for number in _whole_ticks(first, last)),
        up=tuple(Tick(y(step), label(step)) for step in steps),
        first=first,
        last=last,
    )


def ticks(low: float, high: float, largest: float | None = None) -> tuple[float, ...]:
    """Return round numbers that enclose ``low`` and ``high``, evenly spaced."""
    if high <= low:
        low, high = low - abs(low) / 2 - 0.005, high + abs(high) / 2 + 0.005
    raw = (high - low) / _TICKS_WANTED
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    found = [index * step for index in range(start, end + 1)]
    if largest is not None:
        found = [value for value in found if value < largest - step / 2] + [largest]
    return tuple(found)


def _whole_ticks(first: int, last: int) -> tuple[int, ...]:
    if last - first < _TICKS_WANTED:
        return tuple(range(first, last + 1))
    return tuple(int(tick) for tick in ticks(first, last) if first <= tick <= last and tick == int(tick))


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    if high == low:
        return lambda _: (start + end) / 2
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _pairs(numbers: Sequence[int], series: Series) -> Iterable[tuple[int, float | None]]:
    return zip(numbers, series.values, strict=True)


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    parts, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        parts.append(f"{pen}{point[0]:.1f} {point[1]:.1f}")
        pen = "L"
    return "".join(parts)


def _dots(
    numbers: Sequence[int], series: Series, x: Callable[[float], float], y: Callable[[float], float]
) -> tuple[tuple[float, float], ...]:
    """Few values are shown one by one, a single one would not be seen otherwise."""
    if len(numbers) > _DOTS_MAX:
        return ()
    return tuple((round(x(n), 1), round(y(value), 1)) for n, value in _pairs(numbers, series) if value is not None)


def _band(
    numbers: Sequence[int],
    spread: Sequence[tuple[float, float] | None],
    x: Callable[[float], float],
    y: Callable[[float], float],
) -> str:
    known = [(number, edges) for number, edges in zip(numbers, spread, strict=False) if edges is not None]
    if not known:
        return ""
    below = [(x(number), y(edges[0])) for number, edges in known]
    above = [(x(number), y(edges[1])) for number, edges in reversed(known)]
    return _path([*below, *above]) + "Z"


def _summarize(series: Series, numbers: Sequence[int], label: Callable[[float], str]) -> str:
    known = [(number, value) for number, value in _pairs(numbers, series) if value is not None]
    if not known:
        return f"{series.name}: no figures"
    (first, start), (last, end) = known[0], known[-1]
    return f"{series.name}: {label(start)} in round {first}, {label(end)} in round {last}"
