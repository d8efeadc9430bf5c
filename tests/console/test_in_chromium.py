"""The console as a person meets it: a real server, a real browser, its keyboard, its colour schemes."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from cloud_aggregator.adapters.database import Database
from cloud_aggregator.config import database_url
from tests.console.chromium import PAGES, Scheme, chromium, open_page, sign_in
from tests.console.sample_fleet import TASK, device_name
from tests.console.served_console import SETTINGS, served_console

pytestmark = [pytest.mark.browser, pytest.mark.needs_program("chromium", "chromium"), pytest.mark.timeout(300)]
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("console")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with served_console(folder) as found:
        yield found


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    opened = open_page(browser, address)
    sign_in(opened)
    yield opened
    opened.context.close()


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
def test_axe_finds_nothing_on_any_page(browser: Browser, address: str, width: int, scheme: Scheme) -> None:
    page = open_page(browser, address, width=width, scheme=scheme)
    broken = []
    page.on("console", lambda message: broken.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.goto("/login")
    found = {"login": violations(page)}
    sign_in(page)
    for name, path in PAGES.items():
        page.goto(path)
        found[name] = violations(page)
        too_wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert too_wide <= 0, f"{name}: {too_wide} px wider than a window of {width} px"
    page.context.close()
    assert {name: what for name, what in found.items() if what} == {}
    assert [text for text in broken if "404" not in text] == [], "the policy or a script complained"


def violations(page: Page) -> list[str]:
    result = Axe().run(page)
    return [
        f"{one['id']}: {node['html'][:120]} {node['failureSummary']}"
        for one in result.response["violations"]
        for node in one["nodes"]
    ]


def test_a_page_shows_what_happens_without_a_reload(page: Page, folder: Path) -> None:
    page.goto(f"/rounds/{TASK}/31")
    expect(page.locator("#live")).to_have_text("Live")
    page.evaluate("window.sameDocument = true")
    database = Database(database_url(folder, SETTINGS))
    with database.transaction() as tx:
        tx.record("report-late", task=TASK, round_number=31, device=device_name(5))
    database.close()
    expect(page.locator(".timeline li").first).to_contain_text("report came when the round was over")
    assert page.evaluate("window.sameDocument") is True


def test_without_a_stream_the_page_looks_for_news_by_itself(page: Page, folder: Path) -> None:
    page.route("**/stream*", lambda route: route.fulfill(status=503))
    page.goto("/")
    expect(page.locator("#live")).to_have_text("Every 5 s")
    database = Database(database_url(folder, SETTINGS))
    with database.transaction() as tx:
        tx.record("polled-for", device=device_name(6))
    database.close()
    expect(page.locator(".timeline li").first).to_contain_text("polled for", timeout=20_000)


def test_the_keyboard_keeps_its_place_when_the_page_renews_itself(page: Page, folder: Path) -> None:
    page.goto("/")
    link = page.get_by_role("link", name=re.compile("away$"))
    link.focus()
    page.get_by_text("The figures as a table").click()
    link.focus()
    database = Database(database_url(folder, SETTINGS))
    with database.transaction() as tx:
        tx.record("renewed", device=device_name(6))
    database.close()
    expect(page.locator(".timeline li").first).to_contain_text("renewed")
    expect(link).to_be_focused()
    expect(page.locator("details")).to_have_attribute("open", "")


def test_everything_is_reached_by_keyboard_and_its_focus_is_seen(page: Page) -> None:
    page.goto("/fleet")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    field = page.get_by_label("Name, engine or version")
    expect(field).to_be_focused()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.type(device_name(4)[:8])
    page.keyboard.press("Enter")
    expect(page.locator("tbody tr")).to_have_count(1)


def test_a_chart_is_read_with_the_pointer_and_with_the_keyboard(page: Page) -> None:
    page.goto("/rounds")
    slider = page.get_by_label("Read a round")
    slider.focus()
    page.keyboard.press("Home")
    reading = page.locator("figure[data-chart=accuracy] .reading")
    expect(reading).to_contain_text("Round 1: accuracy")
    page.keyboard.press("ArrowRight")
    expect(reading).to_contain_text("Round 2: accuracy")
    assert slider.get_attribute("aria-valuetext") == "Round 2"
    box = page.locator("figure[data-chart=bytes] svg").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.97, box["y"] + 50)
    expect(reading).to_contain_text("Round 30: accuracy")


def test_without_scripts_every_page_still_says_everything(browser: Browser, address: str) -> None:
    context = browser.new_context(base_url=address, java_script_enabled=False)
    page = context.new_page()
    sign_in(page)
    page.goto("/rounds")
    expect(page.locator("figure.chart")).to_have_count(4)
    expect(page.get_by_label("Read a round")).to_be_hidden()
    page.get_by_text("The figures as a table").click()
    expect(page.locator("tr[data-round]").first).to_be_visible()
    context.close()


def test_a_confirmation_repeats_the_consequence_before_anything_happens(page: Page) -> None:
    page.goto(f"/tasks/{TASK}")
    page.get_by_role("link", name="Abort").click()
    expect(page.get_by_role("heading", name=f"Abort task {TASK}?")).to_be_visible()
    expect(page.locator(".consequence")).to_contain_text("round 31 with 13 devices")
    page.get_by_role("link", name="Cancel").click()
    expect(page.get_by_role("heading", name="Tasks")).to_be_visible()


def test_hostile_text_stays_inert_in_a_real_browser(browser: Browser, tmp_path: Path) -> None:
    with served_console(tmp_path, hostile_text=HOSTILE) as address:
        page = open_page(browser, address)
        sign_in(page)
        for path in PAGES.values():
            page.goto(path)
            assert "owned" not in page.title()
            assert page.locator("script:not([src]), img[src=x]").count() == 0
        page.context.close()
