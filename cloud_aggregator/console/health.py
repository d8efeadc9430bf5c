"""For the machines that watch this one: is it up, and how does it fare."""

from collections.abc import Iterable

from flask import Blueprint, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from cloud_aggregator.console import queries, records
from cloud_aggregator.console.context import parts, reading
from cloud_aggregator.console.permissions import needs

blueprint = Blueprint("health", __name__)


@blueprint.get("/healthz")
@needs("public")
def healthz() -> Response:
    """Answer whether pages can be served; says nothing else to strangers."""
    if not queries.overview.is_answered(reading()):
        return Response("the database does not answer\n", 503, content_type="text/plain; charset=utf-8")
    return Response("ok\n", content_type="text/plain; charset=utf-8")


@blueprint.get("/metrics")
@needs("monitor")
def metrics() -> Response:
    """Answer with counts for Prometheus; no device is ever a label."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(queries.overview.figures(reading()), parts().feed.open_count))
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)


class _Collected:
    """Figures in the words of Prometheus."""

    def __init__(self, figures: records.Figures, stream_count: int) -> None:
        self._figures = figures
        self._stream_count = stream_count

    def collect(self) -> Iterable[Metric]:
        """Yield every metric."""
        figures = self._figures
        devices = GaugeMetricFamily("fallow_devices", "Enrolled devices by presence.", labels=["presence"])
        for presence, count in figures.presence.items():
            devices.add_metric([presence], count)
        yield devices
        rounds = GaugeMetricFamily("fallow_rounds", "Rounds by task and phase.", labels=["task", "phase"])
        for (task, phase), count in figures.rounds.items():
            rounds.add_metric([task, phase], count)
        yield rounds
        accuracy = GaugeMetricFamily(
            "fallow_accuracy_ratio",
            "Accuracy of the newest judged checkpoint on the devices' holdouts.",
            labels=["task"],
        )
        for task, value in figures.accuracy.items():
            accuracy.add_metric([task], value)
        yield accuracy
        payload = CounterMetricFamily(
            "fallow_payload_bytes", "Payload of closed rounds by purpose.", labels=["purpose"]
        )
        for purpose, size_bytes in figures.bytes.items():
            payload.add_metric([purpose], size_bytes)
        yield payload
        for name, value in figures.counters.items():
            yield CounterMetricFamily(f"fallow_{name}", f"Counter {name} of the aggregator.", value=value)
        yield CounterMetricFamily("fallow_events", "Events recorded.", value=figures.newest_event)
        yield GaugeMetricFamily(
            "fallow_open_commands", "Commands not carried out yet.", value=figures.open_command_count
        )
        yield GaugeMetricFamily("fallow_console_streams", "Open pages that watch live.", value=self._stream_count)
