"""The path of many neurons: what is asked, what is stored, and what a failure costs."""

import asyncio

import numpy as np
import planted
import pytest

from fastexplain.database import Database
from fastexplain.errors import LLMError
from fastexplain.explain import explain, explain_neurons
from fastexplain.llm import Connection
from fastexplain.records import Exemplar, NeuronId, NeuronRecord

SKIP = 1


class Scripted(Connection):
    """A model that explains and simulates by rule, and fails where it is told to.

    It simulates each token's length, so a neuron that follows lengths is simulated perfectly.
    """

    concurrency = 3

    def __init__(self, model="scripted", refuse=(), down=False):
        self.model, self.refuse, self.down = model, refuse, down
        self.chats, self.reads, self.busy, self.most = [], [], 0, 0

    async def _request(self, content):
        self.busy += 1
        self.most = max(self.most, self.busy)
        await asyncio.sleep(0)
        self.busy -= 1
        if self.down or any(word in content for word in self.refuse):
            raise LLMError("refused")

    async def check(self):
        await self._request("")

    async def generate(self, messages, *, max_tokens, temperature=0.0, seed=0):
        self.chats.append(messages[-1]["content"])
        await self._request(messages[-1]["content"])
        return "This neuron fires on long words."

    async def largest_integer(self):
        return 9

    async def integer_log_probabilities(self, text, places, *, shared=0):
        self.reads.append(text[shared:])
        await self._request(text[shared:])
        lengths = [place - text.rfind("\n", 0, place) - 2 for place in places]
        return np.where(np.arange(10) == np.array(lengths)[:, None], 0.0, -np.inf)


def exemplar(excerpt):
    rng = np.random.default_rng(excerpt)
    tokens = [f"N{excerpt:03d}"] + ["x" * n for n in rng.integers(1, 8, 7)]
    # The first token is not counted: its activation would spoil everything.
    activations = np.array([99.0] + [len(token) for token in tokens[1:]], dtype=np.float32)
    tokens[1] = f"e{excerpt:03d}"
    activations[1] = 4
    return Exemplar(excerpt, np.zeros(8, np.int32), tokens, activations)


RANDOM = [exemplar(500 + i) for i in range(25)]


def record(index, count=20):
    top = [exemplar(20 * index + rank) for rank in range(count)]
    return NeuronRecord(NeuronId(0, index), SKIP, top, [], RANDOM, None)


def run(database, records, explainer, simulator=None, **options):
    async def collect():
        both = {"explainer": explainer, "simulator": simulator or explainer}
        return [result async for result in explain_neurons(records, database, **both, **options)]

    results = asyncio.run(collect())
    return {result.neuron.index: result for result in results}


@pytest.fixture
def database(tmp_path):
    with Database(tmp_path / "run.sqlite") as opened:
        yield opened


def test_an_explanation_is_written_from_its_own_split():
    model = Scripted()
    explanation = asyncio.run(explain(record(0), model))
    assert (explanation.text, explanation.model) == ("long words", "scripted")
    shown = [rank for rank in range(20) if f"e{rank:03d}" in model.chats[0]]
    assert shown == [0, 4, 8, 12, 16]
    assert "N000" not in model.chats[0]


def test_with_fewer_exemplars_those_ranks_that_exist_are_shown():
    model = Scripted()
    asyncio.run(explain(record(0, count=6), model))
    assert [rank for rank in range(20) if f"e{rank:03d}" in model.chats[0]] == [0, 4]


def test_neurons_are_explained_simulated_scored_and_stored(database):
    model = Scripted()
    steps = []
    found = run(database, map(record, range(5)), model, progress=lambda *step: steps.append(step))
    assert sorted(found) == list(range(5))
    for index, result in found.items():
        assert result.text == "long words"
        assert result.scores.top_and_random == pytest.approx(1)
        assert (result.scores.excerpts_top, result.scores.excerpts_random) == (5, 5)
        assert result.failures == [] and not result.stored
        [stored] = database.explanations(NeuronId(0, index))
        assert stored.scores == result.scores
        simulations = database.simulations(stored.id)
        asked = {20 * index + rank for rank in (3, 7, 11, 15, 19)} | {502, 505, 508, 511, 514}
        assert {s.excerpt for s in simulations} == asked
        for simulation in simulations:
            assert len(simulation.values) == 8
            assert np.isnan(simulation.values[:SKIP]).all()
            assert not np.isnan(simulation.values[SKIP:]).any()
    assert len(model.chats) == 5 and len(model.reads) == 50
    assert 1 < model.most <= model.concurrency
    assert len(steps) == 5 * 12


