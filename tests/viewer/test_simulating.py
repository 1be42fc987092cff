"""Typed explanations that a model simulates: scores, cost, limits, and pages that leave."""

from __future__ import annotations

import gc
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import planted
import pytest
from knowing_server import Knowing
from playwright.sync_api import Browser, Page, expect
from viewing import asking, serving

import fastexplain
from fastexplain import Model, Price, Run
from fastexplain.errors import LLMError, RunError, UsageError
from fastexplain.explainers.lookup import store_lookup
from fastexplain.pipeline.models import Settings
from fastexplain.pipeline.scoring import score
from fastexplain.viewer import simulating
from fastexplain.viewer.simulating import LEASE, MOST, Simulations, without_simulator
from fastexplain.viewer.viewed import Beside

CAT = f"0:{planted.CAT}"
HOSTILE = "<script>alert(1)</script> cat river"
SCREENSHOTS = Path(__file__).parents[2] / ".cache" / "screenshots"
WRITTEN = "the cat, and the river"


class Stepping(Knowing):
    """Does something when it is asked to simulate, before it answers."""

    step: Callable[[], None] = staticmethod(lambda: None)

    def _said(self, request: dict[str, Any], form: str | None) -> str:
        if "The neuron reacts to" in request["messages"][-1]["content"]:
            self.step()
        return str(super()._said(request, form))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stepping]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    served = Stepping(lambda asked, seed: f"This neuron reacts to {WRITTEN}.")
    yield served
    served.close()


@pytest.fixture
def made(run: Run, server: Stepping) -> Iterator[Callable[..., Simulations]]:
    """Makes simulations by the server's model, which are closed in the end."""
    opened: list[Simulations] = []

    def make(clock: Callable[[], float] | None = None, **changes: Any) -> Simulations:
        opened.append(Simulations(run, settings(server, **changes), clock or Clock()))
        return opened[-1]

    yield make
    server.step = lambda: None
    for each in opened:
        each.close()


def settings(
    server: Knowing, *, url: str | None = None, limits: Any = None, **more: Any
) -> Settings:
    model = Model("m", url or server.url, price=more.pop("price", Price(1.0, 1.0, 1.0)))
    return Settings(model, model, "json", limits=limits or {}, **more)


def tried(simulations: Simulations, run: Run, text: str) -> dict[str, Any]:
    """Ask as a page does, until all is done."""
    while "scores" not in (found := simulations.ask(run.neuron(CAT).id, text)):
        assert found["done"] <= found["of"] == 10
    return found


def test_a_typed_explanation_has_the_score_that_it_has_as_a_stored_one(
    run: Run, server: Stepping, made: Callable[..., Simulations]
) -> None:
    """Typed before `explain` writes the same: neither asks what the other has asked."""
    simulations = made(max_cost=1.0)
    neuron = run.neuron(CAT).id
    before = simulations.estimate(neuron, WRITTEN)
    assert before["requests"] == 10 and before["left"] == 1 and before["spent"] == 0
    mine = tried(simulations, run, WRITTEN)
    assert 0 < mine["cost"] <= before["cost"] and mine["answered"] == 10
    assert mine["spent"] == pytest.approx(mine["cost"]) and mine["left"] == 1 - mine["spent"]
    assert server.simulated() == [WRITTEN] * 10
    with run.database(read_only=True) as database:
        assert database.explanations(neuron) == []

    model = Model("m", server.url)
    fastexplain.explain(run, CAT, explainer=model, simulation="json")
    assert len(server.simulated()) == 10
    score(run, [CAT])
    with run.database(read_only=True) as database:
        [row] = database.explanations(neuron)
        stored = [each for each in database.scores(row.id) if each.scorer == "correlation"]
        values = database.simulated(row.id, row.simulator, row.simulation)
    assert row.text == WRITTEN and 0.3 < row.scores.top_and_random < 0.999
    assert mine["scores"] == [each.measured._asdict() for each in stored]
    simulation = mine["simulation"]
    assert (simulation["simulator"], simulation["version"]) == (row.simulator, row.simulation)
    for excerpt, own in simulation["values"].items():
        assert own == [None, *values[int(excerpt)][1:].tolist()]

    again = tried(simulations, run, WRITTEN)
    assert again["scores"] == mine["scores"] and again["explanations"][0]["explanation"] == WRITTEN
    assert again["answered"] == again["cost"] == 0 and again["spent"] == mine["spent"]
    assert simulations.estimate(neuron, WRITTEN)["requests"] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priorities")
