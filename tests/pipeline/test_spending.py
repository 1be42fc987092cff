"""Spending where it pays: the order of neurons, what limits allow for, and where a call stops."""

import json

import numpy as np
import planted
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastexplain
from fastexplain.cli.terminal import out as console
from fastexplain.errors import BudgetError, UsageError
from fastexplain.ledger.budget import Budget, Share
from fastexplain.pipeline.models import Model, Settings
from fastexplain.pipeline.spending import Plan, plan
from fastexplain.records import NeuronId
from fastexplain.results import ExplanationRow, Scores
from fastexplain.run.selection import select_neurons

ALL = [NeuronId(0, index) for index in range(planted.NEURONS)]


@pytest.fixture
def explained(run):
    """A run of which all neurons are explained by lookup."""
    fastexplain.explain(run, "all")
    return run


def add_model_scores(run, score_of):
    """Have a language model's explanations of these scores stored."""
    lookup = run.table()["lookup_top_and_random"]
    rows = [
        ExplanationRow(neuron, "model", "m", "1", "words", scores=Scores(0.1, score, 0.1, 5, 5))
        for neuron in ALL
        if (score := score_of(neuron, lookup[neuron.index])) is not None
    ]
    with run.database() as database:
        database.add_explanations(rows)


def test_first_come_neurons_that_matter_and_that_lookup_does_not_explain(explained):
    found = plan(explained, ALL)
    table = explained.table()
    for neuron, gain, lookup in zip(found.neurons, found.gains, found.lookup, strict=True):
        score = np.nan_to_num(table["lookup_top_and_random"][neuron.index])
        assert lookup == score and 0 < gain <= 1 - max(score, 0)
    assert (np.diff(found.gains) <= 0).all()
    # It is active everywhere alike, which no correlation tells.
    assert found.neurons[0] == NeuronId(0, planted.ALWAYS)
    never = {NeuronId(0, index) for index in range(planted.NEVER, planted.NEURONS)}
    assert never.isdisjoint(found.neurons) and found.without >= len(never)
    assert len(found.neurons) + found.without == len(ALL) and found.learned == 0
    # Of some of the neurons it is the same order.
    some = plan(explained, ALL[:4]).neurons
    assert some == [neuron for neuron in found.neurons if neuron in ALL[:4]]


def test_what_was_explained_tells_what_to_expect(explained):
    add_model_scores(explained, lambda neuron, lookup: 0.3)  # whatever the lookup's score
    found = plan(explained, ALL)
    assert found.learned == planted.NEURONS
    assert found.neurons and (found.lookup < 0.3).all()
    assert NeuronId(0, planted.CAT) not in found.neurons  # its lookup is better than that


def test_few_explained_neurons_tell_nothing(explained):
    before = plan(explained, ALL)
    add_model_scores(explained, lambda neuron, lookup: 0.3 if neuron.index < 29 else None)
    assert plan(explained, ALL).neurons == before.neurons


def test_nothing_to_gain_and_nothing_known_are_said(explained, planted_run):
    with pytest.raises(UsageError, match="nothing is expected to be gained from any of 2 neurons"):
        plan(explained, ALL[-2:])
    with pytest.raises(UsageError, match="first run: fastexplain explain"):
        plan(planted_run, ALL)


@settings(max_examples=50)
@given(
    st.integers(1, 500),
    st.floats(0, 100) | st.none(),
    st.integers(0, 10_000) | st.none(),
    st.floats(0, 50),
    st.integers(0, 10_000),
    st.booleans(),
)
def test_the_plan_keeps_to_the_limits(count, max_cost, max_requests, cost, requests, priced):
    gains = np.linspace(1, 0.1, count)
    settings = Settings(Model("m"), Model("m"), max_cost=max_cost, max_requests=max_requests)
    total = Share(requests, 0, 0, cost, 0 if priced else 1)
    made = Plan([NeuronId(0, i) for i in range(count)], gains, 1 - gains, 3, 0)
    found = made.afforded(settings, total)
    own, rest = found.explained, found.left
    assert own.neurons + rest.neurons == count
    assert own.gain + rest.gain == pytest.approx(gains.sum())
    if max_requests is not None and requests:
        assert own.neurons * requests / count <= max_requests + 1e-6
    if priced and max_cost is not None and cost:
        assert own.cost <= max_cost + 1e-9
    assert (own.cost is None) == (not priced)
    if own.neurons and rest.neurons:
        assert own.least >= rest.most
    if max_cost is None and max_requests is None:
        assert own.neurons == count


def test_time_is_a_limit_too():
    budget = Budget(None, None, max_minutes=0)
    with pytest.raises(BudgetError, match=r"stopped after 0 minutes; `max_minutes`"):
        budget.reserve(0.0)
    Budget(None, None, max_minutes=60).reserve(0.0)
    with pytest.raises(UsageError, match="`max_minutes` is -1"):
        Budget(None, None, max_minutes=-1)


# As its user meets it


@pytest.fixture
def explain(cli, explained, server):
    def call(*arguments):
        options = ["--explainer", "m", "--base-url", server.url, "--by-need", "--yes"]
        return cli("explain", explained.path, "all", *arguments, *options)

    return call


def test_a_limit_is_spent_on_the_first_ones(explain, explained):
    order = plan(explained, select_neurons(explained, ["all"])).neurons
    assert len(order) > 2
    code, _, err = explain("--max-requests", "22", "--concurrency", "1")
    assert code == 1 and "--max-requests" in err
    with explained.database(read_only=True) as database:
        done = [
            neuron
            for neuron in ALL
            if any(row.method == "model" for row in database.explanations(neuron))
        ]
    assert sorted(done) == sorted(order[:2])  # eleven requests each


def test_the_plan_is_shown_without_a_request(explain, server, monkeypatch):
    code, out, err = explain("--dry-run", "--max-requests", "22", "--price", "1,1", "--json")
    assert code == 0 and server.requests == [], err
    found = json.loads(out.splitlines()[-1])
    spending = found["plan"]
    assert spending["explained"]["neurons"] == 2 and spending["explained"]["requests"] == 22
    assert spending["left"]["neurons"] == found["requests"] // 11 - 2
    assert spending["explained"]["least"] >= spending["left"]["most"]
    monkeypatch.setattr(console, "_width", 160)
    code, out, _ = explain("--dry-run", "--max-requests", "22")
    assert code == 0 and "within the limits" in out and "beyond" in out
    monkeypatch.setattr(console, "_width", 80)
    code, out, _ = explain("--dry-run", "--max-requests", "22")
    assert code == 0 and "│ within the " in out and "│ limits " in out and "…" not in out


def test_minutes_stop_the_command(explain, server):
    code, _, err = explain("--max-minutes", "0")
    assert code == 1 and "stopped after 0 minutes; --max-minutes" in err
    assert all(body.get("max_tokens") != 60 for _, body, _ in server.requests)
