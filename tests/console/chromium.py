"""Debian's Chromium, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from playwright.sync_api import Browser, Page, sync_playwright

from tests.console.sample_fleet import TASK, device_name
from tests.console.served_console import PASSWORD

FLAGS = [
    "--no-sandbox",  # CI runs as root, where Chromium's sandbox refuses to start; it visits only our own pages.
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
]
Scheme = Literal["light", "dark"]
PAGES = {
    "overview": "/",
    "fleet": "/fleet",
    "fleet-filtered": "/fleet?presence=away&order=seen",
    "fleet-none": "/fleet?text=nothing-like-it",
    "device": f"/devices/{device_name(0)}",
    "rounds": "/rounds",
    "round-open": f"/rounds/{TASK}/31",
    "round-completed": f"/rounds/{TASK}/30",
    "round-abandoned": f"/rounds/{TASK}/17",
    "models": "/models",
    "model": f"/models/{TASK}",
    "releases": "/releases",
    "release-open": "/releases/5",
    "release-halted": "/releases/3",
    "promote": f"/promote/{TASK}",
    "release-rollback": "/releases/5/rollback",
    "tasks": "/tasks",
    "task": f"/tasks/{TASK}",
    "task-start": "/start-task",
    "task-abort": f"/tasks/{TASK}/abort",
    "tokens": "/tokens",
    "token-revoke": "/tokens/spring/revoke",
    "audit": "/audit",
    "account": "/account",
    "not-found": "/nothing-here",
}


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run a browser that reaches nothing but this machine."""
    program = shutil.which("chromium")
    assert program is not None, "chromium is absent: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, headless=True, args=FLAGS)
        yield browser
        browser.close()


def open_page(browser: Browser, address: str, *, width: int = 1280, scheme: Scheme = "light") -> Page:
    """Return a page of a fresh browser profile."""
    context = browser.new_context(base_url=address, viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(15_000)
    return page


def sign_in(page: Page) -> None:
    """Sign in as a person does."""
    page.goto("/login")
    page.get_by_label("User").fill("anna")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("heading", name="Overview").wait_for()