def test_it_gives_way_to_pages(run: Run, made: Callable[..., Simulations]) -> None:
    tried(made(), run, "cat")
    [thread] = [each for each in threading.enumerate() if each.name == "simulator"]
    assert thread.native_id is not None
    assert os.getpriority(os.PRIO_PROCESS, thread.native_id) >= 10


def test_what_is_stored_needs_neither_server_nor_budget(
    run: Run, server: Stepping, made: Callable[..., Simulations]
) -> None:
    mine = tried(made(), run, "cat")
    sent, server.status = len(server.requests), 503
    assert tried(made(max_cost=0.0), run, "cat")["scores"] == mine["scores"]
    assert len(server.requests) == sent


def test_asked_for_twice_it_is_simulated_once(
    run: Run, server: Stepping, made: Callable[..., Simulations]
) -> None:
    go_on = threading.Event()
    server.step = lambda: assert_(go_on.wait(60))
    simulations, found = made(), []
    pages = [
        threading.Thread(target=lambda: found.append(tried(simulations, run, "cat")))
        for _ in range(3)
    ]
    for page in pages:
        page.start()
    assert simulations.ask(run.neuron(CAT).id, "cat")["done"] == 0
    go_on.set()
    for page in pages:
        page.join()
    assert len(found) == 3 and found[0]["scores"] == found[1]["scores"] == found[2]["scores"]
    assert server.simulated() == ["cat"] * 10


def assert_(condition: object) -> None:
    assert condition


def test_when_all_pages_have_left_no_more_is_sent_and_a_new_one_goes_on_from_there(
    run: Run, server: Stepping, made: Callable[..., Simulations]
) -> None:
    clock = Clock()
    simulations = made(clock, limits={"concurrency": 1})

    def leave_at_the_third() -> None:
        if len(server.simulated()) == 3:
            clock.now += LEASE + 1

    server.step = leave_at_the_third
    assert "scores" not in simulations.ask(run.neuron(CAT).id, "cat")
    simulations.close()  # when what was sent is answered
    assert len(server.simulated()) == 3
    server.step = lambda: None
    found = tried(made(clock), run, "cat")
    assert found["answered"] == 7 and len(server.simulated()) == 10


@pytest.mark.parametrize("loading", [False, True])
def test_what_takes_too_long_at_the_end_leaves_no_word_behind(
    run: Run,
    server: Stepping,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    loading: bool,
) -> None:
    monkeypatch.setattr(simulating, "_AT_END", 0.5)
    go_on, held, reach = threading.Event(), threading.Event(), simulating.reach

    def hold() -> None:
        held.set()
        go_on.wait(60)

    def load(*given: Any) -> Any:  # as a model in this process is, with the loop standing still
        hold()
        return reach(*given)

    if loading:
        monkeypatch.setattr(simulating, "reach", load)
    else:
        server.step = hold
    simulations = Simulations(run, settings(server), Clock())
    assert simulations.ask(run.neuron(CAT).id, "cat")["done"] == 0
    assert held.wait(60)
    [thread] = [each for each in threading.enumerate() if each.name == "simulator"]
    simulations.close()
    go_on.set()
    thread.join(60)
    assert not thread.is_alive()
    del simulations
    gc.collect()  # a task that is forgotten says so
    assert caplog.messages == []


def test_some_at_once_are_enough(
    run: Run, server: Stepping, made: Callable[..., Simulations]
) -> None:
    go_on, clock = threading.Event(), Clock()
    server.step = lambda: assert_(go_on.wait(60))
    simulations, neuron = made(clock), run.neuron(CAT).id
    for number in range(MOST):
        simulations._under_way((neuron, f"cat {number}"), begin=True)
    with pytest.raises(UsageError, match="4 explanations are being simulated; wait"):
        simulations.ask(neuron, "cat")
    clock.now += LEASE + 1  # those pages have left
    go_on.set()
    assert tried(simulations, run, "cat")["answered"] == 10