def test_a_second_call_asks_nothing(database):
    first = run(database, [record(0)], Scripted())[0]
    model = Scripted()
    again = run(database, [record(0)], model)[0]
    assert (model.chats, model.reads, again.stored) == ([], [], True)
    assert again.scores == first.scores


def test_fresh_asks_again(database):
    run(database, [record(0)], Scripted())
    model = Scripted()
    result = run(database, [record(0)], model, fresh=True)[0]
    assert (len(model.chats), len(model.reads), result.stored) == (1, 10, False)
    assert len(database.explanations(NeuronId(0, 0))) == 1


def test_another_simulator_scores_the_same_explanation(database):
    run(database, [record(0)], Scripted())
    explainer, other = Scripted(), Scripted("other")
    run(database, [record(0)], explainer, other)
    assert (explainer.chats, len(other.reads)) == ([], 10)
    assert {e.simulator for e in database.explanations(NeuronId(0, 0))} == {"scripted", "other"}


def test_an_excerpt_that_fails_costs_only_itself_and_is_asked_again(database):
    failing = run(database, [record(0), record(1)], Scripted(refuse=["e007"]))
    assert failing[0].failures == ["simulation of excerpt 7: refused"]
    assert (failing[0].scores.excerpts_top, failing[0].scores.excerpts_random) == (4, 5)
    assert failing[0].scores.top_and_random == pytest.approx(1)
    assert failing[1].failures == []
    [stored] = database.explanations(NeuronId(0, 0))
    [failed] = [s for s in database.simulations(stored.id) if s.values is None]
    assert (failed.excerpt, failed.failure) == (7, "refused")

    model = Scripted()
    result = run(database, [record(0), record(1)], model)[0]
    assert (model.chats, len(model.reads)) == ([], 1)
    assert result.scores.excerpts_top == 5


def test_a_neuron_that_fails_costs_only_itself(database):
    found = run(database, map(record, range(4)), Scripted(refuse=["e040"]))
    assert found[2].text is None and found[2].scores is None
    assert found[2].failures == ["explanation: refused"]
    assert all(found[i].text == "long words" for i in (0, 1, 3))
    [stored] = database.explanations(NeuronId(0, 2))
    assert (stored.text, stored.failure) == (None, "refused")
    assert run(database, [record(2)], Scripted())[2].text == "long words"


def test_a_model_that_serves_nobody_is_an_error_before_anything_is_stored(database):
    with pytest.raises(LLMError, match="refused"):
        run(database, map(record, range(9)), Scripted(down=True))
    assert database.explanations(NeuronId(0, 0)) == []


def test_an_interrupted_call_keeps_what_it_has(database):
    async def first_two():
        model = Scripted()
        results = explain_neurons(
            map(record, range(50)), database, explainer=model, simulator=model
        )
        async for _ in results:
            if len(database.best(50)) >= 2:
                break
        await results.aclose()

    asyncio.run(first_two())
    kept = len(database.best(50))
    assert 2 <= kept < 50
    found = run(database, map(record, range(50)), Scripted())
    assert sum(result.stored for result in found.values()) == kept
    assert len(database.best(50)) == 50


class TruthTeller(Scripted):
    """Explains with the planted neurons' words, and simulates 9 on a word that is in them."""

    async def generate(self, messages, *, max_tokens, temperature=0.0, seed=0):
        shown = messages[-1]["content"].splitlines()
        lines = [line.split("\t") for line in shown if line.count("\t") == 1]
        return " ".join(sorted({token for token, value in lines if value == "10"}))

    async def integer_log_probabilities(self, text, places, *, shared=0):
        words = text[shared:].splitlines()[0].split()
        tokens = [text[text.rfind("\n", 0, place) + 1 : place - 1] for place in places]
        said = np.array([9 if token in words else 0 for token in tokens])
        return np.where(np.arange(10) == said[:, None], 0.0, -np.inf)


def test_a_simulator_that_is_told_the_truth_scores_one(planted_run, tmp_path):
    records = [planted_run.neuron(f"0:{n}") for n in (planted.CAT, planted.RIVER_OR_STONE)]
    with Database(tmp_path / "run.sqlite") as database:
        results = run(database, records, TruthTeller())
    assert {i: result.text for i, result in results.items()} == {
        planted.CAT: "cat",
        planted.RIVER_OR_STONE: "river stone",
    }
    for result in results.values():
        assert result.scores.top_and_random == pytest.approx(1, abs=1e-6)
        assert result.scores.random_only == pytest.approx(1, abs=1e-6)
        assert (result.scores.excerpts_top, result.scores.excerpts_random) == (5, 5)
