"""Real agents, a real broker, real trial processes: releases are promoted, tried, taken back, and survive kills."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from cloud_aggregator.recipe import load_recipe
from cloud_aggregator.service import Service
from edge_agent import LocalModel
from federated_core.engines.onnxruntime_engine import OnnxruntimeEngine
from federated_core.learning.bundle import decode_bundle
from federated_core.learning.parameters import unflatten
from models.digits_mlp.build import build
from scripts.fleet_demo.fleet import Fleet
from scripts.fleet_demo.spar_data import Examples
from scripts.process_groups import MIB, ProcessGroups

pytestmark = [pytest.mark.process, pytest.mark.timeout(150)]

TOP = Path(__file__).resolve().parents[2]
TASK, FAMILY = "digits", "digits_mlp"
STORE: dict[str, int | float] = {"block_s": 1, "holdout_every": 3, "gap_s": 0}
SILENCE_MAX_S = 40.0


@pytest.fixture
def groups() -> Iterator[ProcessGroups]:
    with ProcessGroups(limit_bytes=3 * 1024 * MIB, process_address_space_bytes=16 * 1024 * MIB) as running:
        yield running


def patterns(seed: int, count: int = 120) -> Examples:
    """Ten blurred patterns, the same for every device, and noise of its own."""
    shapes = np.random.default_rng(0).uniform(0, 16, (10, 64))
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 10, count)
    x = np.clip(shapes[label] + rng.normal(0, 3, (count, 64)), 0, 16).astype(np.float32)
    return Examples(x, label, np.arange(count, dtype=np.float64))


def train(fleet: Fleet, devices: Sequence[str], rounds: int = 2) -> tuple[Service, str]:
    """Let ``devices`` train for a few rounds; return the operator's way in and a token for more."""
    recipe = load_recipe(TOP / "models/digits_mlp/plan.toml", goal=len(devices), report_count_min=len(devices))
    service = fleet.start_aggregator()
    service.create_task(TASK, build(), msgspec.structs.replace(recipe, task=shortened(recipe.task, rounds)))
    token = service.create_token(uses_max=8, lifetime_s=600.0)
    fleet.start_agents([fleet.prepare_device(name, patterns(seed), STORE) for seed, name in enumerate(devices)], token)
    follow(fleet, lambda event: event["kind"] == "task-finished")
    return service, token


def shortened(task: Any, rounds: int) -> Any:
    """Return the task's settings with another round limit."""
    return msgspec.structs.replace(task, rounds_max=rounds)


def follow(fleet: Fleet, is_last: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Return all events so far, up to the one that is waited for."""
    heard: list[dict[str, Any]] = []
    for event in fleet.events(SILENCE_MAX_S):
        if event is not None:
            heard.append(event)
            if is_last(event):
                break
    return heard


def completed(number: int) -> Callable[[dict[str, Any]], bool]:
    """Return what recognizes the end of a release's rollout."""
    return lambda event: event["kind"] == "release-completed" and event["detail"]["number"] == number


def running(service: Service) -> set[int]:
    """What the devices say that they run."""
    return {one["number"] for one in service.release_status()["devices"]}


def scores(service: Service, version: int, x: np.ndarray[Any, np.dtype[np.float32]]) -> Any:
    """What a version answers, computed on the aggregator's side."""
    bundle = decode_bundle(service.bundle(TASK))
    _, layout, vector = service.checkpoint(TASK, version)
    (outputs,) = OnnxruntimeEngine().infer(bundle, unflatten(layout, vector), {"x": x}).values()
    return outputs


def test_three_agents_run_what_is_promoted_canary_first_and_are_taken_back(
    tmp_path: Path, groups: ProcessGroups
) -> None:
    fleet = Fleet(tmp_path, groups)
    service, _ = train(fleet, ("a", "b", "c"))
    newest, _, _ = service.checkpoint(TASK)
    first = service.promote(TASK, 1, fraction=1.0)
    follow(fleet, completed(first))
    assert running(service) == {first}
    model = LocalModel(tmp_path / "devices" / "a")
    x = patterns(77).x[:8]
    assert np.allclose(model.predict(x), scores(service, 1, x), atol=1e-4)

    second = service.promote(TASK, fraction=0.3, soak_s=0.5, accuracy_drop_max=1.0)
    heard = follow(fleet, completed(second))
    stages = [event["detail"] for event in heard if event["kind"] == "release-stage"][-2:]
    assert [(one["stage"], one["devices"]) for one in stages] == [("canary", 1), ("everyone", 2)]
    assert running(service) == {second}
    assert np.allclose(model.predict(x), scores(service, newest, x), atol=1e-4)

    back = service.rollback()
    follow(fleet, completed(back))
    assert running(service) == {back}
    assert np.allclose(model.predict(x), scores(service, 1, x), atol=1e-4)
    assert model.release.number == back
    assert service.status()["protocol_errors"] == 0


def test_an_agent_that_is_killed_in_the_middle_of_its_trial_ends_with_the_release(
    tmp_path: Path, groups: ProcessGroups
) -> None:
    fleet = Fleet(tmp_path, groups)
    service, _ = train(fleet, ("a", "b"))
    first = service.promote(TASK, 1, fraction=1.0)
    follow(fleet, completed(first))
    second = service.promote(TASK, fraction=1.0, accuracy_drop_max=1.0)
    for _ in fleet.events(SILENCE_MAX_S):
        if [each for each in groups.members().get("a", []) if "edge_agent.trial" in arguments_of(each)]:
            break
    for each in groups.members()["a"]:
        os.kill(each, signal.SIGKILL)
    groups.forget("a")
    assert LocalModel(tmp_path / "devices" / "a").release.number in {first, second}
    fleet.restart_agent("a")
    follow(fleet, completed(second))
    assert running(service) == {second}


def test_a_release_that_is_bad_for_some_is_halted_at_the_canary_and_taken_back_by_itself(
    tmp_path: Path, groups: ProcessGroups
) -> None:
    fleet = Fleet(tmp_path, groups)
    service, token = train(fleet, ("a", "b"), rounds=4)
    newest, _, _ = service.checkpoint(TASK)
    odd = []
    for seed, name in enumerate(("c", "d"), 50):  # For these the untrained model is right, and the trained one wrong.
        x = patterns(seed).x
        label = np.argmax(scores(service, 0, x), axis=1)
        odd.append(fleet.prepare_device(name, Examples(x, label, np.arange(len(x), dtype=np.float64)), STORE))
    fleet.start_agents(odd, token)
    first = service.promote(TASK, 0, fraction=1.0)
    assert fleet.await_release(service, first, 4) == 4

    bad = service.promote(TASK, newest, fraction=0.75, soak_s=5.0)
    heard = follow(fleet, completed(bad + 1))
    halted = next(event for event in heard if event["kind"] == "release-halted")
    assert halted["detail"]["number"] == bad
    reasons = {event["detail"]["reason"] for event in heard if event["kind"] == "release-failed"}
    assert reasons == {"less-accurate"}
    assert bad not in running(service)
    way_back = next(one for one in service.release_status()["releases"] if one["number"] == bad + 1)
    assert (way_back["kind"], way_back["restricted_to"]) == ("rollback", bad)
    x = patterns(78).x[:8]
    for name in ("a", "b", "c", "d"):
        assert np.allclose(LocalModel(tmp_path / "devices" / name).predict(x), scores(service, 0, x), atol=1e-4)


def arguments_of(process_id: int) -> str:
    try:
        return Path(f"/proc/{process_id}/cmdline").read_text()
    except OSError:
        return ""  # It ended meanwhile.
