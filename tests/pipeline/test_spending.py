"""Spending where it pays: the order of neurons, what limits allow for, and where a call stops."""

import itertools
import json
import shutil
from datetime import UTC, datetime, timedelta

import numpy as np
import planted
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastexplain
from fastexplain.cli.terminal import out as console
from fastexplain.errors import BudgetError, UsageError
from fastexplain.ledger.budget import Budget, Share
from fastexplain.ledger.responses import Responses
from fastexplain.ledger.speed import requests_a_minute
from fastexplain.llm.requests import Answer
from fastexplain.pipeline.models import Model, Settings
from fastexplain.pipeline.spending import Plan, plan
from fastexplain.records import NeuronId
from fastexplain.results import ExplanationRow, Scores
from fastexplain.run.selection import select_neurons
from fastexplain.run.weights import stored_weights

ALL = [NeuronId(0, index) for index in range(planted.NEURONS)]


@pytest.fixture
def explained(run):
    """A run of which all neurons are explained by lookup."""
    fastexplain.explain(run, "all")
    return run


def add_model_scores(run, score_of, neurons=ALL):
    """Have a language model's explanations of these scores stored."""
    lookup = run.table()["lookup_top_and_random"]
    rows = [
        ExplanationRow(neuron, "model", "m", "1", "words", scores=Scores(0.1, score, 0.1, 5, 5))
        for place, neuron in enumerate(neurons)
        if (score := score_of(neuron, lookup[place])) is not None
    ]
    with run.database() as database:
        database.add_explanations(rows)


def test_first_come_neurons_that_matter_and_that_lookup_does_not_explain(explained):
    found = plan(explained, ALL)
    table = explained.table()
    scores = table["lookup_top_and_random"]
    for neuron, gain, lookup in zip(found.neurons, found.gains, found.lookup, strict=True):
        np.testing.assert_equal(lookup, scores[neuron.index])
        assert 0 < gain <= 1 - max(np.nan_to_num(lookup), 0)
    assert (np.diff(found.gains) <= 0).all()
    # It is active everywhere alike: there is nothing that an explanation could predict.
    always = NeuronId(0, planted.ALWAYS)
    assert table["mean"][planted.ALWAYS] == table["mean"].max()
    assert np.isnan(scores[planted.ALWAYS]) and always not in found.neurons
    never = {NeuronId(0, index) for index in range(planted.NEVER, planted.NEURONS)}
    assert never.isdisjoint(found.neurons) and found.without >= len(never)
    assert len(found.neurons) + found.without == len(ALL) and found.learned == 0
    # Of some of the neurons it is the same order.
    some = plan(explained, ALL[:4]).neurons
    assert some == [neuron for neuron in found.neurons if neuron in ALL[:4]]


@pytest.fixture(scope="module")
def drawn(make_model, make_tokenizer, tmp_path_factory):
    """A run of a subject of random weights, of which lookup explains some neurons badly."""
    place = tmp_path_factory.mktemp("drawn")
    subject = fastexplain.Subject.from_model(make_model(), make_tokenizer(), name="drawn")
    tokens = np.random.default_rng(0).integers(1, 257, (200, 64)).astype(np.int32)
    corpus = fastexplain.Corpus.from_excerpts(tokens)
    run = fastexplain.sweep(subject, corpus, place / "run", layers=[0, 2])
    fastexplain.explain(run, "all")
    return run, subject


@pytest.fixture
def copied(drawn, tmp_path):
    return fastexplain.open_run(shutil.copytree(drawn[0].path, tmp_path / "run")), drawn[1]


def test_what_was_explained_tells_what_to_expect(copied):
    run, _ = copied
    neurons = select_neurons(run, ["all"])
    lookup = run.table()["lookup_top_and_random"]
    middle = float(np.nanmedian(lookup))
    add_model_scores(run, lambda neuron, lookup: middle, neurons)  # whatever the lookup's score
    found = plan(run, neurons)
    assert found.learned == found.known == len(neurons)
    assert found.neurons and (np.nan_to_num(found.lookup) < middle).all()
    assert found.without >= (lookup > middle).sum() > 0


def test_what_a_neuron_adds_to_the_logits_tells_how_much_it_matters(copied):
    run, subject = copied
    neurons = select_neurons(run, ["all"])
    assert not plan(run, neurons).by_output
    fastexplain.weights(run, subject=subject)
    found = plan(run, neurons)
    table = run.table()
    size = np.sqrt(table["variance"])
    for layer in run.layers:
        own = table["layer"] == layer
        size[own] *= stored_weights(run).file(layer).read("output.spread", (slice(None),))
        size[own] /= size[own] + size[own].mean()
    gains = (1 - np.maximum(np.nan_to_num(table["lookup_top_and_random"]), 0)) * size
    assert found.by_output and len(found.neurons) > 50
    places = [neurons.index(neuron) for neuron in found.neurons]
    np.testing.assert_allclose(found.gains, gains[places], rtol=1e-5)


