"""The sign classes on a neuron's page: their data, their tab, an exported page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import planted_gates
import pytest
from playwright.sync_api import Page, expect

import fastexplain
from fastexplain import Run
from fastexplain.records import NeuronId
from fastexplain.report.page import page_data
from fastexplain.viewer.exporting import export_page

SCREENSHOTS = Path(__file__).parents[2] / ".cache" / "screenshots"


@pytest.fixture(scope="module")
def signs_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("signs") / "run"
    corpus = planted_gates.gated_corpus()
    return fastexplain.sweep(planted_gates.gated_subject(), corpus, out, signs=True)


def test_a_page_has_the_classes_with_values_on_their_own_tokens(signs_run: Run) -> None:
    data = page_data(signs_run, "0:0")
    classes = signs_run.signs("0:0") or []
    assert [each["signs"] for each in data["signs"]] == ["++", "+-", "-+", "--"]
    for shown, own in zip(data["signs"], classes, strict=True):
        assert shown["share"] == own.share and shown["mass"] == own.mass
        for row, exemplar, members in zip(
            shown["exemplars"], own.exemplars, own.members, strict=True
        ):
            assert data["excerpts"][str(row["excerpt"])]["tokens"] == exemplar.tokens
            assert [value is not None for value in row["values"]] == members.tolist()
            known = np.array([value for value in row["values"] if value is not None])
            np.testing.assert_allclose(known, exemplar.activations[members], rtol=1e-3)
    never = page_data(signs_run, "0:2")["signs"]
    assert never[0]["mean"] is None and all(each["exemplars"] == [] for each in never)


@pytest.mark.browser
def test_the_tab_shows_four_classes_and_its_key_opens_it(
    signs_run: Run,
    serve: Callable[..., str],
    open_page: Callable[..., Page],
    check_accessible: Callable[[Page], None],
) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page = open_page(f"{serve(signs_run)}#/neuron/0:0", viewport={"width": 390, "height": 900})
    page.keyboard.press("g")
    expect(page.get_by_role("tab", name="By signs")).to_have_attribute("aria-selected", "true")
    assert page.url.endswith("?tab=signs")
    table = page.get_by_role("region", name="Sign classes")
    expect(table.get_by_role("row")).to_have_count(5)
    expect(table.get_by_role("row", name="--")).to_contain_text("above")
    apart = page.get_by_role("region", name="--: f(gate) is not above 0, up is not above 0")
    expect(apart.locator("li")).to_have_count(5)
    assert {each.inner_text() for each in apart.locator(".token[style]").all()} == {"dog"}
    below = page.get_by_role("region", name="+-: f(gate) is above 0, up is not above 0")
    assert {each.inner_text() for each in below.locator(".token.below").all()} == {"sun"}
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    check_accessible(page)
    page.screenshot(path=SCREENSHOTS / "neuron-signs-390.png", full_page=True)
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.dataset.place") == "0"
    page.keyboard.press("n")
    expect(page.get_by_role("heading", level=1)).to_have_text("Neuron 0:1")
    expect(page.get_by_role("tab", name="By signs")).to_have_attribute("aria-selected", "true")


@pytest.mark.browser
def test_a_run_without_classes_has_no_tab(
    planted_run: Run, serve: Callable[..., str], open_page: Callable[..., Page]
) -> None:
    page = open_page(f"{serve(planted_run)}#/neuron/0:0")
    expect(page.get_by_role("tab", name="Top")).to_be_visible()
    expect(page.get_by_role("tab", name="By signs")).to_have_count(0)
    page.keyboard.press("g")
    expect(page.get_by_role("tab", name="Top")).to_have_attribute("aria-selected", "true")


@pytest.mark.browser
def test_an_exported_page_has_the_tab_too(
    signs_run: Run, open_page: Callable[..., Page], tmp_path: Path
) -> None:
    file = tmp_path / "page.html"
    export_page(signs_run, NeuronId(0, 0), file)
    page = open_page(file.as_uri())
    page.get_by_role("tab", name="By signs").click()
    expect(page.get_by_role("region", name="Sign classes").get_by_role("row")).to_have_count(5)
