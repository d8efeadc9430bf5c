"""Make a picture of every page of the console, at three widths, light and dark, for people to look at."""

import argparse
import tempfile
from pathlib import Path
from typing import get_args

from playwright.sync_api import Page

from tests.console.chromium import PAGES, Scheme, chromium, open_page, sign_in
from tests.console.served_console import served_console

WIDTHS = (360, 768, 1280)


def main() -> None:
    """Write the pictures into a folder, by page, width and colour scheme."""
    parser = argparse.ArgumentParser(prog="scripts/screenshots", description=__doc__)
    parser.add_argument("folder", type=Path, help="where to write the pictures; not inside the project")
    parser.add_argument("--only", help="only pages whose name holds this")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    if folder.is_relative_to(Path(__file__).resolve().parents[1]):
        parser.error(f"{folder}: pictures are looked at, not kept: choose a folder outside the project")
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for name in PAGES if not arguments.only or arguments.only in name]
    with (
        tempfile.TemporaryDirectory() as state,
        chromium() as browser,
        served_console(Path(state) / "full") as address,
        served_console(Path(state) / "empty", device_count=0) as empty,
    ):
        for width in WIDTHS:
            for scheme in get_args(Scheme):
                page = open_page(browser, address, width=width, scheme=scheme)
                page.goto("/login")
                take(page, folder / f"login-{width}-{scheme}.png")
                sign_in(page)
                for name in names:
                    page.goto(PAGES[name])
                    take(page, folder / f"{name}-{width}-{scheme}.png")
                page.context.close()
        page = open_page(browser, empty, width=360)
        sign_in(page)
        for name in ("overview", "fleet", "rounds", "models", "tasks", "tokens", "audit"):
            page.goto(PAGES[name])
            take(page, folder / f"empty-{name}-360-light.png")


def take(page: Page, path: Path) -> None:
    """Take a picture of the whole page, and say if it is wider than the window."""
    too_wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    page.screenshot(path=path, full_page=True)
    print(path.name, f"TOO WIDE by {too_wide} px" if too_wide > 0 else "")


if __name__ == "__main__":
    main()
