"""The fleet on this machine: one aggregator with its broker and one agent a device, each a process of its own."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from cloud_aggregator.config import load_settings as load_aggregator_settings
from cloud_aggregator.service import ENDPOINT_NAME, Service
from edge_agent.adapters.example_store import ExampleStore
from edge_agent.config import load_settings as load_agent_settings
from federated_core.errors import AdapterError
from scripts.fleet_demo.spar_data import Examples
from scripts.process_groups import ProcessGroups

AGGREGATOR = "aggregator"
START_TIMEOUT_S = 20.0
POLL_S = 0.02
REST_TIMEOUT_S = 15.0
RELEASE_TIMEOUT_S = 60.0
RELEASE_POLL_S = 0.2
FAILED_STATES = {"failed", "refused", "timed-out"}

AGGREGATOR_SETTINGS = """\
fleet = "demo"

[pacing]  # Devices come back at once, so that rounds follow each other.
accepted_max_s = 0.05
rejected_min_s = 0.05
rejected_max_s = 0.2
resting_min_s = 1.0
resting_max_s = 2.0

[release]
announcement_spread_s = 0.5
"""

AGENT_SETTINGS = """\
[eligibility]  # Waived for the demo, and said so in every check-in: this machine is in use, and may be on battery.
require_power = false
require_idle = false
memory_min_mib = 64

[trainer]
linger_s = 4.0

[store]
"""


class Device(NamedTuple):
    """One agent: its name here, its folder, and what its store gave to training."""

    name: str
    folder: Path
    training: Examples


class Fleet:
    """Starts the processes in ``groups`` and keeps everything below ``folder``."""

    def __init__(self, folder: Path, groups: ProcessGroups, console_port: int | None = None) -> None:
        self._console_port = console_port
        self._folder = folder
        self._groups = groups
        self._state = folder / "aggregator"
        self._events = folder / "events.jsonl"
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}

    @property
    def state(self) -> Path:
        """Folder of the aggregator's state."""
        return self._state

    def start_aggregator(self, broker_kind: str = "embedded") -> Service:
        """Start the aggregator and return the operator's way in, once devices can connect."""
        self._state.mkdir(parents=True)
        settings = AGGREGATOR_SETTINGS + f'\n[broker]\nkind = "{broker_kind}"\n'
        (self._state / "aggregator.toml").write_text(settings)
        self._events.touch()
        return self.restart_aggregator()

    def restart_agent(self, name: str) -> None:
        """Start an agent on the state that is there."""
        self._start(name, "edge_agent.cli", "run", "--state", self._folder / "devices" / name)

    def restart_aggregator(self) -> Service:
        """Start the aggregator on the state that is there."""
        (self._state / ENDPOINT_NAME).unlink(missing_ok=True)
        console = () if self._console_port is None else ("--console-port", str(self._console_port))
        command = ("serve", "--state", self._state, "--events", self._events, *console)
        self._start(AGGREGATOR, "cloud_aggregator.cli", *command)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not (self._state / ENDPOINT_NAME).exists():
            self.check()
            if time.monotonic() > deadline_s:
                raise AdapterError(
                    f"the aggregator was not ready within {START_TIMEOUT_S:.0f} s; see {self.log_of(AGGREGATOR)}"
                )
            time.sleep(POLL_S)
        return Service(self._state, load_aggregator_settings(self._state), actor="demo")

    def prepare_device(self, name: str, examples: Examples, store_settings: dict[str, int | float]) -> Device:
        """Give a device its settings and its examples."""
        folder = self._folder / "devices" / name
        folder.mkdir(parents=True, mode=0o700)
        lines = [f"{key} = {value}" for key, value in store_settings.items()]
        (folder / "agent.toml").write_text(AGENT_SETTINGS + "\n".join(lines) + "\n")
        store = ExampleStore(folder / "examples.db")
        store.add(examples.x, examples.y, examples.time_s, load_agent_settings(folder).store)
        x, y = store.load("train", len(examples.y))
        return Device(name, folder, Examples(x, y, np.zeros(len(y))))

    def start_agents(self, devices: Sequence[Device], token: str) -> None:
        """Start one agent a device; each enrolls itself."""
        path = self._folder / "token"
        path.write_text(token)
        for device in devices:
            self._start(device.name, "edge_agent.cli", "run", "--state", device.folder, "--token", f"@{path}")

    def log_of(self, group: str) -> Path:
        """Where a process writes its log."""
        return self._folder / f"{group}.log"

    def await_release(self, service: Service, number: int, device_count: int) -> int:
        """Wait until all devices run a release, or have said why not; return how many run it."""
        deadline_s = time.monotonic() + RELEASE_TIMEOUT_S
        while True:
            running, concluded = 0, 0
            for device in service.release_status()["devices"]:
                running += device["number"] == number
                concluded += device["number"] == number or device["state"] in FAILED_STATES
            if concluded >= device_count or time.monotonic() > deadline_s:
                return running
            self.check()
            time.sleep(RELEASE_POLL_S)

    def events(self, timeout_s: float) -> Iterator[dict[str, Any] | None]:
        """Yield what the aggregator announces, None while nothing does; AdapterError after ``timeout_s`` of silence."""
        last_s = time.monotonic()
        with self._events.open("rb") as file:
            pending = b""
            while True:
                pending += file.read()
                *lines, pending = pending.split(b"\n")
                for line in lines:
                    last_s = time.monotonic()
                    yield msgspec.json.decode(line)
                if not lines:
                    self.check()
                    if time.monotonic() - last_s > timeout_s:
                        raise AdapterError(f"nothing happened for {timeout_s:.0f} s; see {self.log_of(AGGREGATOR)}")
                    yield None
                    time.sleep(POLL_S)

    def wait_for_rest(self) -> dict[str, int]:
        """Wait until the trainers are gone, and return what each process holds in memory then, in bytes by group."""
        deadline_s = time.monotonic() + REST_TIMEOUT_S
        while time.monotonic() < deadline_s:
            counts = [len(ids) for group, ids in self._groups.members().items() if group != AGGREGATOR]
            if counts and max(counts) == 1:
                break
            time.sleep(POLL_S)
        return self._groups.resident_bytes()

    def check(self) -> None:
        """Raise AdapterError if a process ended that should run."""
        self._groups.check()
        for group, code in self._groups.ended().items():
            tail = self.log_of(group).read_text(errors="replace").splitlines()[-8:]
            raise AdapterError(f"{group} ended with code {code}; its log ends with:\n" + "\n".join(tail))

    def _start(self, group: str, module: str, *arguments: str | Path) -> None:
        command = [sys.executable, "-m", module, *arguments]
        self._groups.start(group, command, cwd=self._folder, environment=self._environment, log=self.log_of(group))