def test_limits_and_failures_are_said_in_a_line(
    run: Run, server: Stepping, made: Callable[..., Simulations], monkeypatch: pytest.MonkeyPatch
) -> None:
    neuron = run.neuron(CAT).id
    for changes, line in (
        ({"max_cost": 0.0001}, r"may cost \$0\.0\d+, and of --max-cost \$0\.00010 are left; start"),
        ({"max_requests": 3}, "stopped after 3 requests; --max-requests"),
        ({"url": "http://127.0.0.1:9/v1"}, "no server answers at http://127.0.0.1:9/v1; is it"),
    ):
        with pytest.raises(LLMError, match=line):
            tried(made(**changes), run, "river stone")
    assert len(server.simulated()) == 3
    server.status, server.body = 401, {"error": {"message": "no"}}
    with pytest.raises(LLMError, match=r"wants a key: no \(status 401\); set OPENAI_API_KEY"):
        tried(made(), run, "moon")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    hosted = Model("gpt-4o-mini")
    simulations = Simulations(run, Settings(hosted, hosted, "json"), Clock())
    assert simulations.estimate(neuron, "moon")["requests"] == 10
    with pytest.raises(LLMError, match="no server to ask: set OPENAI_API_KEY for OpenAI"):
        tried(simulations, run, "moon")
    simulations.close()


def test_a_run_that_can_not_be_written_is_named(
    run: Run, server: Stepping, made: Callable[..., Simulations], monkeypatch: pytest.MonkeyPatch
) -> None:
    simulations, opening = made(), Run.database

    def database(self: Run, *, read_only: bool = False) -> Any:
        if not read_only:
            raise RunError("the database can't be written")
        return opening(self, read_only=True)

    monkeypatch.setattr(Run, "database", database)
    with pytest.raises(RunError, match="can't be written"):
        tried(simulations, run, "cat")
    monkeypatch.undo()
    assert tried(simulations, run, "cat")["answered"] == 10


def test_the_price_may_be_unknown_unless_there_is_a_limit(run: Run) -> None:
    model = Model("m", "http://far.example/v1")
    with pytest.raises(UsageError, match="the price of 'm' is not known, so `max_cost`"):
        Simulations(run, Settings(model, model, max_cost=1.0))
    with pytest.raises(UsageError, match="there is no simulation 'guess'"):
        Simulations(run, Settings(model, model, "guess"))
    simulations = Simulations(run, Settings(model, model))
    found = simulations.estimate(run.neuron(CAT).id, "cat")
    assert found["cost"] is None and found["left"] is None


def test_without_a_simulator_the_page_is_told_how_to_have_one(run: Run, server: Stepping) -> None:
    assert without_simulator(run)["start"] == f"fastexplain view {run.path} --simulator MODEL"
    with serving(run) as address:
        ask = asking(address)
        assert ask("simulator")["model"] is None
        for path in ("simulate/cost", "simulate/model"):
            line = ask(path, {"neuron": CAT, "explanation": "cat"}, status=400)["error"]
            assert "start it as: fastexplain view RUN --simulator MODEL" in line
    fastexplain.explain(run, CAT, explainer=Model("m", server.url), simulation="json")
    last = without_simulator(run)["start"]
    assert last == f"fastexplain view {run.path} --simulator m --base-url {server.url}"


def test_the_server_answers_as_long_as_it_is_asked(run: Run, server: Stepping) -> None:
    with serving(run, Beside(simulator=settings(server, max_cost=1.0))) as address:
        ask = asking(address)
        assert ask("simulator") == {"model": "m", "max_cost": 1.0, "left": 1.0, "spent": 0.0}
        body = {"neuron": CAT, "explanation": "cat"}
        assert ask("simulate/cost", body)["requests"] == 10
        while "scores" not in (found := ask("simulate/model", body)):
            pass
        both = next(each for each in found["scores"] if each["split"] == "top_and_random")
        assert both["value"] == pytest.approx(1, abs=1e-6) and both["low"] <= both["value"]
        assert ask("simulator")["spent"] == found["spent"] > 0
        for wrong, line in (
            ({"neuron": "9:1"}, "layer 9 was not swept"),
            ({"explanation": " "}, "has no text"),
            ({"explanation": "x" * 4001}, "give 4,000 at most"),
        ):
            for path in ("simulate/cost", "simulate/model"):
                assert line in ask(path, body | wrong, status=400)["error"]


