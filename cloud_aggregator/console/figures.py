"""Which charts are drawn of a series of rounds."""

from collections.abc import Sequence

from cloud_aggregator.console import charts, presentation
from cloud_aggregator.console.records import RoundPoint


def charts_of(points: Sequence[RoundPoint]) -> tuple[charts.Chart, ...]:
    """Return the charts of ``points``: accuracy with its spread over devices, reports, bytes, seconds."""
    if not points:
        return ()
    rounds = [point.round for point in points]
    numbers = [one.number for one in rounds]
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
            [charts.Series("duration", "main", tuple(one.seconds for one in rounds))],
            label=presentation.format_duration,
        ),
    )
    return tuple(chart for chart in drawn if chart is not None)
