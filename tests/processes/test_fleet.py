"""Real processes over real brokers: a small fleet learns, and goes on when any one of its processes is killed."""

import os
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from cloud_aggregator.recipe import Recipe, load_recipe
from cloud_aggregator.service import Service
from federated_core.engines.onnxruntime_engine import OnnxruntimeEngine
from federated_core.learning.bundle import decode_bundle
from federated_core.learning.parameters import unflatten
from models.digits_mlp.build import build
from scripts.fleet_demo.fleet import AGGREGATOR, Fleet
from scripts.fleet_demo.spar_data import Examples
from scripts.process_groups import MIB, ProcessGroups

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]

TOP = Path(__file__).resolve().parents[2]
TASK = "digits"
DEVICES = ("a", "b", "c")
SILENCE_MAX_S = 40.0


@pytest.fixture(
    params=[
        "embedded",
        pytest.param("mosquitto-child", marks=pytest.mark.needs_program("mosquitto", "mosquitto")),
    ]
)
def broker_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def groups() -> Iterator[ProcessGroups]:
    with ProcessGroups(limit_bytes=3 * 1024 * MIB, process_address_space_bytes=16 * 1024 * MIB) as running:
        yield running


def recipe(rounds: int) -> Recipe:
    loaded = load_recipe(TOP / "models/digits_mlp/plan.toml", goal=len(DEVICES), report_count_min=len(DEVICES))
    task = msgspec.structs.replace(
        loaded.task, rounds_max=rounds, rounds=msgspec.structs.replace(loaded.task.rounds, reporting_s=30.0)
    )
    return msgspec.structs.replace(loaded, task=task)


def examples(seed: int, count: int = 120) -> Examples:
    """Ten blurred patterns, the same for every device, and noise of its own."""
    patterns = np.random.default_rng(0).uniform(0, 16, (10, 64))
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 10, count)
    x = np.clip(patterns[label] + rng.normal(0, 3, (count, 64)), 0, 16).astype(np.float32)
    return Examples(x, label, np.arange(count, dtype=np.float64))


def start(fleet: Fleet, broker_kind: str, rounds: int) -> Service:
    service = fleet.start_aggregator(broker_kind)
    service.create_task(TASK, build(), recipe(rounds))
    token = service.create_token(uses_max=len(DEVICES), lifetime_s=600.0)
    devices = [
        fleet.prepare_device(name, examples(seed), {"block_s": 1, "holdout_every": 5, "gap_s": 0})
        for seed, name in enumerate(DEVICES, 1)
    ]
    fleet.start_agents(devices, token)
    return service


def follow(fleet: Fleet, until: str, count: int = 1) -> list[dict[str, Any]]:
    """Return the events up to the ``count``-th of kind ``until``."""
    heard: list[dict[str, Any]] = []
    for event in fleet.events(SILENCE_MAX_S):
        if event is not None:
            heard.append(event)
            if sum(one["kind"] == until for one in heard) == count:
                break
    return heard


def accuracy(service: Service) -> float:
    bundle = decode_bundle(service.bundle(TASK))
    _, layout, vector = service.checkpoint(TASK)
    held_out = examples(seed=99)
    session = OnnxruntimeEngine().open_evaluation(bundle)
    found = session.evaluate(unflatten(layout, vector), {"x": held_out.x}, held_out.y)
    return found.correct_count / found.example_count


def test_a_fleet_learns_over_either_broker(tmp_path: Path, groups: ProcessGroups, broker_kind: str) -> None:
    fleet = Fleet(tmp_path, groups)
    service = start(fleet, broker_kind, rounds=4)
    heard = follow(fleet, "task-finished")
    completed = [event for event in heard if event["kind"] == "round-completed"]
    assert [event["detail"]["plan"] for event in completed] == ["train"] * 4 + ["evaluate"]
    assert all(event["detail"]["reports"] == len(DEVICES) for event in completed)
    assert not [event for event in heard if event["kind"] in {"report-refused", "round-abandoned"}]
    assert service.status()["protocol_errors"] == 0
    assert accuracy(service) > 0.8


def test_devices_hold_what_the_aggregator_published_bit_for_bit(tmp_path: Path, groups: ProcessGroups) -> None:
    fleet = Fleet(tmp_path, groups)
    service = start(fleet, "embedded", rounds=3)
    follow(fleet, "task-finished")
    version, _, _ = service.checkpoint(TASK)
    for name in DEVICES:
        journal = sqlite3.connect(tmp_path / "devices" / name / "journal.db")
        (held,) = journal.execute("SELECT value FROM journal WHERE key = ?", (f"held/{TASK}",)).fetchone()
        assert msgspec.msgpack.decode(held)["checkpoint"]["version"] == version


