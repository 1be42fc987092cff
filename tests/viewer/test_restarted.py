"""Pages that stay open while the viewer is ended and started again, with another token."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import planted
import pytest
from playwright.sync_api import Browser, Page, expect
from viewing import serving

from fastexplain import Run, open_run
from fastexplain.records import NeuronId
from fastexplain.results import ExplanationRow, Scores
from fastexplain.run.ratings import Judgement, Ratings

pytestmark = pytest.mark.browser

SHOTS = Path(__file__).resolve().parents[2] / ".cache" / "screenshots"
AWAY = "The viewer does not answer; is `fastexplain view` still running?"


class Restarted:
    """A viewer that can be ended and started again at its address."""

    def __init__(self, run: Run) -> None:
        self._served = contextlib.ExitStack()
        self.address = self._served.enter_context(serving(run))

    def end(self) -> None:
        self._served.close()

    def start(self, run: Run) -> None:
        port = int(self.address.rstrip("/").rpartition(":")[2])
        assert self._served.enter_context(serving(run, None, port)) == self.address


@pytest.fixture
def compared(run: Run) -> Run:
    """Two neurons with two explanations each, all scored."""
    with run.database() as database:
        database.add_explanations(
            [
                ExplanationRow(
                    *(NeuronId(0, index), "model", model, "1", f"{model} on {index}"),
                    scores=Scores(score, score, score, 5, 5),
                )
                for index in (planted.RARE, planted.CAT)
                for model, score in (("sage", 0.9), ("fool", 0.1))
            ]
        )
    return run


@pytest.fixture
def viewer(compared: Run) -> Iterator[Restarted]:
    viewer = Restarted(compared)
    yield viewer
    viewer.end()


@pytest.fixture
def open_quietly(browser: Browser) -> Iterator[Callable[..., Page]]:
    """As `open_page`, but the browser itself may write what fails to the console."""
    problems: list[object] = []
    with contextlib.ExitStack() as contexts:

        def opened(address: str, **options: object) -> Page:
            page = contexts.enter_context(browser.new_context(**options)).new_page()
            page.on("pageerror", lambda error: problems.append(error))
            page.goto(address)
            page.wait_for_selector("main[aria-busy=false]")
            return page

        yield opened
    assert problems == []


def stored(run: Run) -> list[Judgement]:
    with run.database(read_only=True) as database:
        return [each.judgement for each in Ratings(database).all() if not each.withdrawn]


def test_what_was_chosen_is_stored_by_the_next_viewer_without_reloading(
    viewer: Restarted, compared: Run, open_quietly: Callable[..., Page]
) -> None:
    page = open_quietly(f"{viewer.address}#/rate?rater=Ann&by=grades")
    page.evaluate("window.untouched = true")
    page.keyboard.press("5")
    page.keyboard.press("2")
    viewer.end()
    viewer.start(compared)  # unnoticed by the page
    page.keyboard.press("Enter")
    expect(page.get_by_text("Ann, 1 of 2 done")).to_be_visible()
    assert stored(compared) == [Judgement("grades", (5, 2))]

    page.keyboard.press("4")
    page.keyboard.press("1")
    viewer.end()
    page.keyboard.press("Enter")
    alert = page.get_by_role("alert")
    expect(alert).to_have_text(f"{AWAY} What you chose stays here.")
    viewer.start(compared)
    expect(alert).to_have_text("The viewer is back, and what you chose is still here: store it.")
    expect(page.get_by_role("group", name="Explanation 1").get_by_label("4")).to_be_checked()
    page.get_by_role("button", name="Store").click()
    expect(page.get_by_text("Ann, 2 of 2 done")).to_be_visible()
    assert stored(compared) == [Judgement("grades", (5, 2)), Judgement("grades", (4, 1))]
    assert page.evaluate("window.untouched")


def test_what_was_chosen_is_not_stored_in_another_run(
    viewer: Restarted, compared: Run, open_quietly: Callable[..., Page], tmp_path: Path
) -> None:
    other = open_run(shutil.copytree(compared.path, tmp_path / "another"))
    page = open_quietly(f"{viewer.address}#/rate?rater=Ann&by=grades")
    page.keyboard.press("5")
    page.keyboard.press("2")
    viewer.end()
    viewer.start(other)
    for _ in range(2):
        page.keyboard.press("Enter")
        line = "The viewer shows another run by now; open it anew."
        expect(page.get_by_role("alert")).to_have_text(line)
    assert stored(compared) == stored(other) == []


def test_a_text_goes_on_where_it_was(
    viewer: Restarted, compared: Run, open_quietly: Callable[..., Page]
) -> None:
    page = open_quietly(f"{viewer.address}#/try?neuron=0:{planted.CAT}")
    text, shown = page.get_by_label("Text, up to"), page.locator(".try-shown .token")
    text.fill("the cat walks")
    expect(shown).to_have_count(3)
    viewer.end()
    viewer.start(compared)  # without a subject
    text.fill("the old cat walks")
    expect(shown).to_have_count(4)
    viewer.end()
    text.fill("the old cat sees the")
    expect(page.locator(".try-state")).to_have_text(AWAY)
    viewer.start(compared)
    expect(shown).to_have_count(5)


def test_a_comparison_is_shown_once_the_viewer_is_back(
    viewer: Restarted, compared: Run, open_quietly: Callable[..., Page]
) -> None:
    page = open_quietly(f"{viewer.address}#/compare")
    figures = page.locator(".figures")
    expect(figures).to_contain_text("2 neurons have both scores")
    viewer.end()
    page.get_by_label("Scored on").select_option("random_only")
    expect(figures).to_have_text(AWAY)
    viewer.start(compared)
    expect(figures).to_contain_text("2 neurons have both scores")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_how_it_looks(
    viewer: Restarted, open_quietly: Callable[..., Page], scheme: str, width: int
) -> None:
    page = open_quietly(
        f"{viewer.address}#/rate?rater=Ann",
        color_scheme=scheme,
        viewport={"width": width, "height": 900},
    )
    page.keyboard.press("1")
    viewer.end()
    page.keyboard.press("b")
    expect(page.get_by_role("alert")).to_contain_text("stays here")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=SHOTS / f"restarted-{scheme}-{width}.png", full_page=True)
