"""``scripts/demo``: the main job. Eight watches learn together over a real broker, in separate processes.

Prints a live table, then a comparison of four ways to learn; with ``--json`` the same figures go to a file.
"""

import argparse
import json
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
from rich.console import Console

from cloud_aggregator.recipe import Recipe, load_recipe
from cloud_aggregator.service import Service
from cloud_aggregator.task_progress import learning_rate_after
from federated_core.errors import FallowError, LocalMisuseError
from federated_core.learning.bundle import decode_bundle
from federated_core.learning.local_training import LocalPlan
from models.spar_cnn.build import build
from scripts.fleet_demo.arms import Comparison, Judge, Outcome, UnseenPeople, compare, personal_rounds
from scripts.fleet_demo.figures import Release, RoundFigures, RunFacts, round_figures, summarize
from scripts.fleet_demo.fleet import AGGREGATOR, Device, Fleet
from scripts.fleet_demo.spar_data import (
    DEVICE_COUNT_MAX,
    DEVICE_COUNT_MIN,
    HELD_OUT_PAIRS,
    FleetData,
    build_fleet,
)
from scripts.fleet_demo.spar_recordings import load_recordings
from scripts.fleet_demo.watch import Watch, show_outcome
from scripts.process_groups import MIB, ProcessGroups

TOP = Path(__file__).resolve().parents[2]
TASK = "exercises"
RECIPE = "models/spar_cnn/plan.toml"
SILENCE_MAX_S = 120.0
MEMORY_LIMIT_BYTES = 6 * 1024 * MIB
ADDRESS_SPACE_BYTES = 16 * 1024 * MIB
TRAFFIC = ("bytes_up", "bytes_down", "bytes_keyframe", "bytes_bundle")