def test_the_same_round_goes_on_when_the_aggregator_is_killed(
    tmp_path: Path, groups: ProcessGroups, broker_kind: str
) -> None:
    fleet = Fleet(tmp_path, groups)
    service = start(fleet, broker_kind, rounds=4)
    follow(fleet, "report-accepted", count=len(DEVICES) + 1)  # One report of round 2 is in.
    kill(groups, AGGREGATOR)
    service = fleet.restart_aggregator()
    follow(fleet, "task-finished")
    rounds = service.status()["tasks"][TASK]
    assert [one["phase"] for one in rounds] == ["completed"] * 5, "no round was lost or begun anew"
    assert all(one["report_count"] == len(DEVICES) for one in rounds)
    assert accuracy(service) > 0.8


def test_a_round_waits_for_an_agent_that_was_killed(tmp_path: Path, groups: ProcessGroups) -> None:
    fleet = Fleet(tmp_path, groups)
    service = start(fleet, "embedded", rounds=3)
    follow(fleet, "round-completed")
    kill(groups, DEVICES[0])
    fleet.restart_agent(DEVICES[0])
    follow(fleet, "task-finished")
    rounds = service.status()["tasks"][TASK]
    assert [(one["phase"], one["report_count"]) for one in rounds] == [("completed", len(DEVICES))] * 4


def test_a_killed_broker_is_started_again_and_nothing_is_lost(
    tmp_path: Path, groups: ProcessGroups, broker_kind: str
) -> None:
    fleet = Fleet(tmp_path, groups)
    service = start(fleet, broker_kind, rounds=3)
    follow(fleet, "round-completed")
    program = {"embedded": "nats-server", "mosquitto-child": "mosquitto"}[broker_kind]
    killed = [each for each in groups.members()[AGGREGATOR] if command_of(each) == program]
    assert killed, f"no {program} is running"
    for each in killed:
        os.kill(each, signal.SIGKILL)
    follow(fleet, "task-finished")
    rounds = service.status()["tasks"][TASK]
    assert [one["phase"] for one in rounds] == ["completed"] * 4
    assert all(one["report_count"] == len(DEVICES) for one in rounds)


def test_a_killed_trainer_costs_one_assignment_and_not_the_agent(tmp_path: Path, groups: ProcessGroups) -> None:
    fleet = Fleet(tmp_path, groups)
    service = start(fleet, "embedded", rounds=3)
    trainers: list[int] = []
    for _ in fleet.events(SILENCE_MAX_S):
        trainers = [each for each in groups.members().get(DEVICES[0], []) if "edge_agent.trainer" in arguments_of(each)]
        if trainers:
            break
    os.kill(trainers[0], signal.SIGKILL)
    follow(fleet, "task-finished")
    assert service.status()["tasks"][TASK][-1]["phase"] == "completed"
    fleet.check()


def kill(groups: ProcessGroups, group: str) -> None:
    for each in groups.members()[group]:
        os.kill(each, signal.SIGKILL)
    groups.forget(group)


def command_of(process_id: int) -> str:
    return Path(arguments_of(process_id).split("\0")[0]).name


def arguments_of(process_id: int) -> str:
    try:
        return Path(f"/proc/{process_id}/cmdline").read_text()
    except OSError:
        return ""


def test_a_device_whose_model_files_are_lost_takes_part_again(tmp_path: Path, groups: ProcessGroups) -> None:
    fleet = Fleet(tmp_path, groups)
    service = start(fleet, "embedded", rounds=6)
    follow(fleet, "round-completed", count=2)
    kill(groups, DEVICES[0])
    shutil.rmtree(tmp_path / "devices" / DEVICES[0] / "models")
    fleet.restart_agent(DEVICES[0])
    follow(fleet, "task-finished")
    last = service.status()["tasks"][TASK][-1]
    assert (last["phase"], last["report_count"]) == ("completed", len(DEVICES))


def test_nobody_else_may_read_what_agent_and_aggregator_keep(tmp_path: Path, groups: ProcessGroups) -> None:
    fleet = Fleet(tmp_path, groups)
    start(fleet, "embedded", rounds=1)
    follow(fleet, "task-finished")
    secret = [fleet.state / "aggregator.db", *(tmp_path / "devices" / DEVICES[0]).glob("journal.db*")]
    assert len(secret) >= 2
    assert [path.name for path in secret if path.stat().st_mode & 0o077] == []
