"""What an operator does in a browser, step by step, and sees."""

import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.console.served_console import PASSWORD


def make_first_user(state: Path) -> None:
    """Make the operator anna on the command line: there is no other way to the first user."""
    command = [sys.executable, "-m", "cloud_aggregator.cli", "user", "create", "anna"]
    command += ["--role", "operator", "--password-stdin", "--state", str(state)]
    subprocess.run(command, input=f"{PASSWORD}\n", text=True, check=True, timeout=60)


def watch_a_round_finish(page: Page, task: str, number: int, device_count: int) -> None:
    """The page of a round, opened once and never loaded again, tells its end."""
    page.goto(f"/rounds/{task}/{number}")
    page.evaluate("window.sameDocument = true")
    expect(page.locator("#stages")).to_contain_text("completed")
    expect(page.locator(".timeline")).to_contain_text(f"round completed: {device_count} reports")
    expect(page.locator("tbody")).to_contain_text("accepted")
    assert page.evaluate("window.sameDocument") is True


def promote(page: Page, task: str, version: int, device_count: int) -> None:
    """Release a version to everybody at once, and see everybody run it."""
    page.goto(f"/models/{task}")
    page.get_by_role("link", name=f"Promote {version}", exact=True).click()
    page.get_by_label("Percent of the fleet first").fill("100")
    page.get_by_role("button", name="Promote").click()
    expect(page.locator(".notice")).to_contain_text(f"version {version} of {task}")
    all_run_it(page, device_count)


def roll_back(page: Page, task: str, version: int, device_count: int) -> None:
    """Take the fleet back to the release before, which is ``version`` of the task."""
    page.get_by_role("link", name="Roll back").click()
    expect(page.locator(".consequence")).to_contain_text(f"are to leave it: {device_count}.")
    page.get_by_role("button", name="Roll back").click()
    expect(page.locator(".notice")).to_contain_text("takes the fleet back")
    all_run_it(page, device_count)
    expect(page.get_by_role("link", name=f"{task}, version {version}")).to_be_visible()


def all_run_it(page: Page, device_count: int) -> None:
    """The release's own page tells, without being loaded again, that every device runs it."""
    runs = page.locator("dl.facts div").filter(has_text="Run it now").locator("dd")
    expect(runs).to_have_text(str(device_count))
    expect(page.locator("[data-live=release] h2").first).to_contain_text("completed")
