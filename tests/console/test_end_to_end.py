"""A person, a browser, an aggregator, its broker and three agents: from an empty fleet to a release and back."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from models.digits_mlp.build import build
from scripts.fleet_demo.fleet import Fleet
from scripts.fleet_demo.spar_data import Examples
from scripts.process_groups import MIB, ProcessGroups
from tests.console.chromium import chromium, open_page, sign_in
from tests.console.operator_steps import make_first_user, promote, roll_back, watch_a_round_finish

pytestmark = [
    pytest.mark.browser,
    pytest.mark.process,
    pytest.mark.needs_program("chromium", "chromium"),
    pytest.mark.timeout(300),
]

TOP = Path(__file__).resolve().parents[2]
TASK = "digits"
DEVICES = ("a", "b", "c")
ROUNDS = 6
PATIENCE_MS = 90_000


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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_recipe(folder: Path) -> tuple[Path, Path]:
    """Write a model and a short recipe as an operator has them on disk."""
    model, plan = folder / "digits.onnx", folder / "plan.toml"
    model.write_bytes(build())
    text = (TOP / "models/digits_mlp/plan.toml").read_text()
    plan.write_text(re.sub(r"rounds_max = \d+", f"rounds_max = {ROUNDS}", text))
    return model, plan


def test_a_person_starts_a_task_watches_it_releases_its_model_and_takes_it_back(
    tmp_path: Path, groups: ProcessGroups
) -> None:
    port = free_port()
    fleet = Fleet(tmp_path, groups, port)
    fleet.start_aggregator()
    make_first_user(fleet.state)
    with chromium() as browser:
        page = open_page(browser, f"http://127.0.0.1:{port}")
        page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        reach_console(page, fleet)
        sign_in(page)
        start_fleet(fleet, make_token(page))
        start_task(page, *write_recipe(tmp_path))
        watch_a_round_finish(page, TASK, 1, len(DEVICES))
        watch_the_task_finish(page)
        promote(page, TASK, 3, len(DEVICES))
        promote(page, TASK, ROUNDS, len(DEVICES))
        roll_back(page, TASK, 3, len(DEVICES))
        page.get_by_role("link", name="Audit").click()
        audit = page.locator("table").inner_text()
        for asked in ("CreateToken", "CreateTask", "PromoteRelease"):
            assert f"anna at 127.0.0.1 asked for {asked}" in audit
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", name="Fallow")).to_be_visible()
        page.context.close()


def reach_console(page: Page, fleet: Fleet) -> None:
    """Wait until the console answers: it starts after the broker, which the fleet waits for."""
    for event in fleet.events(60.0):
        fleet.check()
        if event is None and "the console is at" in fleet.log_of("aggregator").read_text():
            break
    page.goto("/")
    assert page.url.endswith("/login?next=/")


def make_token(page: Page) -> str:
    page.get_by_role("link", name="Tokens").click()
    page.get_by_label("Devices").fill(str(len(DEVICES)))
    page.get_by_role("button", name="Make a token").click()
    return page.locator("pre").inner_text().removeprefix("edge-agent enroll --token ").strip()


def start_fleet(fleet: Fleet, token: str) -> None:
    store: dict[str, int | float] = {"block_s": 1, "holdout_every": 3, "gap_s": 0}
    fleet.start_agents([fleet.prepare_device(name, patterns(seed), store) for seed, name in enumerate(DEVICES)], token)


def start_task(page: Page, model: Path, plan: Path) -> None:
    page.get_by_role("link", name="Tasks").click()
    page.get_by_role("link", name="Start a task").click()
    page.get_by_label("Name").fill("digits")
    page.get_by_label("Model", exact=True).set_input_files(model)
    page.get_by_label("Recipe").set_input_files(plan)
    page.get_by_label("Reports that complete a round").fill(str(len(DEVICES)))
    page.get_by_role("button", name="Start the task").click()
    expect(page.locator(".notice")).to_contain_text("Task digits begins with 9,610 parameters")


def watch_the_task_finish(page: Page) -> None:
    page.goto("/tasks/digits")
    expect(page.locator("[data-live=task]")).to_contain_text(f"round limit of {ROUNDS} reached")
    page.get_by_role("link", name="All rounds and charts").click()
    expect(page.locator("figure[data-chart=accuracy] svg")).to_be_visible()
