"""Training steps of ten nets, beside PyTorch: both sides take turns in one run, one thread each."""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[2]
PEER_PYTHON = TOP / ".venv-conformance/bin/python"
MIB = 2**20
NAMES = (
    "MLP", "LeNet", "FedAvg CNN", "depthwise CNN", "1-D CNN", "GRU", "LSTM", "transformer", "TransformerEncoderLayer",
    "residual net",
)  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the comparison."""
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side (default: 7)")
    parser.add_argument("--turn-s", type=float, default=0.3, help="about how long a turn takes (default: 0.3)")
    parser.add_argument("--model", choices=NAMES, action="append", help="only this net; may be repeated")


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Training steps of ten nets on stock onnxruntime, beside PyTorch."""
    models: dict[str, Any] = {}
    for name in arguments.model or NAMES:
        models[name] = _compared(name, arguments.rounds, arguments.turn_s)
        print(f"{name:24} {models[name]['ratio']:.2f}", file=sys.stderr, flush=True)
    ratios = [one["ratio"] for one in models.values()]
    return {
        "peer": "PyTorch 2.13.0, CPU, eager",
        "geometric_mean_ratio": round(math.exp(statistics.fmean(map(math.log, ratios))), 3),
        "worst_ratio": max(ratios),
        "models": models,
    }


class _Side:
    """A worker process that is told how many steps to take."""

    def __init__(self, role: str, python: str, name: str, folder: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command = [python, "-m", "scripts.benchmarks.train_worker", role, name, folder]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=TOP, env=environment
        )
        self.session_s = self._answer()["session_s"]
        self._answer()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a side of the benchmark ended with code {self._process.wait()}")
        values: dict[str, float] = json.loads(line)
        return values

    def take(self, count: int) -> dict[str, float]:
        """Take ``count`` steps; return the median duration and the peak memory so far."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """Stop the process."""
        self._process.kill()
        self._process.wait()


def _compared(name: str, rounds: int, turn_s: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="fallow-bench-") as folder:
        command = [str(PEER_PYTHON), "-m", "scripts.benchmarks.train_worker", "export", name, folder]
        subprocess.run(command, check=True, cwd=TOP, stdout=subprocess.DEVNULL)
        sides: list[_Side] = []
        try:
            for role, python in (("fallow", sys.executable), ("torch", str(PEER_PYTHON))):
                sides.append(_Side(role, python, name, folder))
            counts = [max(3, int(turn_s / side.take(3)["step_s"])) for side in sides]
            turns = [[side.take(count) for side, count in zip(sides, counts, strict=True)] for _ in range(rounds)]
        finally:
            for side in sides:
                side.end()
    ours_s, theirs_s = (statistics.median(turn[place]["step_s"] for turn in turns) for place in (0, 1))
    return {
        "ratio": round(statistics.median(turn[0]["step_s"] / turn[1]["step_s"] for turn in turns), 3),
        "fallow_step_ms": round(ours_s * 1e3, 3),
        "torch_step_ms": round(theirs_s * 1e3, 3),
        "fallow_peak_mib": round(turns[-1][0]["peak_bytes"] / MIB, 1),
        "torch_peak_mib": round(turns[-1][1]["peak_bytes"] / MIB, 1),
        "fallow_session_ms": round(sides[0].session_s * 1e3, 1),
    }
