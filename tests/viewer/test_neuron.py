"""The page of a neuron, in a browser: sections, tabs, keys, and hostile text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import planted
import pytest
from knowing_server import Knowing
from playwright.sync_api import Page, expect
from safetensors.numpy import load_file, save_file
from viewing import serving

import fastexplain
from fastexplain import Run, open_run
from fastexplain.explainers.lookup import store_lookup
from fastexplain.explainers.rules import store_rules
from fastexplain.records import NeuronId
from fastexplain.results import ExplanationRow, Raised, Steering

pytestmark = pytest.mark.browser

SCREENSHOTS = Path(__file__).parents[2] / ".cache" / "screenshots"
HOSTILE = [
    "<script>document.title='taken'</script>", '"><img src=x onerror=alert(1)>', "\u202eevil",
    "\x1b[31m", "&amp;</span>", "x" * 10_000,
]  # fmt: skip


@pytest.fixture
def address(run: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A viewer of the planted run, explained by table, rules and a model that knows."""
    store_lookup(run)
    store_rules(run)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = Knowing(lambda asked, seed: "This neuron reacts to the cat.")
    try:
        model = fastexplain.Model("m", base_url=server.url)
        fastexplain.explain(run, f"0:{planted.CAT}", explainer=model, simulation="json")
    finally:
        server.close()
    with run.database() as database:  # as many as a page may have
        database.add_explanations(
            [ExplanationRow(NeuronId(0, 1), "human", "h", str(n), f"digit {n}") for n in range(40)]
        )
    with serving(run) as at:
        yield at


