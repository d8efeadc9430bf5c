"""Payload bytes by what they were for."""

from cloud_aggregator.traffic import Traffic, TrafficMeter


def test_bytes_are_counted_by_purpose_until_they_are_taken() -> None:
    meter = TrafficMeter()
    for size_bytes in (100, 20):
        meter.note("up", size_bytes)
    meter.note("down", 7)
    meter.note("keyframe", 3000)
    meter.note("bundle", 50_000)
    assert meter.take() == Traffic(up=120, down=7, keyframe=3000, bundle=50_000)
    assert meter.take() == Traffic()


def test_what_comes_after_one_round_is_counted_for_the_next() -> None:
    meter = TrafficMeter()
    meter.note("up", 100)
    meter.take()
    meter.note("up", 5)
    assert meter.take() == Traffic(up=5)
