"""Which charts are drawn of a series of rounds, and the table of the figures behind them."""

from collections.abc import Sequence

from markupsafe import Markup

from cloud_aggregator.console import charts
from cloud_aggregator.console.presentation import format_bytes, format_duration, format_percent
from cloud_aggregator.console.records import RoundPoint, Spread

_UNITS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


_ROW = Markup(  # One template for a thousand rows of numbers: the engine of the pages takes four times as long.
    '<tr data-round="{0}"><th scope="row">{0}</th><td data-chart="accuracy" data-name="accuracy">{1}</td>'
    '<td data-chart="accuracy" data-name="middle half">{2}</td>'
    '<td data-chart="accuracy" data-name="all devices">{3}</td>'
    '<td data-chart="reports" data-name="invited">{4:,}</td><td data-chart="reports" data-name="reports">{5:,}</td>'
    '<td data-chart="bytes" data-name="up">{6}</td><td data-chart="bytes" data-name="down">{7}</td>'
    '<td data-chart="seconds" data-name="duration">{8}</td></tr>'
)


def charts_of(points: Sequence[RoundPoint]) -> tuple[charts.Chart, ...]:
    """Return the charts of ``points``: accuracy with its spread over devices, reports, bytes, seconds."""
    if not points:
        return ()
    rounds = [point.round for point in points]
    numbers = [one.number for one in rounds]
    longest_s = max((one.seconds or 0.0 for one in rounds), default=0.0)
    unit_s, unit = next((span for span in _UNITS if longest_s >= 2.0 * span[0]), _UNITS[-1])
    drawn = (
        charts.draw(
            "accuracy",
            "Accuracy on the devices’ holdouts",
            numbers,
            [charts.Series("accuracy", "main", tuple(one.accuracy for one in rounds))],
            spread=[None if (one := point.spread) is None else (one.quarter, one.three_quarters) for point in points],
            largest=1.0,
            label=lambda value: f"{100.0 * value:.4g} %",
        ),
        charts.draw(
            "reports",
            "Devices per round",
            numbers,
            [
                charts.Series("invited", "faint", tuple(float(one.assignment_count) for one in rounds)),
                charts.Series("reports", "main", tuple(float(one.report_count) for one in rounds)),
            ],
            label=lambda value: f"{value:,.4g}",
        ),
        charts.draw(
            "bytes",
            "Bytes per round",
            numbers,
            [
                charts.Series("up", "main", tuple(float(one.bytes_up) for one in rounds)),
                charts.Series("down", "faint", tuple(float(one.bytes_down + one.bytes_keyframe) for one in rounds)),
            ],
            label=format_bytes,
        ),
        charts.draw(
            "seconds",
            "Duration of a round",
            numbers,
            [charts.Series("duration", "main", tuple(one.seconds and one.seconds / unit_s for one in rounds))],
            label=lambda value: f"{value:,.4g} {unit}",
        ),
    )
    return tuple(chart for chart in drawn if chart is not None)


def rows_of(points: Sequence[RoundPoint]) -> Markup:
    """Return the rows of the table behind the charts."""
    return Markup("\n").join(
        _ROW.format(
            one.number,
            format_percent(one.accuracy),
            *_ranges(spread),
            one.assignment_count,
            one.report_count,
            format_bytes(one.bytes_up),
            format_bytes(one.bytes_down + one.bytes_keyframe),
            format_duration(one.seconds),
        )
        for one, spread in ((point.round, point.spread) for point in points)
    )


def _ranges(spread: Spread | None) -> tuple[str, str]:
    if spread is None:
        return "–", "–"
    middle = f"{format_percent(spread.quarter)} to {format_percent(spread.three_quarters)}"
    return middle, f"{format_percent(spread.low)} to {format_percent(spread.high)}"