def test_a_page_shows_a_neuron_and_its_keys_work(
    address: str, open_page: Callable[..., Page], check_accessible: Callable[[Page], None]
) -> None:
    page = open_page(f"{address}#/neuron/0:{planted.CAT}")
    expect(page.get_by_role("heading", level=1)).to_have_text("Neuron 0:0")
    said = page.locator(".explanation .said")
    expect(said).to_have_count(3)
    expect(said.filter(has_text="the cat")).to_be_visible()
    expect(page.locator(".excerpts > li")).to_have_count(20)
    check_accessible(page)

    baselines = page.get_by_role("region", name="Baselines")
    expect(baselines.get_by_role("row", name="the token alone")).to_contain_text("1.00")

    page.keyboard.press("e")
    page.get_by_role("button", name="Show the request").click()
    expect(page.get_by_role("region", name="answer")).to_contain_text("reacts to the cat")
    page.keyboard.press("r")
    expect(page.get_by_role("tab", name="Random")).to_have_attribute("aria-selected", "true")
    expect(page.locator(".excerpts > li")).to_have_count(25)
    assert page.url.endswith("#/neuron/0:0?tab=random")
    page.keyboard.press("s")
    page.get_by_label("Simulated by").select_option(index=2)
    expect(page.get_by_role("group", name="simulated, excerpt")).not_to_have_count(0)
    assert "by=" in page.url
    expect(page.get_by_label("Simulated by")).to_be_focused()
    page.get_by_label("Simulated by").select_option(label="the rule: 'cat'")
    simulated = page.get_by_role("group", name="simulated, excerpt").first
    expect(simulated.locator(".token[style]", has_text="cat").first).to_be_visible()
    check_accessible(page)

    page.get_by_role("tab", name="By quantile").click()
    page.keyboard.press("j")
    page.keyboard.press("ArrowRight")
    place = page.evaluate("document.activeElement.dataset.place")
    assert place == "1"
    expect(page.locator(".readout")).to_contain_text(page.locator(":focus").get_attribute("title"))

    page.get_by_text("Active on the same tokens").click()
    expect(page.get_by_text("Correlation over 1575 tokens")).to_be_visible()
    page.keyboard.press("n")
    expect(page.get_by_role("heading", level=1)).to_have_text("Neuron 0:1")
    expect(page.get_by_text("36 more", exact=True)).to_be_visible()
    expect(page.get_by_role("tab", name="By quantile")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("p")
    expect(page.get_by_role("heading", level=1)).to_have_text("Neuron 0:0")

    page.goto(f"{address}#/neuron/0:{planted.NEVER}")
    expect(page.get_by_text("a dead neuron")).to_be_visible()
    page.goto(f"{address}#/neuron/cat")
    expect(page.get_by_role("alert")).to_contain_text("does not name a neuron")


@pytest.fixture
def hostile(run: Run) -> Run:
    """The planted run, its words hostile ones, with an explanation as bad."""
    file = run.path / "excerpts.safetensors"
    content = load_file(file)
    words = [HOSTILE[n % len(HOSTILE)].encode() for n in range(planted.TOKENS)]
    content["vocabulary.bytes"] = np.frombuffer(b"".join(words), np.uint8)
    ends = np.cumsum([0, *map(len, words)])
    content["vocabulary.ends"] = ends.astype(content["vocabulary.ends"].dtype)
    save_file(content, file)
    manifest = {**run.manifest, "schema": 2}  # which had no hashes
    del manifest["files"]
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    made = open_run(run.path)
    store_lookup(made)
    with made.database() as database:
        database.add_explanations(
            [ExplanationRow(NeuronId(0, 0), "human", text, "1", text * 3) for text in HOSTILE]
        )
    return made


def test_entries_that_differ_in_spaces_look_different(
    run: Run, serve: Callable[..., str], open_page: Callable[..., Page]
) -> None:
    with run.database() as database:
        database.add_explanations(
            [
                ExplanationRow(NeuronId(0, 0), "human", str(spaces), "1", f"'{' ' * spaces}' 0.11")
                for spaces in (3, 7, 11)
            ]
        )
    page = open_page(f"{serve(run)}#/neuron/0:0")
    said = page.locator(".said > bdi")
    widths = said.evaluate_all("all => all.map(each => each.getBoundingClientRect().width)")
    assert len({round(width) for width in widths}) == 3


def test_lists_run_from_left_to_right_whatever_their_tokens(
    run: Run, serve: Callable[..., str], open_page: Callable[..., Page]
) -> None:
    neuron = NeuronId(0, 0)
    texts = {
        "list": "' ש'·לום 0.5, 'ע' 3; else 0",
        "rule": "'ש'; a digit after 'ע'",
        "said": "מילים בעברית",
    }
    with run.database() as database:
        database.add_explanations(
            [ExplanationRow(neuron, "human", name, "1", text) for name, text in texts.items()]
        )
        tokens = [Raised(7, " moon", 0.0123, 0.2)]
        database.add_steering(neuron, [Steering(10, 2.5, 1e-3, 4, tokens)])
    page = open_page(f"{serve(run)}#/neuron/0:0")
    for name, text in texts.items():
        said = page.locator(".said > bdi", has_text=text)
        expect(said).to_have_attribute("dir", "rtl" if name == "said" else "ltr")
    # Where the first token, its number and the second one begin, from the left.
    places = page.locator(".said > bdi", has_text="else").evaluate(
        """said => ["ש", "0.5", "ע", "3"].map((part) => {
            const walker = document.createTreeWalker(said, NodeFilter.SHOW_TEXT);
            while (walker.nextNode()) {
                const at = walker.currentNode.data.indexOf(part);
                if (at < 0) continue;
                const range = new Range();
                range.setStart(walker.currentNode, at);
                range.setEnd(walker.currentNode, at + part.length);
                return range.getBoundingClientRect().left;
            }
        })"""
    )
    assert places == sorted(places)
    steering = page.get_by_role("region", name="Steering")
    expect(steering.get_by_role("row").nth(1)).to_contain_text("' moon' +1.2%")


def test_hostile_text_is_text_and_fits_a_narrow_page(
    hostile: Run,
    serve: Callable[..., str],
    open_page: Callable[..., Page],
    check_accessible: Callable[[Page], None],
) -> None:
    address = serve(hostile)
    page = open_page(f"{address}#/neuron/0:0", viewport={"width": 390, "height": 800})
    page.keyboard.press("e")
    for tab in ("Top", "By quantile", "Random", "True and simulated"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for summary in page.locator("summary").all():
        if summary.is_visible():
            summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("main script, main img").count() == 0
    assert page.title() == "Neuron 0:0 · fastexplain"
    shown = page.locator("main").inner_text()
    assert HOSTILE[0] in shown and "\u202e" not in shown and "\x1b" not in shown
    check_accessible(page)


def test_screenshots_for_a_person_to_look_at(address: str, open_page: Callable[..., Page]) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for width in (390, 1440):
        for scheme in ("light", "dark"):
            page = open_page(
                f"{address}#/neuron/0:0?tab=simulated",
                viewport={"width": width, "height": 900},
                color_scheme=scheme,
            )
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            page.screenshot(path=SCREENSHOTS / f"neuron-{scheme}-{width}.png", full_page=True)
