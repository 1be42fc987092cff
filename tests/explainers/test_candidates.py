"""The best of several explanations: what is chosen, by which excerpts, and for how much."""

import asyncio
import json

import numpy as np
import planted
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from knowing_server import Knowing

from fastexplain import open_run
from fastexplain.errors import BudgetError, Deferred, LLMError
from fastexplain.explainers.candidates import BestOf, most_simulations, rungs
from fastexplain.explainers.validation import Validation
from fastexplain.ledger.prices import dollars
from fastexplain.records import NeuronId
from fastexplain.results import Explanation
from fastexplain.run.splits import samples

CAT = NeuronId(0, planted.CAT)
TEXTS = ["river", "cat river stone", "cat", "moon", "cat the", "river"]


class Writer:
    """Explains by its seed; seeds that it lacks fail."""

    method, model, version = "model", "writer", "writer-1"

    def __init__(self, texts):
        self.texts, self.asked = texts, []

    async def explain(self, record, *, temperature=0.0, seed=0):
        self.asked.append((temperature, seed))
        if self.texts[seed] is None:
            raise LLMError(f"refused {seed}")
        return Explanation(self.texts[seed], parameters={"seed": seed, "temperature": temperature})


class Words:
    """Simulates 10 for the explanation's words; counts what it is asked."""

    def __init__(self, error=None):
        self.seen, self.error = [], error

    async def __call__(self, explanation, tokens):
        self.seen.append((explanation, tuple(tokens)))
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return np.array([10.0 * (token in explanation.split()) for token in tokens])


def excerpts(run, neuron=CAT):
    """How many the validation split has."""
    return len(samples(run.neuron(neuron), "validation"))


def best(run, texts, predict, **options):
    explainer = BestOf(Writer(texts), predict, "words 1", len(texts), **options)
    return asyncio.run(explainer.explain(run.neuron(CAT)))


def test_the_candidate_that_predicts_best_is_taken(planted_run):
    predict, count = Words(), excerpts(planted_run)
    found = best(planted_run, TEXTS, predict)
    assert found.text == "cat" and count in (9, 10)
    assert found.parameters["seed"] == 2 and found.parameters["temperature"] == 1.0
    told = {each["text"]: each for each in found.data["candidates"]}
    assert len(told) == 5  # "river" was written twice
    assert told["cat"]["validation"][-1] == [count, pytest.approx(1.0)]
    assert told["moon"]["validation"] == [[2, pytest.approx(told["moon"]["validation"][0][1])]]
    # The test split's texts, and those from which an explanation is written, were not looked at.
    record = planted_run.neuron(CAT)
    seen = {tokens for _, tokens in predict.seen}
    own = {tuple(each.tokens) for each in samples(record, "validation")}
    assert seen <= own and not seen & {tuple(each.tokens) for each in samples(record)}
    assert len(predict.seen) == len(set(predict.seen)) == most_simulations(5, 2, count)


def test_in_full_all_are_scored_on_all(planted_run):
    predict = Words()
    found = best(planted_run, TEXTS, predict, first=None)
    assert found.text == "cat" and len(predict.seen) == 5 * excerpts(planted_run)
    assert all(len(each["validation"]) == 1 for each in found.data["candidates"])


def test_of_equals_the_plain_explanation_stays(planted_run):
    assert best(planted_run, ["moon", "tower", "field"], Words()).text in ("moon", "tower", "field")
    # No candidate predicts anything, so that no score is defined.
    found = best(planted_run, ["plain", "other", "third"], Words())
    assert (found.text, found.parameters["temperature"]) == ("plain", 0.0)
    assert found.data["candidates"][0]["validation"] == [
        [2, None], [excerpts(planted_run), None],
    ]  # fmt: skip


def test_candidates_that_fail_are_left_out(planted_run):
    predict = Words()
    found = best(planted_run, [None, "cat", None], predict)
    assert found.text == "cat" and predict.seen == []  # there is nothing to choose from
    with pytest.raises(LLMError, match="refused 0"):
        best(planted_run, [None, None], predict)


def test_simulations_that_fail_are_no_end(planted_run):
    assert best(planted_run, TEXTS, Words(LLMError("cut off"))).text == "river"
    for error in (BudgetError("enough"), Deferred("later")):
        predict = Words(error)
        with pytest.raises(type(error)):
            best(planted_run, TEXTS, predict)
        assert len(predict.seen) == 5 * 2  # all that were sent together are waited for


def test_the_version_tells_who_chose(planted_run):
    versions = {
        BestOf(Writer(TEXTS), Words(), by, n, first=first).version
        for by in ("a 1", "b 1")
        for n in (2, 3)
        for first in (2, None)
    }
    assert len(versions) == 8


def test_the_validation_score_is_that_of_the_scorer(planted_run):
    from dataclasses import replace

    from fastexplain.scorers.correlation import Correlation

    record, predict = planted_run.neuron(CAT), Words()
    validation = Validation(record, predict)
    score = asyncio.run(validation.score("cat moon", 10))
    simulated = [
        replace(each, simulated=asyncio.run(predict("cat moon", each.tokens)))
        for each in samples(record, "validation")
    ]
    rows = Correlation().score(record, "", simulated)
    assert score == pytest.approx(next(r.value for r in rows if r.split == "top_and_random"))


