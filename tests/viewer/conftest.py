"""A real browser."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip

# `make test-browser` fetches it.
AXE = Path(__file__).parents[2] / ".cache/axe-core@4.14.1/node_modules/axe-core/axe.min.js"

_VIOLATIONS = """async () => {
    const found = await axe.run(document, { resultTypes: ["violations"] });
    return found.violations
        .filter(({ impact }) => impact === "serious" || impact === "critical")
        .flatMap(({ id, help, nodes }) => nodes.map(({ html, failureSummary }) =>
            `${id}: ${help}: ${html.slice(0, 300)}: ${failureSummary}`));
}"""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens an address and waits until the page is there.

    A test that uses it fails if a page had an error, or anything written to its console.
    """
    contexts: list[BrowserContext] = []
    problems: list[str] = []

    def noted(message: ConsoleMessage) -> None:
        problems.append(message.text)

    def open_address(address: str, **options: object) -> Page:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
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
    if not AXE.exists():
        pytest.fail("axe-core is not there; run the suite by make test-browser")

    def check(page: Page) -> None:
        page.evaluate(AXE.read_text())  # the policy lets no script of others in
        for scheme in ("dark", "light"):
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate(_VIOLATIONS) == [], scheme

    return check
