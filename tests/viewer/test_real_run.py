"""The viewer over a run of a real model, with all that a run may have, in a browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from viewing import serving

import fastexplain
from fastexplain import Corpus, Run, Subject, sweep
from fastexplain.explainers.lookup import store_lookup
from fastexplain.explainers.rules import store_rules
from fastexplain.report.page import page_data

pytestmark = pytest.mark.browser

SCREENSHOTS = Path(__file__).parents[2] / ".cache" / "screenshots"
NEURON = "1:585"


@pytest.fixture(scope="module")
def real_run(smollm2: Subject, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """SmolLM2's layers 0 and 1, with bottom exemplars, sign classes and weights, explained."""
    corpus = Corpus(["stdlib"], smollm2.tokenizer, excerpts=96)
    out = tmp_path_factory.mktemp("real") / "run"
    run = sweep(smollm2, corpus, out, layers=[0, 1], bottom=True, signs=True)
    fastexplain.weights(run, subject=smollm2)
    store_lookup(run)
    store_rules(run)
    return run


@pytest.fixture(scope="module")
def real_address(real_run: Run) -> Iterator[str]:
    with serving(real_run) as address:
        yield address


def test_a_neuron_of_a_real_model_has_every_section(
    real_address: str, open_page: Callable[..., Page], check_accessible: Callable[[Page], None]
) -> None:
    page = open_page(f"{real_address}#/neuron/{NEURON}")
    for title in ("What text drives it", "Tokens that drive it", "What it does"):
        expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible()
    effects = page.get_by_role("region", name="What it does")
    expect(effects.locator(".effect")).to_have_count(20)  # ten raised, ten lowered
    check_accessible(page)

    related = page.get_by_role("region", name="Neurons it has to do with")
    for title in ("Fed by", "Read by", "Write the same"):
        expect(related.get_by_role("heading", name=title)).to_be_visible()
    related.get_by_role("link").first.click()
    expect(page.get_by_role("heading", level=1)).not_to_have_text(f"Neuron {NEURON}")
    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Neuron {NEURON}")


def test_keys_choose_among_all_kinds_of_excerpts(
    real_address: str, open_page: Callable[..., Page]
) -> None:
    page = open_page(f"{real_address}#/neuron/{NEURON}")
    for key, name in (
        ("b", "Bottom"), ("q", "By quantile"), ("r", "Random"), ("g", "By signs"),
        ("s", "True and simulated"), ("t", "Top"),
    ):  # fmt: skip
        page.keyboard.press(key)
        expect(page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")
    page.keyboard.press("b")
    peaks = page.locator(".peak").all_inner_texts()
    values = [float(peak) for peak in peaks]
    assert values == sorted(values) and values[0] < 0
    for key, place in (("j", 0), ("j", 1), ("j", 2), ("k", 1), ("k", 0), ("k", 0)):
        page.keyboard.press(key)
        here = page.locator(".excerpts > li").nth(place).locator(".token:focus")
        expect(here).to_have_count(1)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.dataset.place") == "0"


def without_activations(run: Run, name: str) -> int:
    """Excerpts by quantile of which the run has no activations."""
    kept = page_data(run, name)["exemplars"]
    known = {row["excerpt"] for kind in ("top", "bottom", "random") for row in kept[kind]}
    return sum(row["excerpt"] not in known for row in kept["quantile"])


def test_the_subject_fills_in_what_was_not_stored(
    real_run: Run, real_address: str, open_page: Callable[..., Page]
) -> None:
    names = (f"1:{unit}" for unit in range(1536))
    name, count = next((each, n) for each in names if (n := without_activations(real_run, each)))
    page = open_page(f"{real_address}#/neuron/{name}?tab=quantile")
    lacking = page.locator(".excerpts > li").filter(
        has_not=page.locator(".token:not(.uncounted)[style*=share]")
    )
    expect(lacking).to_have_count(count)
    page.get_by_role("button", name=f"Run the subject on the {count}").click()
    expect(lacking).to_have_count(0, timeout=60_000)
    expect(page.get_by_role("button", name="Run the subject")).to_have_count(0)
    expect(page.get_by_role("tab", name="By quantile")).to_be_focused()


def test_more_of_a_document_is_shown(real_address: str, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{real_address}#/neuron/{NEURON}")
    more = page.get_by_role("button", name="more text after").first
    around = page.locator(".around", has=more).first
    before = len(around.inner_text())
    more.click()
    expect(around.locator(".tokens.quiet")).to_have_count(1)
    assert len(around.inner_text()) > before + 64


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_pages_of_a_real_run_fit(
    real_address: str, open_page: Callable[..., Page], scheme: str, width: int
) -> None:
    page = open_page(
        f"{real_address}#/", viewport={"width": width, "height": 900}, color_scheme=scheme
    )
    for name, address in (
        ("overview", ""), ("neuron", f"neuron/{NEURON}"), ("signs", f"neuron/{NEURON}?tab=signs"),
        ("search", "search?q=self"), ("compare", "compare"),
    ):  # fmt: skip
        page.goto(f"{real_address}#/{address}")
        page.wait_for_selector("main[aria-busy=false]")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        path = SCREENSHOTS / f"real-{name}-{scheme}-{width}.png"
        page.screenshot(path=path, full_page=True)


def test_a_real_subject_runs_what_is_typed(
    real_address: str, open_page: Callable[..., Page]
) -> None:
    page = open_page(f"{real_address}#/try?text=def+main(self)%3A")
    over = page.get_by_role("table", name="Over the text")
    expect(over.get_by_role("row")).to_have_count(26, timeout=60_000)


def test_every_page_is_accessible(
    real_address: str, open_page: Callable[..., Page], check_accessible: Callable[[Page], None]
) -> None:
    page = open_page(f"{real_address}#/")
    check_accessible(page)
    for address in ("search?q=self", "rate", "compare"):
        page.goto(f"{real_address}#/{address}")
        page.wait_for_selector("main[aria-busy=false]")
        check_accessible(page)
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    check_accessible(page)
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("self")
    expect(page.get_by_role("option").first).to_be_visible()
    check_accessible(page)