@settings(max_examples=50)
@given(st.integers(1, 200), st.integers(1, 12) | st.none(), st.integers(1, 12))
def test_every_step_has_fewer_candidates_and_more_excerpts(candidates, first, excerpts):
    steps = rungs(candidates, first, excerpts)
    counts, seen = zip(*steps, strict=True)
    assert counts[0] == candidates and seen[-1] == excerpts
    assert list(counts) == sorted(set(counts), reverse=True)
    assert list(seen) == sorted(set(seen))
    if candidates > 1:
        assert most_simulations(candidates, first, excerpts) <= candidates * excerpts


# On a server


def phrases(asked, seed):
    return ["the moon", "stones of the river", "a cat", "old towers", "the bird"][seed % 5]


@pytest.fixture
def server():
    serving = Knowing(phrases)
    yield serving
    serving.close()


NEURONS = [f"0:{n}" for n in (planted.CAT, planted.RIVER_OR_STONE, planted.ALWAYS)]
OPTIONS = ["--simulation", "json", "--candidates", "5", "--json"]


@pytest.fixture
def explain(cli, run, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def call(server, *more, neurons=NEURONS):
        place = ["--explainer", "m", "--base-url", server.url]
        code, out, err = cli("explain", run.path, *neurons, *place, *OPTIONS, *more)
        return code, json.loads(out.splitlines()[-1]) if out.strip() else None, err

    return call


def test_the_command_tells_the_winner_and_what_it_cost(explain, server, cli, run):
    price = ["--price", "1,1"]
    code, estimate, err = explain(server, *price, "--dry-run")
    assert code == 0 and server.requests == [], err
    code, found, err = explain(server, *price)
    assert code == 0, err
    texts = {row["neuron"]: row for row in found["explanations"]}
    assert texts[NEURONS[0]]["explanation"] == "a cat"
    assert texts[NEURONS[1]]["explanation"] == "stones of the river"
    spent = texts[NEURONS[0]]["parameters"]["spent"]
    named = [NeuronId.parse(name) for name in NEURONS]
    simulations = [most_simulations(5, 2, excerpts(run, neuron)) for neuron in named]
    assert spent["requests"] == 5 + simulations[0]
    assert texts[NEURONS[0]]["cost"] == spent["cost"] > 0
    ledger = json.loads(cli("cost", run.path, "--json")[1])["rows"]
    counts = {row["purpose"]: row["answered"] for row in ledger}
    asked = {name: each["requests"] for name, each in estimate["purposes"].items()}
    assert asked == {"explanation": 15, "validation": sum(simulations), "simulation": 30}
    # Neurons share their random excerpts, and here the candidates too.
    assert counts["validation"] < asked.pop("validation") and counts | asked == counts
    # Test excerpts were simulated from the winner alone.
    with open_run(run.path).database(read_only=True) as database:
        assert len(database.explanations(NeuronId(0, planted.CAT))) == 1
    sent = len(server.requests)
    code, again, _ = explain(server, *price)
    assert again == found and len(server.requests) == sent
    place = ["--explainer", "m", "--base-url", server.url, *OPTIONS[:-1], *price]
    shown = cli("explain", run.path, *NEURONS, *place)[1].partition("What it took to find them")[2]
    [cat] = [line.split() for line in shown.splitlines() if line.startswith(NEURONS[0])]
    tokens = spent["prompt_tokens"] + spent["completion_tokens"]
    assert cat[1:] == [f"{spent['requests']}", f"{tokens:,}", dollars(spent["cost"])]
    # The plain explanation is one of the candidates, and known already.
    code, plain, _ = explain(server, "--candidates", "1")
    assert code == 0 and plain["explanations"][0]["explanation"] == "the moon"
    assert sum("max_tokens" in body and body["max_tokens"] == 60 for _, body, _ in
               server.requests[sent:]) == 0  # fmt: skip


def test_stopped_in_the_middle_it_goes_on_and_asks_nothing_twice(explain, server):
    stops = 0
    for _ in range(12):
        code, found, err = explain(server, "--max-requests", "30")
        stops += code == 1 and "--max-requests" in err
        if code == 0:
            break
    assert code == 0
    assert stops > 1
    bodies = [json.dumps(body) for path, body, _ in server.requests if "chat" in path]
    asked = [body for body in bodies if "reacts to" in body or '"max_tokens": 60' in body]
    assert len(asked) == len(set(asked)) <= 30 * (stops + 1)
    assert {row["explanation"] for row in found["explanations"]} >= {"a cat", "stones of the river"}


@pytest.mark.scale
def test_faults_change_what_it_takes_not_what_is_found(explain):
    faulty = Knowing(phrases, rate=0.3, seed=3, kinds=("500", "503", "truncated", "drop"))
    try:
        code, found, err = explain(faulty, neurons=NEURONS[:1])
    finally:
        faulty.close()
    assert code == 0, err
    assert sum(fault != "answered" for _, fault in faulty.outcomes) > 5
    [cat] = found["explanations"]
    assert cat["explanation"] == "a cat" and cat["top_and_random"] == pytest.approx(1.0)


@pytest.mark.parametrize("given", ["0", "-2"])
def test_no_candidates_are_no_choice(explain, server, given):
    code, _, err = explain(server, "--candidates", given)
    assert code == 2 and f"--candidates is {given}" in err and server.requests == []


def test_lookup_has_no_candidates(cli, run):
    code, _, err = cli("explain", run.path, "--candidates", "4")
    assert code == 2 and "--candidates is for language models" in err
