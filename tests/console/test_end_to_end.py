"""A person, a browser, an aggregator, its broker and three agents: from an empty fleet to a release and back."""

import re
import socket
import subprocess
import sys
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
from tests.console.served_console import PASSWORD

pytestmark = [
    pytest.mark.browser,
    pytest.mark.process,
    pytest.mark.needs_program("chromium", "chromium"),
    pytest.mark.timeout(300),
]

TOP = Path(__file__).resolve().parents[2]
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
        watch_a_round_finish(page)
        watch_the_task_finish(page)
        promote(page, version=3)
        promote(page, version=ROUNDS)
        roll_back(page)
        page.get_by_role("link", name="Audit").click()
        audit = page.locator("table").inner_text()
        for asked in ("CreateToken", "CreateTask", "PromoteRelease"):
            assert f"anna at 127.0.0.1 asked for {asked}" in audit
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", name="Fallow")).to_be_visible()
        page.context.close()


def make_first_user(state: Path) -> None:
    command = [sys.executable, "-m", "cloud_aggregator.cli", "user", "create", "anna"]
    command += ["--role", "operator", "--password-stdin", "--state", str(state)]
    subprocess.run(command, input=f"{PASSWORD}\n", text=True, check=True, timeout=60)


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


def watch_a_round_finish(page: Page) -> None:
    """The page of round 1, opened once and never loaded again, tells its end."""
    page.goto("/rounds/digits/1")
    page.evaluate("window.sameDocument = true")
    expect(page.locator("#stages")).to_contain_text("completed")
    expect(page.locator(".timeline")).to_contain_text(f"round completed: {len(DEVICES)} reports")
    expect(page.locator("tbody")).to_contain_text("accepted")
    assert page.evaluate("window.sameDocument") is True


def watch_the_task_finish(page: Page) -> None:
    page.goto("/tasks/digits")
    expect(page.locator("[data-live=task]")).to_contain_text(f"round limit of {ROUNDS} reached")
    page.get_by_role("link", name="All rounds and charts").click()
    expect(page.locator("figure[data-chart=accuracy] svg")).to_be_visible()


def promote(page: Page, version: int) -> None:
    page.goto("/models/digits")
    page.get_by_role("link", name=f"Promote {version}", exact=True).click()
    page.get_by_label("Percent of the fleet first").fill("100")
    page.get_by_role("button", name="Promote").click()
    expect(page.locator(".notice")).to_contain_text(f"version {version} of digits")
    all_run_it(page)


def roll_back(page: Page) -> None:
    page.get_by_role("link", name="Roll back").click()
    expect(page.locator(".consequence")).to_contain_text(f"are to leave it: {len(DEVICES)}.")
    page.get_by_role("button", name="Roll back").click()
    expect(page.locator(".notice")).to_contain_text("takes the fleet back")
    all_run_it(page)
    expect(page.get_by_role("link", name="digits, version 3")).to_be_visible()


def all_run_it(page: Page) -> None:
    """The release's own page tells, without being loaded again, that every device runs it."""
    runs = page.locator("dl.facts div").filter(has_text="Run it now").locator("dd")
    expect(runs).to_have_text(str(len(DEVICES)))
    expect(page.locator("[data-live=release] h2").first).to_contain_text("completed")