def main() -> int:
    """Run the demo and return its exit code."""
    arguments = _parse_arguments()
    console = Console(stderr=False)
    # Both ways to end leave through the same `finally`s, also where a shell started us with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        figures = run(arguments, console)
    except KeyboardInterrupt:
        print("Stopped, and with it every process that was started.", file=sys.stderr)
        return 130
    except FallowError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Run the main job; return the figures of ``--json``."""
    recordings = load_recordings(TOP / ".cache", lambda text: console.print(text, highlight=False))
    data = build_fleet(recordings, device_count=arguments.devices, seed=arguments.seed)
    device_count = len(data.devices)
    recipe = load_recipe(TOP / RECIPE, goal=device_count, report_count_min=device_count // 2)
    if arguments.rounds is not None:
        recipe = msgspec.structs.replace(recipe, task=msgspec.structs.replace(recipe.task, rounds_max=arguments.rounds))
    folder = arguments.folder.resolve()
    _make_folder(folder)
    held_out = " and ".join(person.name for person in data.unseen)
    console.print(
        f"{device_count} agents, one aggregator and its MQTT broker, each a process of its own; {held_out} held out.\n"
        "Each agent has the recordings of its own person only. The devices' requirements to be idle and on power are\n"
        "waived for this demo. Logs and state: " + str(folder),
        highlight=False,
        soft_wrap=True,
    )
    console_port = _free_port() if arguments.serve else None
    how_to_look = _how_to_look(console_port, folder) if console_port is not None else ""
    if how_to_look:
        console.print(how_to_look, highlight=False, soft_wrap=True)
    with ProcessGroups(limit_bytes=MEMORY_LIMIT_BYTES, process_address_space_bytes=ADDRESS_SPACE_BYTES) as groups:
        fleet = Fleet(folder, groups, console_port)
        figures = _Run(arguments, console, data, recipe, fleet, groups, folder).figures()
        if arguments.serve:
            console.print(f"Everything keeps running; Ctrl-C stops it.\n{how_to_look}", highlight=False, soft_wrap=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
            signal.pause()
    return figures


class _Run:
    """One run, from the first process to the last figure."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        console: Console,
        data: FleetData,
        recipe: Recipe,
        fleet: Fleet,
        groups: ProcessGroups,
        folder: Path,
    ) -> None:
        self._arguments = arguments
        self._console = console
        self._data = data
        self._recipe = recipe
        self._fleet = fleet
        self._groups = groups
        self._folder = folder
        self._started_s = time.monotonic()
        self._first_round_end_s = 0.0
        self._finished: dict[str, Any] = {}
        self._release = Release(0, 0, 0, 0)

    def figures(self) -> dict[str, Any]:
        """Run everything and return the figures."""
        with Watch(self._console, len(self._data.devices), self._recipe.task.rounds_max) as watch:
            watch.say("the aggregator starts its broker")
            service = self._fleet.start_aggregator()
            watch.say("a training graph is derived from the ONNX model and signed")
            model = build(self._arguments.seed)
            service.create_task(TASK, model, self._recipe)
            watch.say("devices get their recordings, enroll and check in")
            token = service.create_token(uses_max=len(self._data.devices), lifetime_s=3600.0)
            devices = [
                self._fleet.prepare_device(device.name, device.own, self._recipe.store) for device in self._data.devices
            ]
            self._fleet.start_agents(devices, token)
            rounds = self._follow(service, watch)
            watch.say("the final model is released: each device tries it before it uses it")
            self._release = self._promote(service)
        outcome = self._compare(service, devices, len(rounds))
        model_path = self._export(service)
        return self._summarize(service, rounds, outcome, model_path)

    def _follow(self, service: Service, watch: Watch) -> list[RoundFigures]:
        bundle = decode_bundle(service.bundle(TASK))
        unseen = UnseenPeople(Judge(bundle), self._data.unseen)
        rounds: list[RoundFigures] = []
        accepted_count = 0
        for event in self._fleet.events(SILENCE_MAX_S):
            if event is None:
                continue
            accepted_count = accepted_count + 1 if event["kind"] == "report-accepted" else accepted_count
            watch.hear(event, accepted_count)
            detail = event["detail"]
            if event["kind"] == "round-completed":
                accepted_count = 0
                self._first_round_end_s = self._first_round_end_s or time.monotonic() - self._started_s
                if detail["plan"] == "train":
                    _, _, vector = service.checkpoint(TASK, detail["version"])
                    rounds.append(round_figures(event, unseen.accuracy(vector)))
                    watch.add(rounds[-1])
                else:
                    watch.say("the final checkpoint is evaluated on every device")
            elif event["kind"] == "round-abandoned":
                accepted_count = 0
                self._console.print(f"round {event['round']} was abandoned: {detail['why']}")
            elif event["kind"] == "task-finished":
                self._finished = detail
                break
        if not rounds:
            raise LocalMisuseError(f"no round was completed; see {self._fleet.log_of(AGGREGATOR)}")
        return rounds

    def _promote(self, service: Service) -> Release:
        """Release the final model to everybody at once, and wait until they run it."""
        number = service.promote(TASK, fraction=1.0)
        version, _, _ = service.checkpoint(TASK)
        running = self._fleet.await_release(service, number, len(self._data.devices))
        return Release(number, version, running, len(self._data.devices))

    def _compare(self, service: Service, devices: list[Device], round_count: int) -> Outcome:
        plan = self._recipe.task.plan
        alone_rounds = max(1, personal_rounds(round_count))
        comparison = Comparison(
            bundle=service.bundle(TASK),
            training=tuple(device.training for device in devices),
            later=tuple(device.later for device in self._data.devices),
            unseen=self._data.unseen,
            initial=service.checkpoint(TASK, 0)[2],
            earlier=service.checkpoint(TASK, round_count - alone_rounds)[2],
            final=service.checkpoint(TASK)[2],
            plan=LocalPlan(plan.epochs, plan.batch_size, plan.learning_rate, plan.step_count_max),
            learning_rates=tuple(learning_rate_after(self._recipe.task, count) for count in range(round_count)),
            personal_rounds=alone_rounds,
            seed=self._arguments.seed,
        )
        with self._console.status("Comparing with devices that train alone ...") as status:
            return compare(
                comparison,
                lambda done, total: status.update(f"Comparing with devices that train alone ... {done}/{total}"),
            )

    def _export(self, service: Service) -> Path:
        """Write the final model, and run it as anybody would: in plain onnxruntime."""
        _, model = service.export(TASK)
        path = self._folder / "model.onnx"
        path.write_bytes(model)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (scores,) = session.run(None, {"x": self._data.unseen[0].own.x[:4]})
        if not np.isfinite(scores).all():
            raise LocalMisuseError(f"{path}: expected finite scores, got {scores}")
        return path

    def _summarize(
        self, service: Service, rounds: list[RoundFigures], outcome: Outcome, model_path: Path
    ) -> dict[str, Any]:
        status = service.status()
        traffic = {name: sum(one[name] for one in status["tasks"][TASK]) for name in TRAFFIC}
        idle = [size for group, size in self._fleet.wait_for_rest().items() if group != AGGREGATOR]
        peak = [size for group, size in self._groups.peak_bytes.items() if group != AGGREGATOR]
        figures = summarize(
            RunFacts(
                rounds=rounds,
                outcome=outcome,
                parameter_count=decode_bundle(service.bundle(TASK)).description.layout.update_size,
                bytes_up=traffic["bytes_up"],
                bytes_down=traffic["bytes_down"],
                bytes_keyframe=traffic["bytes_keyframe"] + traffic["bytes_bundle"] + status["bytes_enrollment"],
                agent_idle_mib=max(idle) / MIB,
                agent_peak_mib=max(peak) / MIB,
                ended_because=self._finished["why"],
                first_round_end_s=self._first_round_end_s,
                seconds=time.monotonic() - self._started_s,
                model_path=model_path,
                release=self._release,
            )
        )
        show_outcome(self._console, figures)
        return figures


def _how_to_look(console_port: int, folder: Path) -> str:
    """Say where the console is, and how to make the first user: there is no default password."""
    program = Path(sys.executable).parent / "cloud-aggregator"
    command = f"{_short(program)} user create NAME --role operator --state {_short(folder / 'aggregator')}"
    return f"The console: http://127.0.0.1:{console_port}\nMake its first user in another terminal: {command}"


def _short(path: Path) -> Path:
    """Return ``path`` as it is named from the working directory."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _make_folder(folder: Path) -> None:
    """Start from nothing; a folder that is not one of ours is left alone."""
    if folder.exists() and any(folder.iterdir()) and not (folder / "events.jsonl").exists():
        raise LocalMisuseError(f"{folder}: not empty and not a demo's; name another with --folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/demo", description="A fleet learns together, on this machine.")
    parser.add_argument(
        "--devices",
        type=int,
        default=DEVICE_COUNT_MIN,
        help=f"agents, {DEVICE_COUNT_MIN} to {DEVICE_COUNT_MAX}; above {DEVICE_COUNT_MIN} a person is split by arm "
        "(default: %(default)s)",
    )
    parser.add_argument("--rounds", type=int, help="round limit (default: the recipe's)")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help=f"of the first weights and of which of {len(HELD_OUT_PAIRS)} pairs is held out (default: 0)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument("--serve", action="store_true", help="keep everything running at the end")
    parser.add_argument(
        "--folder",
        type=Path,
        default=TOP / "demo-run",
        help="where the run keeps its state and the final model (default: demo-run)",
    )
    arguments = parser.parse_args()
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error(f"--rounds: expected 1 or more, got {arguments.rounds}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
