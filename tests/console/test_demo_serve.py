"""``scripts/demo --serve`` as a person uses it: sign in, watch a round, release another version, take it back."""

import json
import os
import shlex
import signal
import subprocess
from pathlib import Path
from typing import IO

import pytest
from playwright.sync_api import expect

from tests.console.chromium import chromium, open_page, sign_in
from tests.console.operator_steps import all_run_it, promote, roll_back, watch_a_round_finish
from tests.console.served_console import PASSWORD

pytestmark = [
    pytest.mark.browser,
    pytest.mark.process,
    pytest.mark.needs_program("chromium", "chromium"),
    pytest.mark.timeout(300),
]

TOP = Path(__file__).resolve().parents[2]
TASK = "exercises"
DEVICE_COUNT = 8
ROUNDS = 10
PATIENCE_MS = 90_000


def test_what_the_demo_says_about_its_console_is_true(tmp_path: Path) -> None:
    command = ["scripts/demo", "--serve", "--rounds", str(ROUNDS), "--folder", str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=TOP, stdout=subprocess.PIPE, text=True, start_new_session=True) as demo:
        try:
            assert demo.stdout is not None
            address = said(demo.stdout, "The console: ")
            user = said(demo.stdout, "Make its first user in another terminal: ")
            said(demo.stdout, "    1 ")  # The first round is over: everything stands.
            words = shlex.split(user.replace("NAME", "anna"))
            subprocess.run([*words, "--password-stdin"], cwd=TOP, input=f"{PASSWORD}\n", text=True, check=True)
            with chromium() as browser:
                page = open_page(browser, address)
                page.set_default_timeout(PATIENCE_MS)
                expect.set_options(timeout=PATIENCE_MS)
                sign_in(page)
                watch_a_round_finish(page, TASK, newest_round(tmp_path / "run" / "events.jsonl"), DEVICE_COUNT)
                said(demo.stdout, "Everything keeps running")
                page.goto("/releases/1")
                all_run_it(page, DEVICE_COUNT)
                promote(page, TASK, ROUNDS, DEVICE_COUNT)
                roll_back(page, TASK, ROUNDS + 1, DEVICE_COUNT)
                page.context.close()
        finally:
            os.kill(demo.pid, signal.SIGINT)
        assert demo.wait(timeout=30) == 130


def newest_round(events: Path) -> int:
    """Return the number of the round that was opened last: of one that is not open yet there is no page."""
    opened = [event for event in map(json.loads, events.read_text().splitlines()) if event["kind"] == "round-opened"]
    return int(opened[-1]["round"])


def said(stream: IO[str], beginning: str) -> str:
    """Read on until a line begins so, and return the rest of it."""
    for line in stream:
        if line.startswith(beginning):
            return line.removeprefix(beginning).strip()
    raise AssertionError(f"the demo never said: {beginning}")
