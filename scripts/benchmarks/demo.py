"""``scripts/bench demo``: the main job's figures over five disjoint held-out pairs, and Flower in the same run."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from scripts.benchmarks.digits_fleet import measure_digits
from scripts.benchmarks.flower_peer import measure_flower
from scripts.fleet_demo.spar_data import HELD_OUT_PAIRS

TOP = Path(__file__).resolve().parents[2]
RUN_TIMEOUT_S = 300.0


class Bar(NamedTuple):
    """A promise about one figure: at most (or at least) this."""

    figure: str
    limit: float
    is_minimum: bool = False

    def holds(self, value: float) -> bool:
        """Whether ``value`` keeps the promise."""
        return value >= self.limit if self.is_minimum else value <= self.limit


BARS = (
    Bar("federated_minus_local_unseen_points", 10.0, is_minimum=True),
    Bar("pooled_minus_federated_unseen_points", 5.0),
    Bar("devices_worse_than_alone_ratio", 0.20),
    Bar("bits_per_parameter_up", 0.90),
    Bar("bits_per_parameter_down", 0.40),
    Bar("agent_idle_mib", 45.0),
    Bar("agent_peak_mib", 130.0),
    Bar("round_s_median", 3.0),
    Bar("first_round_end_s", 10.0),
    Bar("seconds", 90.0),
)
DIGITS_BARS = (
    Bar("round_s_median", 2.0),
    Bar("round_over_flower", 0.2),
    Bar("first_round_end_s", 10.0),
)


def demo(arguments: argparse.Namespace) -> dict[str, Any]:
    """The main job over five held-out pairs, and our digits rounds beside Flower's."""
    runs = [_run_pair(seed) for seed in range(arguments.pairs)]
    figures: dict[str, Any] = {"pairs": runs, "mean": {}, "worst": {}}
    for bar in BARS:
        values = [float(run[bar.figure]) for run in runs]
        figures["mean"][bar.figure] = statistics.fmean(values)
        figures["worst"][bar.figure] = min(values) if bar.is_minimum else max(values)
    figures["digits"] = _compare_digits(arguments.rounds, arguments.repeats)
    figures["bars"] = [_verdict(bar, figures["mean"][bar.figure], "mean over pairs") for bar in BARS] + [
        _verdict(bar, figures["digits"][bar.figure], "digits") for bar in DIGITS_BARS
    ]
    return figures


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--pairs", type=int, default=len(HELD_OUT_PAIRS), help="held-out pairs (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="digits rounds, the first not counted (default: 5)")
    parser.add_argument("--repeats", type=int, default=2, help="times that ours and Flower take turns (default: 2)")


def _run_pair(seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="fallow-demo-") as folder:
        path = Path(folder) / "out.json"
        command = [sys.executable, "-m", "scripts.fleet_demo", "--seed", str(seed)]
        command += ["--json", str(path), "--folder", str(Path(folder) / "run")]
        subprocess.run(command, cwd=TOP, check=True, timeout=RUN_TIMEOUT_S, stdout=sys.stderr)
        run: dict[str, Any] = json.loads(path.read_text())
    unseen = run["unseen"]
    run["federated_minus_local_unseen_points"] = 100 * (unseen["federated"] - unseen["local"])
    run["pooled_minus_federated_unseen_points"] = 100 * (unseen["pooled"] - unseen["federated"])
    return {"seed": seed, **run}


def _compare_digits(rounds: int, repeats: int) -> dict[str, Any]:
    """Ours and Flower take turns, so that what else the machine does meets both."""
    ours, flowers = [], []
    for _ in range(repeats):
        ours.append(measure_digits(rounds, devices=10))
        flowers.append(measure_flower(rounds, clients=10))
    our_round_s = statistics.median(run.median_round_s for run in ours)
    flower_round_s = statistics.median(run.median_round_s for run in flowers)
    return {
        "round_s_median": our_round_s,
        "flower_round_s_median": flower_round_s,
        "round_over_flower": our_round_s / flower_round_s,
        "first_round_end_s": statistics.median(run.first_round_end_s for run in ours),
        "flower_first_round_end_s": statistics.median(run.first_round_end_s for run in flowers),
        "ours": [run._asdict() for run in ours],
        "flower": [run._asdict() for run in flowers],
    }


def _verdict(bar: Bar, value: float, what: str) -> dict[str, Any]:
    verdict = {"figure": bar.figure, "of": what, "value": value, "limit": bar.limit, "holds": bar.holds(value)}
    sign = ">=" if bar.is_minimum else "<="
    print(
        f"{'ok  ' if verdict['holds'] else 'FAIL'} {what}: {bar.figure} {value:.3f} {sign} {bar.limit}", file=sys.stderr
    )
    return verdict