@pytest.mark.browser
def test_a_person_types_an_explanation_and_sees_cost_score_and_excerpts(
    run: Run,
    server: Stepping,
    serve: Callable[..., str],
    open_page: Callable[..., Page],
    check_accessible: Callable[[Page], None],
) -> None:
    store_lookup(run)
    address = serve(run, Beside(simulator=settings(server, max_cost=1.0)))
    page = open_page(f"{address}#/try?neuron={CAT}&text=the+old&explanation=the+cat")
    cost = page.locator("#own-cost")
    expect(cost).to_have_text(
        re.compile(r"up to 10 requests and costs at most \$0\.0\d+\. Of --max")
    )
    said = page.get_by_label("What it reacts to")
    said.fill(HOSTILE)
    assert server.simulated() == []

    go_on = threading.Event()
    server.step = lambda: assert_(go_on.wait(60))
    simulate = page.get_by_role("button", name="Simulate by m and score")
    simulate.dblclick()
    expect(simulate).to_be_disabled()
    expect(cost).to_have_text("Simulating by m: 0 of 10 excerpts.")
    page.get_by_label("Text, up to").fill("the old cat")  # the page goes on
    expect(page.locator(".try-shown .token")).to_have_count(3, timeout=30_000)
    page.get_by_role("button", name="Stop").click()
    expect(cost).to_contain_text("Stopped; what was answered is stored")
    simulate.click()
    expect(cost).to_have_text("Simulating by m: 0 of 10 excerpts.")
    go_on.set()
    expect(cost).to_have_text(
        re.compile(r"^It took 10 requests and cost \$0\.0\d+\. Of --max-cost")
    )
    row = page.get_by_role("row", name="your explanation")
    expect(row).to_have_text(re.compile(r"^your explanation0\.\d+ \(-?0\.\d+ to 0\.\d+\)"))
    expect(page.get_by_role("row", name="lookup's text")).to_be_visible()
    expect(row).to_contain_text(HOSTILE)
    expect(page.get_by_role("group", name="simulated, excerpt")).to_have_count(10)
    cat = page.get_by_role("group", name="simulated, excerpt").first.locator(
        ".token", has_text="cat"
    )
    expect(cat.first).to_have_attribute("style", "--share: 1.000;")
    assert len(server.simulated()) == 10

    page.reload()
    expect(said).to_have_value(HOSTILE)
    expect(cost).to_contain_text("All answers to it are stored: it costs nothing.")
    check_accessible(page)  # the excerpts are a neuron's page's
    simulate.click()
    expect(cost).to_contain_text("All answers to it were stored: it cost nothing.")
    assert len(server.simulated()) == 10
    for scheme, width in (("light", 1440), ("dark", 390), ("dark", 1440), ("light", 390)):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(path=SCREENSHOTS / f"typed-{scheme}-{width}.png", full_page=True)


@pytest.mark.browser
def test_what_can_not_be_simulated_is_said_in_a_line(
    run: Run, server: Stepping, serve: Callable[..., str], browser: Browser
) -> None:
    # Not by `open_page`: the browser itself writes refusals to the console.
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{serve(run, Beside(simulator=settings(server, max_cost=0.0001)))}#/try")
        page.get_by_label("Neuron", exact=True).fill(CAT)
        page.get_by_label("Neuron", exact=True).blur()
        page.get_by_label("What it reacts to").fill("cat")
        page.get_by_role("button", name="Simulate by m and score").click()
        expect(page.locator("#own-cost")).to_contain_text("of --max-cost $0.00010 are left; start")
        assert server.simulated() == []
        page.goto(f"{serve(run)}#/try?neuron={CAT}")
        expect(page.get_by_text("simulated by a language model, start the viewer")).to_contain_text(
            f"fastexplain view {run.path} --simulator MODEL"
        )