def test_few_explained_neurons_tell_nothing(explained):
    before = plan(explained, ALL)
    add_model_scores(explained, lambda neuron, lookup: 0.3 if neuron.index < 29 else None)
    found = plan(explained, ALL)
    assert found.neurons == before.neurons and (found.learned, before.known) == (0, 0)
    assert found.known == np.isfinite(explained.table()["model_top_and_random"]).sum() > 0


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
    st.floats(0, 100) | st.none(),
    st.floats(0.1, 1000) | st.none(),
    st.integers(1, 1000) | st.none(),
)
def test_the_plan_keeps_to_the_limits(
    count, max_cost, max_requests, cost, requests, priced, minutes, speed, most
):
    gains = np.linspace(1, 0.1, count)
    settings = Settings(
        Model("m"), Model("m"), max_cost=max_cost, max_requests=max_requests, max_minutes=minutes,
        limits={"requests_per_minute": most},
    )  # fmt: skip
    total = Share(requests, 0, 0, cost, 0 if priced else 1)
    made = Plan([NeuronId(0, i) for i in range(count)], gains, 1 - gains, 3, 0)
    found = made.afforded(settings, total, speed)
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
    fastest = min([each for each in (speed, most) if each is not None], default=None)
    assert found.a_minute == fastest
    if minutes is not None and fastest is not None and requests:
        assert own.neurons * requests / count <= minutes * fastest + 1e-6
    if max_cost is None and max_requests is None and (minutes is None or fastest is None):
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


def test_minutes_are_counted_by_the_speed_of_former_requests(explain, explained, monkeypatch):
    monkeypatch.setattr(console, "_width", 80)
    code, out, err = explain("--dry-run", "--max-minutes", "1")
    said = " ".join(out.split())
    assert code == 0 and "in 1 minutes is not known: this run has no former requests" in said, err
    assert (
        "no explanation by a language model has a score yet" in said
        and "told by how much they vary." in said
    )
    began = datetime(2026, 11, 28, 10, tzinfo=UTC)
    times = (began + timedelta(seconds=2 * step) for step in itertools.count())
    with monkeypatch.context() as clock:
        clock.setattr("fastexplain.ledger.responses.now", lambda *_: next(times).isoformat())
        assert explain("--max-requests", "33")[0] == 1
    with explained.database() as database:
        assert requests_a_minute(database, {"m", "other"}) is None
    code, out, err = explain("--dry-run", "--max-minutes", "0.5", "--json")
    found = json.loads(out.splitlines()[-1])["plan"]
    assert 25 < found["a_minute"] < 30  # one each two seconds, and what the probe took
    assert 0 < found["explained"]["requests"] <= found["a_minute"] / 2
    assert found["left"]["neurons"] > 0
    add_model_scores(explained, lambda neuron, lookup: 0.3 if neuron.index < 3 else None)
    _, out, _ = explain("--dry-run", "--max-minutes", "1")
    said = " ".join(out.split())
    assert f"Minutes are counted at {found['a_minute']:.0f} requests a minute." in said
    assert "too few scores of one to go by (3 neurons)" in said
    assert max(map(len, out.splitlines())) <= 80


def test_a_command_of_few_requests_tells_no_speed(explained, monkeypatch):
    def answer(command, at, count):
        monkeypatch.setattr("fastexplain.ledger.responses.now", lambda: f"2026-11-28T{at}+00:00")
        responses = Responses(database, f"2026-11-28T{command}.900000+00:00")
        for number in range(count):
            key = f"{command} {at} {number}"
            responses.add(key, "m", "simulation", Answer("x", "stop"), None)

    with explained.database() as database:
        answer("10:00:00", "10:00:04", 29)
        assert requests_a_minute(database, {"m"}) is None
        answer("10:00:00", "10:00:09", 1)
        assert requests_a_minute(database, {"m"}) == pytest.approx(60 * 30 / 10)
        # What another command got later is not of its time, and too little to go by.
        answer("10:30:00", "11:00:00", 5)
        assert requests_a_minute(database, {"m"}) == pytest.approx(60 * 30 / 10)


def test_minutes_stop_the_command(explain, server):
    code, _, err = explain("--max-minutes", "0")
    assert code == 1 and "stopped after 0 minutes; --max-minutes" in err
    assert all(body.get("max_tokens") != 60 for _, body, _ in server.requests)
