"""Judging explanations in the browser, and what it stores."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import planted
import pytest
from playwright.sync_api import Browser, Page, expect
from viewing import post

from fastexplain import Run, open_run
from fastexplain.cli.rate import parse_judgement
from fastexplain.records import NeuronId
from fastexplain.results import ExplanationRow
from fastexplain.run.ratings import Judgement, Ratings

ROOT = Path(__file__).resolve().parent.parent.parent
NEURONS = [
    NeuronId(0, planted.MOON_AFTER_BRIGHT),
    NeuronId(0, planted.RARE),
]
HOSTILE = "<img src=x onerror=alert(1)>\u202e\x1b[31m" + "x" * 500


@pytest.fixture
def compared(planted_run: Run, tmp_path: Path) -> Run:
    """A run in which two neurons have explanations to compare."""
    run = open_run(shutil.copytree(planted_run.path, tmp_path / "run"))
    with run.database() as database:
        database.add_explanations(
            [
                ExplanationRow(neuron, "model", model, "1", text)
                for neuron in NEURONS
                for model, text in (("sage-1", "a rare word"), ("fool-1", HOSTILE))
            ]
        )
    return run


def stored(run: Run) -> list[tuple[str, Judgement]]:
    with run.database(read_only=True) as database:
        return [(str(r.neuron), r.judgement) for r in Ratings(database).all() if not r.withdrawn]


@pytest.mark.browser
def test_a_person_ranks_goes_back_and_undoes(
    compared: Run, serve: Callable[..., str], open_page: Callable[..., Page]
) -> None:
    address = serve(compared)
    page = open_page(f"{address}#/rate")
    page.get_by_label("Your name").fill("Ann")
    page.get_by_role("button", name="Begin").click()
    expect(page.get_by_text("· Ann, 0 of 2 done")).to_be_visible()
    texts = page.locator(".texts li")
    expect(texts).to_have_count(2)
    assert "sage-1" not in page.content() and "fool-1" not in page.content()
    page.get_by_role("button", name="Store").click()
    expect(page.get_by_role("alert")).to_have_text("Explanation 1 has no value yet.")
    page.keyboard.press("2")  # the second is best
    page.keyboard.press("2")  # once
    page.keyboard.press("1")
    page.keyboard.press("Enter")  # the focus is on "Store", which takes it itself
    expect(page.get_by_text("Ann, 1 of 2 done")).to_be_visible()
    [(first, judgement)] = stored(compared)
    [other] = {str(neuron) for neuron in NEURONS} - {first}
    assert judgement == Judgement("ranking", (2, 1))

    page.keyboard.press("b")
    group = page.get_by_role("group", name="Explanation 1")
    expect(group.get_by_role("radio", name="2")).to_be_checked()
    page.evaluate("scrollTo(0, 100)")
    page.get_by_role("radio", name="Grade").check()
    expect(page.get_by_role("radio", name="Grade")).to_be_focused()
    assert page.evaluate("scrollY") == 100  # the texts stay in view
    assert "by=grades" in page.url
    page.keyboard.press("5")
    expect(page.get_by_role("radio", name="Grade")).to_be_checked()
    page.keyboard.press("3")
    page.keyboard.press("Enter")
    expect(page.get_by_text(f"Neuron {other} · Ann, 1 of 2 done")).to_be_visible()
    assert stored(compared) == [(first, Judgement("grades", (5, 3)))]
    page.keyboard.press("s")
    expect(page.locator("main")).to_contain_text("All neurons with explanations to compare")
    page.get_by_role("button", name="Undo").click()
    expect(texts).to_have_count(2)
    assert stored(compared) == [(first, Judgement("grades", (5, 3)))]


@pytest.mark.browser
@pytest.mark.parametrize("line", ["3 1 2", "3=1 2", "2 3=1", "1=2=3", "2 1 3"])
def test_keys_mean_what_a_line_in_the_terminal_means(
    line: str, compared: Run, serve: Callable[..., str], open_page: Callable[..., Page]
) -> None:
    with compared.database() as database:
        database.add_explanations(
            [ExplanationRow(neuron, "model", "third", "1", "a third") for neuron in NEURONS]
        )
    page = open_page(f"{serve(compared)}#/rate?rater=Ann")
    expect(page.locator(".texts li")).to_have_count(3)
    expect(page.get_by_text("the best explanation's number first, as in 3 1 2")).to_be_visible()
    for typed in ("123" if line == "3 1 2" else "", line):  # it begins again
        for key in typed.replace(" ", ""):
            page.keyboard.press(key)
    page.keyboard.press("Enter")
    expect(page.get_by_text("Ann, 1 of 2 done")).to_be_visible()
    [(_, judgement)] = stored(compared)
    assert judgement == parse_judgement(line, 3)


@pytest.mark.browser
def test_a_name_of_blanks_is_answered(
    compared: Run, serve: Callable[..., str], open_page: Callable[..., Page]
) -> None:
    page = open_page(f"{serve(compared)}#/rate")
    page.get_by_label("Your name").fill("   ")
    page.get_by_role("button", name="Begin").click()
    expect(page.get_by_role("alert")).to_contain_text("type yours")
    page.get_by_label("Your name").fill(" Ann ")
    page.keyboard.press("Enter")
    expect(page.get_by_text("· Ann, 0 of 2 done")).to_be_visible()


@pytest.mark.browser
def test_what_was_chosen_stays_while_the_viewer_is_gone(
    compared: Run, serve: Callable[..., str], browser: Browser
) -> None:
    # Not by `open_page`: the browser itself writes what fails to the console.
    with browser.new_context() as context:
        page = context.new_page()
        problems: list[object] = []
        page.on("pageerror", lambda error: problems.append(error))
        page.goto(f"{serve(compared)}#/rate?rater=Ann&by=grades")
        expect(page.locator(".texts li")).to_have_count(2)
        page.keyboard.press("5")
        page.keyboard.press("4")
        context.set_offline(True)
        for key in ("b", "u", "Enter"):
            page.keyboard.press(key)
            expect(page.get_by_role("alert")).to_contain_text("still running?")
            page.get_by_role("alert").evaluate("line => line.textContent = ''")
        context.set_offline(False)
        page.keyboard.press("b")
        expect(page.get_by_role("alert")).to_have_text("There is no earlier judgement.")
        page.keyboard.press("Enter")
        expect(page.get_by_text("Ann, 1 of 2 done")).to_be_visible()
        assert [judgement for _, judgement in stored(compared)] == [Judgement("grades", (5, 4))]
        assert problems == []


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(
    compared: Run, serve: Callable[..., str], open_page: Callable[..., Page], scheme: str
) -> None:
    address = serve(compared)
    page = open_page(
        f"{address}#/rate?rater=Bo",
        viewport={"width": 390, "height": 844},
        color_scheme=scheme,
    )
    expect(page.locator(".texts li")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.screenshot(path=ROOT / ".cache" / "screenshots" / f"rate-{scheme}.png")


def test_what_is_no_judgement_is_refused_and_nothing_stored(compared: Run) -> None:
    task = post(compared, "rate/next", {"rater": "Ann"})["task"]
    assert "sage-1" not in str(task) and "fool-1" not in str(task)
    good = {"rater": "Ann", "neuron": task["neuron"], "key": task["key"]}
    ranking = {"kind": "ranking", "values": [1, 2]}
    for body, line in (
        ({}, "give the name under which your ratings are stored"),
        ({"rater": " "}, "name"),
        (good, "a rating has a neuron, the key of its task, and a judgement"),
        ({**good, "judgement": {"kind": 1, "values": []}}, "a judgement has a kind"),
        ({**good, "judgement": {"kind": "ranking", "values": [1]}}, "a judgement of 2 texts is"),
        ({**good, "judgement": {"kind": "ranking", "values": [1, 9]}}, "9 is no rank"),
        ({**good, "judgement": {"kind": "ranking", "values": [[], {}]}}, "a judgement of 2 texts"),
        ({**good, "neuron": "0:x", "judgement": ranking}, "does not name a neuron"),
        ({**good, "key": "x", "judgement": ranking}, "have changed since they were shown"),
    ):
        answer = post(compared, "rate", body, status=400)
        assert line in answer["error"], body
    assert post(compared, "rate/earlier", {"rater": "Ann", "before": "x"}, status=400)
    for content in (b"[]", b"{", b"[" * 100_000, b"\xff"):
        assert "the request is no JSON" in post(compared, "rate", content, status=400)["error"]
    assert stored(compared) == []
    after = post(compared, "rate", {**good, "judgement": ranking})
    assert after["left"] == 1 and len(stored(compared)) == 1


def test_a_run_without_explanations_to_compare_says_what_to_do(run: Run) -> None:
    answer = post(run, "rate/next", {"rater": "Ann"}, status=400)
    assert "explain some by another method or model" in answer["error"]
