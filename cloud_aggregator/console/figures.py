"""Which charts are drawn of a series of rounds."""

from collections.abc import Sequence

from cloud_aggregator.console import charts, presentation
from cloud_aggregator.console.records import RoundPoint

_UNITS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


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
            label=presentation.format_bytes,
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
