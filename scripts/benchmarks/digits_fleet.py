"""Our fleet on Flower's digits task: same data, same split, same batches, rate and epochs."""

import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from cloud_aggregator.recipe import load_recipe
from models.digits_mlp.build import build
from scripts.benchmarks.flower_app.digits import task as digits
from scripts.benchmarks.flower_peer import digits_file
from scripts.fleet_demo.fleet import AGGREGATOR, Fleet
from scripts.fleet_demo.spar_data import Examples
from scripts.process_groups import MIB, ProcessGroups

TOP = Path(__file__).resolve().parents[2]
PIXEL_MAX = 16.0  # The other side's loader divides by it; our model does that itself.
SILENCE_MAX_S = 60.0
MEMORY_LIMIT_BYTES = 6 * 1024 * MIB
ADDRESS_SPACE_BYTES = 16 * 1024 * MIB


class DigitsFigures(NamedTuple):
    """What a run cost; seconds per round without the first in ``median_round_s``."""

    round_s: tuple[float, ...]
    median_round_s: float
    first_round_end_s: float
    device_idle_mib: float
    device_peak_mib: float


def measure_digits(rounds: int, devices: int) -> DigitsFigures:
    """Run ``rounds`` rounds with ``devices`` agents, everything started anew."""
    folder = Path(tempfile.mkdtemp(prefix="fallow-digits-"))
    try:
        with ProcessGroups(limit_bytes=MEMORY_LIMIT_BYTES, process_address_space_bytes=ADDRESS_SPACE_BYTES) as groups:
            return _measure(Fleet(folder, groups), groups, rounds, devices)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(fleet: Fleet, groups: ProcessGroups, rounds: int, device_count: int) -> DigitsFigures:
    path = digits_file()
    recipe = load_recipe(TOP / "models/digits_mlp/plan.toml", goal=device_count, report_count_min=device_count)
    recipe = msgspec.structs.replace(recipe, task=msgspec.structs.replace(recipe.task, rounds_max=rounds))
    parts = [digits.client_part(path, device, device_count) for device in range(device_count)]
    started_s = time.monotonic()
    service = fleet.start_aggregator()
    service.create_task("digits", build(), recipe)
    token = service.create_token(uses_max=device_count, lifetime_s=600.0)
    agents = [
        fleet.prepare_device(
            f"device-{device}",
            Examples(images * np.float32(PIXEL_MAX), labels, np.arange(len(labels), dtype=np.float64)),
            recipe.store,
        )
        for device, (images, labels) in enumerate(parts)
    ]
    fleet.start_agents(agents, token)
    first_round_end_s = 0.0
    round_s: list[float] = []
    for event in fleet.events(SILENCE_MAX_S):
        if event is not None and event["kind"] == "round-completed" and event["detail"]["plan"] == "train":
            first_round_end_s = first_round_end_s or time.monotonic() - started_s
            round_s.append(event["detail"]["seconds"])
        if event is not None and event["kind"] == "task-finished":
            break
    idle = [size for group, size in fleet.wait_for_rest().items() if group != AGGREGATOR]
    peak = [size for group, size in groups.peak_bytes.items() if group != AGGREGATOR]
    return DigitsFigures(
        tuple(round_s),
        statistics.median(round_s[1:] or round_s),
        first_round_end_s,
        max(idle) / MIB,
        max(peak) / MIB,
    )
