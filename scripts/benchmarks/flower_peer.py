"""Flower 1.41.0 as a peer: a real SuperLink and SuperNodes on loopback, one Python environment of their own.

Default subprocess isolation, ``--insecure``, telemetry off, evaluation off, one BLAS thread. What would slow Flower
down for reasons of the network is off as well: its update check, and its installing of dependencies at run time.
"""

import itertools
import json
import os
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from scripts.process_groups import MIB, ProcessGroups

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv-bench-flower"
APP = Path(__file__).with_name("flower_app")
DIGITS = ROOT / ".cache" / "digits.npz"
CLIENTS_MAX = 10  # Ten devices peak near 3.8 GiB; fifty exhaust 24.
MEMORY_LIMIT_BYTES = 6 * 2**30
ADDRESS_SPACE_BYTES = 8 * 2**30  # Per process; coarse, since address space is not memory: the limit above is the wall.
START_TIMEOUT_S = 60.0
ROUND_TIMEOUT_S = 180.0
IDLE_SETTLE_S = 8.0
IDLE_SAMPLE_COUNT = 10


class FlowerFigures(NamedTuple):
    """What Flower took on the digits task; memory is resident memory over all processes of a device."""

    round_s: tuple[float, ...]
    median_round_s: float  # After the first.
    first_round_end_s: float  # From the start of everything to the end of round one.
    device_idle_mib: float  # One waiting device alone.
    device_peak_mib: float  # Median over the devices; sampled, so a lower bound.
    server_peak_mib: float
    accuracy: float  # On held-out digits, after the last round: shows that the peer did train.


def digits_file() -> Path:
    """Return the digits of scikit-learn as a plain npz (``images`` (1797, 64) uint8, ``labels`` int64), made once."""
    if not DIGITS.exists():
        DIGITS.parent.mkdir(exist_ok=True)
        part = DIGITS.with_suffix(".part.npz")
        program = (
            "import sys, numpy, sklearn.datasets; d = sklearn.datasets.load_digits(); "
            "numpy.savez(sys.argv[1], images=d.data.astype('uint8'), labels=d.target.astype('int64'))"
        )
        subprocess.run([_program("python"), "-c", program, part], check=True, timeout=120)
        part.replace(DIGITS)
    return DIGITS


def measure_flower(rounds: int = 4, clients: int = 10) -> FlowerFigures:
    """Run Flower on the digits task and return what it took; leaves no process behind."""
    if not 1 <= clients <= CLIENTS_MAX:
        raise ValueError(f"clients: expected 1 to {CLIENTS_MAX}, got {clients}")
    if rounds < 2:
        raise ValueError(f"rounds: expected at least 2 (the first is left out of the median), got {rounds}")
    digits = digits_file()
    with tempfile.TemporaryDirectory(prefix="fallow-bench-flower-") as folder:
        idle_bytes = _Federation(Path(folder, "idle")).idle_bytes()
        return _Federation(Path(folder, "run")).run(rounds, clients, digits, idle_bytes)


class _Federation:
    """One SuperLink and its SuperNodes, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._port = _free_port()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._groups = ProcessGroups(limit_bytes=MEMORY_LIMIT_BYTES, process_address_space_bytes=ADDRESS_SPACE_BYTES)
        (folder / "config.toml").write_text(
            '[superlink]\ndefault = "bench"\n\n'
            f'[superlink.bench]\naddress = "127.0.0.1:{self._port}"\ninsecure = true\n'
        )

    def idle_bytes(self) -> float:
        """Return what one connected device holds in memory while it waits."""
        with self._groups:
            self._start_server()
            self._start_device(0, 1)
            self._wait(lambda: len(self._groups.members().get("device-0", ())) > 1, START_TIMEOUT_S, "an executor")
            time.sleep(IDLE_SETTLE_S)  # Imports go on after the process is there.
            samples = []
            for _ in range(IDLE_SAMPLE_COUNT):
                samples.append(self._groups.resident_bytes()["device-0"])
                time.sleep(0.2)
            return statistics.median(samples)

    def run(self, rounds: int, clients: int, digits: Path, idle_bytes: float) -> FlowerFigures:
        """Return the figures of one run."""
        events = self._folder / "events.jsonl"
        with self._groups:
            start_s = time.monotonic()
            self._start_server()
            for client in range(clients):
                self._start_device(client, clients)
            self._wait(self._server_listens, START_TIMEOUT_S, "the SuperLink to listen")
            config = f'rounds={rounds} clients={clients} data="{digits}" events="{events}"'
            self._start("submit", "flwr", "run", APP, "bench", "--run-config", config)
            self._wait(lambda: len(_lines(events)) > rounds, ROUND_TIMEOUT_S * rounds, f"the end of {rounds} rounds")
        ends = [json.loads(line) for line in _lines(events)]
        round_s = tuple(after["at_s"] - before["at_s"] for before, after in itertools.pairwise(ends))
        peaks = self._groups.peak_bytes
        return FlowerFigures(
            round_s=round_s,
            median_round_s=statistics.median(round_s[1:]),
            first_round_end_s=ends[1]["at_s"] - start_s,
            device_idle_mib=idle_bytes / MIB,
            device_peak_mib=statistics.median(peaks[f"device-{client}"] for client in range(clients)) / MIB,
            server_peak_mib=peaks["server"] / MIB,
            accuracy=ends[-1]["accuracy"],
        )

    def _start_server(self) -> None:
        where = ("--host", "127.0.0.1", "--port", str(self._port))
        self._start("server", "flower-superlink", "--insecure", *where, "--disable-runtime-dependency-installation")

    def _start_device(self, client: int, clients: int) -> None:
        self._start(
            f"device-{client}",
            "flower-supernode",
            "--insecure",
            *("--superlink", f"127.0.0.1:{self._port}", "--host", "127.0.0.1", "--port", str(_free_port())),
            *("--node-config", f"partition-id={client} num-partitions={clients}"),
        )

    def _start(self, group: str, program: str, *arguments: str | Path) -> None:
        self._processes[group] = self._groups.start(
            group,
            [_program(program), *arguments],
            cwd=self._folder,
            environment=_environment(self._folder),
            log=self._folder / f"{group}.log",
        )

    def _server_listens(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(0.2)
            return probe.connect_ex(("127.0.0.1", self._port)) == 0

    def _wait(self, is_there: Callable[[], bool], timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not is_there():
            self._groups.check()
            ended = {group: process.returncode for group, process in self._processes.items() if process.poll()}
            if ended:
                raise RuntimeError(
                    f"Flower: ended with a failure while we waited for {what}: {ended}\n{self._last_words()}"
                )
            if time.monotonic() > deadline:
                raise TimeoutError(f"Flower: waited {timeout_s:.0f} s for {what}\n{self._last_words()}")
            time.sleep(0.05)

    def _last_words(self) -> str:
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-800:]}" for log in self._folder.glob("*.log"))


def _program(name: str) -> Path:
    program = ENVIRONMENT / "bin" / name
    if not program.exists():
        raise FileNotFoundError(f"{program.relative_to(ROOT)}: not there; `scripts/bench flower` installs Flower first")
    return program


def _environment(folder: Path) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}},
        "PATH": f"{ENVIRONMENT / 'bin'}:{os.environ['PATH']}",
        "FLWR_HOME": str(folder),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
