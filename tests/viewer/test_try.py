"""A text or a list of one's own: what the server answers, and the page."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import planted
import pytest
from playwright.sync_api import Browser, Page, expect
from viewing import asking, post, serving

from fastexplain import Run
from fastexplain.errors import SubjectError, UsageError
from fastexplain.pipeline.activating import Ranker
from fastexplain.records import NeuronId
from fastexplain.results import ExplanationRow
from fastexplain.viewer.background import SECONDS, Background, OvertakenError
from fastexplain.viewer.guard import TOKEN_HEADER
from fastexplain.viewer.trying import MOST_CHARACTERS
from fastexplain.viewer.viewed import Beside, Viewed

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = "the river walks under the old tower and the cat sees a rare bird"
CAT = f"0:{planted.CAT}"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def background(planted_run: Run, clock: Clock) -> Background:
    """A subject that is loaded."""
    found = Background(Viewed(planted_run, "token"), clock)
    found._load()
    return found


def test_a_newer_text_of_a_page_overtakes_what_waits_and_what_runs(background: Background) -> None:
    """Two texts come while one runs: one of them is never run, and the running one is given up."""
    ended: queue.SimpleQueue[str] = queue.SimpleQueue()
    threads: list[threading.Thread] = []

    def wait() -> None:
        try:
            ended.put(background.run("page", lambda ranker, go_on: "ran"))
        except OvertakenError:
            ended.put("overtaken")

    def first(_: Ranker, go_on: Callable[[int], None]) -> None:
        threads.extend(threading.Thread(target=wait) for _ in range(2))
        for thread in threads:
            thread.start()
        assert ended.get(timeout=60) == "overtaken"
        assert ended.empty()  # no two at once
        go_on(1)

    with pytest.raises(OvertakenError):
        background.run("page", first)
    for thread in threads:
        thread.join()
    assert ended.get() == "ran"
    assert background.run("page", lambda ranker, go_on: go_on(1)) is None


def test_another_page_waits_its_turn(background: Background) -> None:
    ended: queue.SimpleQueue[str] = queue.SimpleQueue()
    other = threading.Thread(
        target=lambda: ended.put(background.run("other", lambda ranker, go_on: "ran"))
    )

    def first(_: Ranker, go_on: Callable[[int], None]) -> None:
        other.start()
        go_on(1)
        assert ended.empty()

    background.run("page", first)
    other.join()
    assert ended.get() == "ran"


def test_a_text_that_takes_too_long_is_given_up_and_the_next_one_runs(
    background: Background, clock: Clock
) -> None:
    def slow(_: Ranker, go_on: Callable[[int], None]) -> None:
        go_on(1)
        clock.now = SECONDS + 1
        go_on(2)

    with pytest.raises(UsageError, match="more than 30 seconds; shorten it"):
        background.run("page", slow)
    assert background.run("page", lambda ranker, go_on: "ran") == "ran"


def test_one_neuron_is_followed_as_all_are(planted_run: Run, background: Background) -> None:
    words = " ".join([TEXT] * 12)  # three excerpts
    ranker = background.run("page", lambda ranker, go_on: ranker)
    seen: list[int] = []
    tokens, values = ranker.follow(words, planted_run.neuron(CAT).id, seen.append)
    every = ranker.rank(words, [planted_run.neuron(CAT).id])
    assert tokens == every.tokens and seen[-1] == 3
    [other] = every.values.values()
    assert values.tolist()[1:] == pytest.approx(other.tolist()[1:]) and values[0] != values[0]


def test_a_subject_that_can_not_be_loaded_says_why_and_can_be_tried_again(
    planted_run: Run, tmp_path: Path
) -> None:
    found = Background(Viewed(planted_run, "token", Beside(subject=str(tmp_path / "gone"))))
    with pytest.raises(SubjectError, match="not loaded yet"):
        found.run("page", lambda ranker, go_on: None)
    for _ in range(2):
        found._load()
        state = found.state()
        assert state["state"] == "failed" and "can't be loaded" in state["error"]
        with pytest.raises(SubjectError, match="can't be loaded"):
            found.run("page", lambda ranker, go_on: None)


@pytest.fixture(scope="module")
def address(planted_run: Run) -> Iterator[str]:
    with serving(planted_run) as address:
        yield address


@pytest.fixture
def ask(address: str) -> Callable[..., httpx.Response]:
    token = httpx.get(f"{address}api/run").json()["token"]

    def asked(path: str, body: Any, **changes: str) -> httpx.Response:
        content = json.dumps(body).encode()  # httpx's own takes no halves of characters
        headers = {"Origin": address.rstrip("/"), TOKEN_HEADER: token} | changes
        headers["Content-Type"] = "application/json"
        return httpx.post(f"{address}api/{path}", content=content, headers=headers, timeout=60)

    return asked


def loaded(address: str, ask: Callable[..., httpx.Response]) -> None:
    """Have the subject loaded."""
    ask("subject", {})
    while httpx.get(f"{address}api/subject").json()["state"] == "loading":
        pass
    assert httpx.get(f"{address}api/subject").json()["state"] == "ready"


def test_texts_are_run_and_bounded(address: str, ask: Callable[..., httpx.Response]) -> None:
    loaded(address, ask)
    body = {"text": TEXT, "page": "p"}
    found = ask("try", body | {"neuron": CAT}).json()
    assert found["values"][0] is None and found["counted"] == 1
    best = max(range(1, len(found["tokens"])), key=lambda place: found["values"][place])
    assert found["tokens"][best] == "cat" and 0 < found["values"][best] <= found["highest"] * 1.01
    every = ask("try", body).json()
    assert every["over_text"][0]["neuron"] == f"0:{planted.RARE}"
    assert len(every["by_token"]) == len(every["tokens"])
    assert ask("try", body, Origin="http://evil.example").status_code == 403
    refused = ask("try", body, **{TOKEN_HEADER: "guess"})
    assert refused.status_code == 403 and refused.json()["renew"]
    for wrong, line in (
        ({"text": "a " * MOST_CHARACTERS}, "give 4,000 at most"),
        ({"text": " "}, "has no text; type some"),
        ({"text": 5}, "has no text; type some"),
        ({"text": "the"}, "give a longer one"),
        ({"neuron": "0:999"}, "there is no neuron 0:999"),
        ({"neuron": 7}, "name a neuron"),
        ({"page": None}, "`page` is a name"),
    ):
        answer = ask("try", body | wrong)
        assert answer.status_code == 400 and line in answer.json()["error"], wrong
    assert ask("try", body | {"text": "cat \ud800 cat", "neuron": CAT}).status_code == 200


def test_a_neuron_is_followed_on_an_excerpt_of_the_run(
    address: str, ask: Callable[..., httpx.Response], planted_run: Run
) -> None:
    loaded(address, ask)
    exemplar = planted_run.neuron(CAT).random[3]
    body = {"excerpt": exemplar.excerpt, "page": "p", "neuron": CAT}
    found = ask("try", body).json()
    assert found["tokens"] == exemplar.tokens and found["values"][0] is None
    np.testing.assert_allclose(found["values"][1:], exemplar.activations[1:], rtol=1e-3, atol=1e-5)
    for wrong, line in (
        ({"excerpt": 400}, "a number from 0 to 399"),
        ({"excerpt": -1}, "a number from 0 to 399"),
        ({"excerpt": True}, "a number from 0 to 399"),
        ({"neuron": None}, "name the `neuron`"),
    ):
        answer = ask("try", body | wrong)
        assert answer.status_code == 400 and line in answer.json()["error"], wrong


def test_a_text_has_the_subject_loaded(planted_run: Run) -> None:
    with serving(planted_run) as address:
        ask = asking(address)
        body = {"text": TEXT, "page": "p", "neuron": CAT}
        assert ask("try", body)["state"] == "loading"
        while (found := ask("try", body)).get("state") == "loading":
            pass
        assert found["neuron"] == CAT


def test_a_list_that_is_typed_has_the_scores_that_it_has_as_an_explanation(run: Run) -> None:
    from fastexplain.explainers.lookup import store_lookup

    store_lookup(run)
    with run.database(read_only=True) as database:
        [row] = database.explanations(run.neuron(CAT).id)
    found = post(run, "simulate", {"neuron": CAT, "explanation": row.text})
    scores = {each["split"]: each["value"] for each in found["scores"]}
    assert scores["top_and_random"] == pytest.approx(row.text_scores.top_and_random)
    assert scores["random_only"] == pytest.approx(row.text_scores.random_only)
    assert found["explanations"][0]["explanation"] == row.text == found["text"]
    wrong = post(run, "simulate", {"neuron": CAT, "explanation": "'moon' 1"})
    assert {each["split"]: each["value"] for each in wrong["scores"]}["top_and_random"] < 0.2
    refused = post(run, "simulate", {"neuron": CAT, "explanation": "cats"}, status=400)
    assert "write a list such as" in refused["error"]


@pytest.mark.browser
def test_a_key_word_that_is_typed_fires_its_neuron(
    address: str, open_page: Callable[..., Page], check_accessible: Callable[[Page], None]
) -> None:
    page = open_page(f"{address}#/try?neuron={CAT}&text=the+old")
    expect(page.locator(".try-shown .token")).to_have_count(2, timeout=30_000)
    page.get_by_label("Text, up to").press("End")
    page.keyboard.type(" cat sees")
    cat = page.locator(".try-shown .token", has_text="cat")
    expect(cat).to_have_attribute("style", "--share: 1.000;")
    expect(page.locator(".try-shown .token", has_text="old")).not_to_have_attribute("style", "")
    assert "text=the+old+cat+sees" in page.url
    page.get_by_label("Tokens and their mean activations").fill("'cat' 3; else 0")
    page.get_by_role("button", name="Simulate and score").click()
    expect(page.get_by_role("row", name="your list")).to_contain_text("1 (")
    missed = page.get_by_role("group", name="too much, too little, top excerpt").first
    expect(missed.locator(".token.below", has_text="cat").first).to_be_visible()  # 3 is too little

    # The form is there as soon as a neuron is named, with what was typed.
    page.get_by_label("Neuron", exact=True).fill("0:11")
    expect(page.get_by_role("heading", level=2).last).to_have_text("A list of your own for 0:11")
    expect(page.get_by_label("Tokens and their mean activations")).to_have_value("'cat' 3; else 0")
    page.get_by_label("Neuron", exact=True).fill("")
    expect(page.get_by_role("heading", level=2)).to_have_count(0)
    over = page.get_by_role("table", name="Over the text")
    expect(over.get_by_role("row").nth(1)).to_contain_text("cat")
    page.locator(".try-shown .token").nth(1).click()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("table", name="At 'cat'")).to_contain_text(CAT)
    assert "at=2" in page.url
    check_accessible(page)
    page.reload()
    expect(page.get_by_role("table", name="At 'cat'")).to_contain_text(CAT)
    page.locator(".try-shown .token").first.focus()
    assert "at=0" in page.url
    page.reload()
    chosen = page.locator(".try-shown .token").first
    expect(chosen).to_have_attribute("aria-current", "true", timeout=30_000)


@pytest.mark.browser
def test_a_text_that_runs_is_said_to(address: str, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{address}#/try?neuron={CAT}")
    state = page.locator(".try-state").first
    expect(state).to_have_text("Type a text.", timeout=30_000)
    page.route("**/api/try", lambda route: None)  # it is never answered
    page.get_by_label("Text, up to").fill("the old cat")
    expect(state).to_have_text("Running…")


@pytest.mark.browser
def test_ranked_neurons_stand_beside_their_explanations(
    run: Run, serve: Callable[..., str], open_page: Callable[..., Page]
) -> None:
    with run.database() as database:
        database.add_explanations(
            [ExplanationRow(NeuronId.parse(CAT), "human", "h", "1", "<b>where cats are</b>")]
        )
    page = open_page(f"{serve(run)}#/try?text=the+old+cat&at=2")
    here = page.get_by_role("table", name="At 'cat'")
    row = here.get_by_role("row").filter(has=page.get_by_role("link", name=CAT, exact=True))
    expect(row).to_contain_text("<b>where cats are</b>", timeout=30_000)
    over = page.get_by_role("table", name="Over the text")
    expect(over).to_contain_text("<b>where cats are</b>")


@pytest.mark.browser
def test_what_is_typed_wrongly_is_said_in_a_line(address: str, browser: Browser) -> None:
    # Not by `open_page`: the browser itself writes refusals to the console.
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{address}#/try?neuron={CAT}&text=cat")
        expect(page.locator(".try-state.failure")).to_contain_text("longer one", timeout=30_000)
        page.get_by_label("Tokens and their mean activations").fill("<script>alert(1)</script>")
        page.get_by_role("button", name="Simulate and score").click()
        expect(page.get_by_role("alert")).to_contain_text("an entry is expected at '<script>")
        page.get_by_label("Neuron", exact=True).fill("9:1")
        expect(page.locator(".try-state")).to_contain_text("layer 9 was not swept")


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 390)])
def test_it_fits(address: str, open_page: Callable[..., Page], scheme: str, width: int) -> None:
    page = open_page(
        f"{address}#/try?text={TEXT.replace(' ', '+')}",
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
    )
    expect(page.get_by_role("table", name="Over the text")).to_be_visible(timeout=30_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=ROOT / ".cache" / "screenshots" / f"try-{scheme}-{width}.png")


@pytest.mark.browser
def test_the_page_says_why_a_subject_can_not_be_loaded(
    planted_run: Run, tmp_path: Path, serve: Callable[..., str], open_page: Callable[..., Page]
) -> None:
    address = serve(planted_run, Beside(subject=str(tmp_path / "gone")))
    page = open_page(f"{address}#/try?text=cat")
    expect(page.locator(".try-state.failure")).to_contain_text("can't be loaded")
