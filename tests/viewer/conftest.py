"""A real browser."""

import contextlib
from collections.abc import Callable, Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright
from viewing import serving

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip

# What moved on a page without anybody's doing, in `shifts`.
SHIFTS = """
    window.shifts = [];
    const told = ({ value, sources }) =>
        `${value} ${sources.map(({ node }) => node?.outerHTML?.slice(0, 80))}`;
    new PerformanceObserver((found) => {
        shifts.push(...found.getEntries().filter((each) => !each.hadRecentInput).map(told));
    }).observe({ type: "layout-shift", buffered: true });
"""

# The gravest impacts that axe-core knows.
GRAVE = ("serious", "critical")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """`viewing.serving`, until the test's pages are closed."""
    with contextlib.ExitStack() as served:
        yield lambda *what: served.enter_context(serving(*what))


@pytest.fixture
def open_page(browser: Browser, serve: Callable[..., str]) -> Iterator[Callable[..., Page]]:
    """Opens an address and waits until the page is there.

    A test that uses it fails if a page had an error, or anything written to its console; one that
    is still loading when the test ends has the viewer until it is closed. What moved on a page by
    itself is in its `shifts`.
    """
    contexts: list[BrowserContext] = []
    problems: list[str] = []

    def noted(message: ConsoleMessage) -> None:
        problems.append(f"{message.text} {message.location['url']}")

    def open_address(address: str, **options: object) -> Page:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.add_init_script(SHIFTS)
        page.on("console", noted)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(address)
        page.wait_for_selector("main[aria-busy=false]")
        return page

    yield open_address
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture
def check_accessible() -> Callable[[Page], None]:
    """Asserts that axe-core finds no serious or critical violation on a page, light and dark.

    The page is left in the light scheme.
    """

    def check(page: Page) -> None:
        for scheme in ("dark", "light"):
            page.emulate_media(color_scheme=scheme)
            found = Axe().run(page).response["violations"]
            grave = [
                f"{each['id']}: {each['help']}: {node['html'][:300]}: {node['failureSummary']}"
                for each in found
                if each["impact"] in GRAVE
                for node in each["nodes"]
            ]
            assert grave == [], scheme

    return check
