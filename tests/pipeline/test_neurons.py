"""The path of many neurons: what is asked, what is stored, and what a failure costs."""

import asyncio

import numpy as np
import planted
import pytest
from rich.console import Console

from fastexplain.cli.tables import explanations_table
from fastexplain.errors import BudgetError, Deferred, LLMError, UnusableError, UsageError
from fastexplain.explainers.model import ModelExplainer
from fastexplain.ledger.budget import Budget
from fastexplain.ledger.responses import Responses
from fastexplain.ledger.stored import StoredConnection
from fastexplain.llm import Connection
from fastexplain.llm.requests import Answer, Capabilities, Chat, Distribution, Usage
from fastexplain.pipeline.neurons import explain_neurons
from fastexplain.records import Exemplar, NeuronId, NeuronRecord
from fastexplain.report.neuron import explanation_data
from fastexplain.results import CORRELATION, Explanation, Measured, Scores
from fastexplain.run.database import Database
from fastexplain.run.splits import samples
from fastexplain.scorers.correlation import Correlation
from fastexplain.simulators.model import Simulator

SKIP = 1
CAPABLE = Capabilities(chat=True, prompt_logprobs=20, largest=9, fillers=("unknown", "0", "?"))


class Scripted(Connection):
    """A model that explains and simulates by rule, and fails where it is told to.

    It simulates each token's length, so a neuron that follows lengths is simulated perfectly.
    """

    address = "here"
    concurrency = 3
    capabilities = CAPABLE

    def __init__(self, model="scripted", refuse=(), down=False, defer=False):
        self.model, self.refuse, self.down, self.defer = model, refuse, down, defer
        self.chats, self.reads = [], []

    async def probe(self):
        return self.capabilities

    async def ask(self, request):
        content = content_of(request)
        (self.chats if isinstance(request, Chat) else self.reads).append(content)
        await asyncio.sleep(0)
        if self.defer:
            raise Deferred("later")
        if self.down:
            raise UnusableError("gone")
        if any(word in content for word in self.refuse):
            raise LLMError("refused")
        if isinstance(request, Chat):
            return Answer(self.explain(content), "stop", usage=Usage(100, 7))
        return Distribution(np.array(self.predict(request), dtype=np.float32), Usage(50, 1))

    def explain(self, content):
        return "This neuron fires on long words."

    def predict(self, request):
        lengths = np.array([len(line) - 1 for line in request.lines])
        return certain(lengths)


def content_of(request):
    if isinstance(request, Chat):
        return request.messages[-1]["content"]
    return request.head + "".join(request.lines)


def certain(values):
    return np.where(np.arange(10) == values[:, None], 0.0, -np.inf)


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


def correlation(result):
    return Scores.of(result.scores[CORRELATION])


def run(database, records, explainer, simulator=None, **options):
    simulating = Simulator(simulator or explainer, "prompt-logprobs", "expected")

    async def collect():
        both = {"explainer": ModelExplainer(explainer), "simulator": simulating}
        how = both | {"concurrency": explainer.concurrency} | options
        return [result async for result in explain_neurons(records, database, **how)]

    results = asyncio.run(collect())
    return {result.neuron.index: result for result in results}


@pytest.fixture
def database(tmp_path):
    with Database(tmp_path / "run.sqlite") as opened:
        yield opened


class Partial(Scripted):
    """Has no numbers at each third place."""

    def predict(self, request):
        rows = certain(np.array([len(line) - 1 for line in request.lines]))
        rows[::3] = np.nan
        return rows


def test_a_score_of_part_of_the_tokens_says_so_wherever_it_is_shown(database, capsys):
    results = run(database, [record(0)], Scripted(), Partial())
    assert correlation(results[0]).reason.startswith("rests on 57% of the tokens: ")
    [stored] = database.explanations(NeuronId(0, 0))
    assert stored.scores == correlation(results[0])
    assert explanation_data(stored)["reason"] == stored.scores.reason
    Console(width=120).print(explanations_table([stored]))
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "5 + 5, rests on" in shown and "57% of the tokens" in shown
    again = run(database, [record(0)], Scripted(), Partial())[0]
    assert correlation(again).reason == stored.scores.reason


def test_an_explanation_is_written_from_its_own_split():
    model = Scripted()
    explanation = asyncio.run(ModelExplainer(model).explain(record(0)))
    assert explanation.text == "long words"
    shown = [rank for rank in range(20) if f"e{rank:03d}" in model.chats[0]]
    assert shown == [0, 4, 8, 12, 16]
    assert "N000" not in model.chats[0]


def test_with_fewer_exemplars_those_ranks_that_exist_are_shown():
    model = Scripted()
    asyncio.run(ModelExplainer(model).explain(record(0, count=6)))
    assert [rank for rank in range(20) if f"e{rank:03d}" in model.chats[0]] == [0, 4]


def test_neurons_are_explained_simulated_scored_and_stored(database):
    model = Scripted()
    found = run(database, map(record, range(5)), model)
    assert sorted(found) == list(range(5))
    for index, result in found.items():
        assert result.text == "long words"
        assert correlation(result).top_and_random == pytest.approx(1)
        assert (correlation(result).excerpts_top, correlation(result).excerpts_random) == (5, 5)
        assert result.failures == [] and not result.waiting
        [stored] = database.explanations(NeuronId(0, index))
        assert stored.scores == correlation(result)
        simulations = database.simulated(stored.id, "scripted", stored.simulation)
        asked = {20 * index + rank for rank in (3, 7, 11, 15, 19)} | {502, 505, 508, 511, 514}
        assert set(simulations) == asked
        for values in simulations.values():
            assert len(values) == 8
            assert np.isnan(values[:SKIP]).all()
            assert not np.isnan(values[SKIP:]).any()
    assert len(model.chats) == 5 and len(model.reads) == 50


def test_an_explanation_says_where_it_comes_from(database):
    run(database, [record(0)], Scripted())
    [stored] = database.explanations(NeuronId(0, 0))
    said = stored.parameters
    assert said["exemplars"] == [0, 4, 8, 12, 16]
    assert (said["max_tokens"], said["temperature"], said["seed"]) == (60, 0.0, 0)
    assert (said["prompt_tokens"], said["completion_tokens"]) == (100, 7)
    assert len(said["request"]) == 32
    assert (stored.model, stored.version) == ("scripted", "explainer-1")


def test_a_second_call_asks_nothing(database):
    first = run(database, [record(0)], Scripted())[0]
    model = Scripted()
    again = run(database, [record(0)], model)[0]
    assert (model.chats, model.reads) == ([], [])
    assert again.scores == first.scores
    assert again.complete and not first.complete


def test_fresh_asks_again(database):
    run(database, [record(0)], Scripted())
    model = Scripted()
    run(database, [record(0)], model, fresh=True)
    assert (len(model.chats), len(model.reads)) == (1, 10)
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
    assert (correlation(failing[0]).excerpts_top, correlation(failing[0]).excerpts_random) == (4, 5)
    assert correlation(failing[0]).top_and_random == pytest.approx(1)
    assert failing[1].failures == []
    failed = "SELECT excerpt, failure FROM simulations WHERE activations IS NULL"
    assert database.query(failed) == [(7, "refused")]

    model = Scripted()
    result = run(database, [record(0), record(1)], model)[0]
    assert (model.chats, len(model.reads)) == ([], 1)
    assert correlation(result).excerpts_top == 5


def test_a_neuron_that_fails_costs_only_itself(database):
    found = run(database, map(record, range(4)), Scripted(refuse=["e040"]))
    assert found[2].text is None and found[2].scores is None
    assert found[2].failures == ["explanation: refused"]
    assert all(found[i].text == "long words" for i in (0, 1, 3))
    [stored] = database.explanations(NeuronId(0, 2))
    assert (stored.text, stored.failure) == (None, "refused")
    assert run(database, [record(2)], Scripted())[2].text == "long words"


def test_a_model_that_serves_nobody_is_an_error_and_nothing_is_stored(database):
    with pytest.raises(UnusableError, match="gone"):
        run(database, map(record, range(9)), Scripted(down=True))
    assert database.explanations(NeuronId(0, 0)) == []


def test_where_nothing_is_asked_others_get_their_turns(database):
    """So that Ctrl-C, the display and timeouts work while a command goes through what is done."""
    run(database, map(record, range(30)), Scripted())
    taken = []

    def records():
        for index in range(30):
            taken.append(index)
            yield record(index)

    async def main():
        model = Scripted()
        simulator = Simulator(model, "prompt-logprobs", "expected")
        results = explain_neurons(
            records(), database, explainer=ModelExplainer(model), simulator=simulator, concurrency=3
        )
        async for _ in results:
            return len(taken)

    assert asyncio.run(main()) <= 3 * Scripted.concurrency


def test_what_is_in_flight_when_a_model_serves_nobody_any_more_is_kept(database):
    class Ending(Scripted):
        """The quota is used up by one of the requests that are in flight together."""

        async def ask(self, request):
            if isinstance(request, Chat) and len(self.chats) == 4:
                self.chats.append("")
                raise UnusableError("the quota is used up")
            return await super().ask(request)

    model = Ending()
    with pytest.raises(UnusableError, match="quota"):
        run(database, map(record, range(30)), model)
    explained = database.best(50)
    assert len(explained) == len(model.chats) - 1
    assert all(row.scores.excerpts_top == 5 for row in explained)


def test_a_simulator_that_serves_nobody_stops_it_all(database):
    with pytest.raises(UnusableError, match="gone"):
        run(database, map(record, range(9)), Scripted(), Scripted("other", down=True))
    assert database.best(50) == []
    assert [e.text for e in database.explanations(NeuronId(0, 0))] == ["long words"]


def test_what_is_deferred_has_not_failed(database):
    [waiting] = run(database, [record(0)], Scripted(defer=True)).values()
    assert waiting.waiting and waiting.text is None and waiting.failures == []
    assert database.explanations(NeuronId(0, 0)) == []

    model, later = Scripted(), Scripted("other", defer=True)
    [waiting] = run(database, [record(0)], model, later).values()
    assert waiting.waiting and waiting.text == "long words" and waiting.failures == []
    assert len(later.reads) == 10
    [stored] = database.explanations(NeuronId(0, 0))
    assert stored.scores is None
    assert database.query("SELECT count(*) FROM simulations") == [(0,)]


def test_a_budget_stops_before_it_is_passed_and_the_next_call_goes_on(database):
    def stored(model, **options):
        return StoredConnection(model, Responses(database), "simulation", **options)

    records = [record(index) for index in range(6)]
    model = Scripted()
    with pytest.raises(BudgetError):
        run(database, records, stored(model, budget=Budget(None, 30)))
    assert len(model.chats) + len(model.reads) == 30
    kept = len(database.best(50))
    assert 0 < kept < 6
    again = Scripted()
    found = run(database, records, stored(again))
    # All explanations are alike, so the simulations of random excerpts are too.
    assert len(again.chats) + len(again.reads) == 6 * 6 + 5 - 30
    assert all(correlation(result).top_and_random == pytest.approx(1) for result in found.values())


def test_an_interrupted_call_keeps_what_it_has(database):
    async def first_two():
        model = Scripted()
        simulator = Simulator(model, "prompt-logprobs", "expected")
        results = explain_neurons(
            map(record, range(50)),
            database,
            explainer=ModelExplainer(model),
            simulator=simulator,
            concurrency=3,
        )
        async for _ in results:
            if len(database.best(50)) >= 2:
                break
        await results.aclose()

    asyncio.run(first_two())
    kept = len(database.best(50))
    assert 2 <= kept < 50
    model = Scripted()
    run(database, map(record, range(50)), model)
    assert len(model.chats) <= 50 - kept
    assert len(database.best(50)) == 50


class TruthTeller(Scripted):
    """Explains with the planted neurons' words, and simulates 9 on a word that is in them."""

    def explain(self, content):
        lines = [line.split("\t") for line in content.splitlines() if line.count("\t") == 1]
        return " ".join(sorted({token for token, value in lines if value == "10"}))

    def predict(self, request):
        words = request.head.splitlines()[0].split()
        return certain(np.array([9 if line[:-1] in words else 0 for line in request.lines]))


def test_a_simulator_that_is_told_the_truth_scores_one(planted_run, tmp_path):
    records = [planted_run.neuron(f"0:{n}") for n in (planted.CAT, planted.RIVER_OR_STONE)]
    with Database(tmp_path / "run.sqlite") as database:
        results = run(database, records, TruthTeller())
    assert {i: result.text for i, result in results.items()} == {
        planted.CAT: "cat",
        planted.RIVER_OR_STONE: "river stone",
    }
    for result in results.values():
        assert correlation(result).top_and_random == pytest.approx(1, abs=1e-6)
        assert correlation(result).random_only == pytest.approx(1, abs=1e-6)
        assert (correlation(result).excerpts_top, correlation(result).excerpts_random) == (5, 5)


class LongestToken:
    """A rule of the user's own, not a coroutine."""

    method, model, version = "rule", "longest token", "1"

    def explain(self, record):
        if record.id.index == 2:
            raise LLMError("no rule applies")
        return Explanation(max(record.top[0].tokens[1:], key=len), {"rule": 1})


class Lengths:
    """A simulator of the user's own."""

    model, version = "lengths", "1"

    def simulate(self, explanation, tokens):
        return [float(len(token)) for token in tokens]


class Count:
    name, measures, judge = "count", ("tokens",), None

    def excerpts(self, record):
        return samples(record, "calibration") + samples(record)

    def score(self, record, explanation, excerpts):
        tokens = sum(len(each.true) for each in excerpts if each.simulated is not None)
        return [Measured("test", "tokens", tokens, len(excerpts), low=1.0, high=99.0)]


class Judge:
    """A scorer that asks a model itself, which fails for the second neuron at first."""

    name, measures, judge = "judge", ("taste",), ("critic", "critic-1")

    def __init__(self):
        self.asked = []

    def excerpts(self, record):
        return samples(record, "validation")

    async def score(self, record, explanation, excerpts):
        assert excerpts and all(each.simulated is None for each in excerpts)
        self.asked.append((record.id.index, explanation))
        if record.id.index == 1 and len(self.asked) < 3:
            raise LLMError("out of taste")
        return [Measured("validation", "taste", 0.5, len(excerpts))]


def custom(database, records, **options):
    how = {"explainer": LongestToken(), "simulator": Lengths()} | options

    async def collect():
        return [result async for result in explain_neurons(records, database, **how)]

    return asyncio.run(collect())


def test_explainer_simulator_and_scorers_may_be_the_users_own(database):
    results = custom(database, map(record, range(3)), scorers=[Correlation(), Count()])
    assert correlation(results[0]).top_and_random == pytest.approx(1)
    assert results[2].failures == ["explanation: no rule applies"]
    [stored] = database.explanations(NeuronId(0, 1))
    assert (stored.method, stored.model, stored.data) == ("rule", "longest token", {"rule": 1})
    *_, counted = database.scores(stored.id)
    assert (counted.scorer, counted.judge, counted.version) == ("count", "lengths", "1")
    assert counted.measured == Measured("test", "tokens", 140.0, 20, 1.0, 99.0, None)
    again = custom(database, map(record, range(2)), scorers=[Correlation(), Count()])
    assert all(result.complete for result in again)
    assert again[0].scores == results[0].scores


def test_a_scorer_that_was_added_scores_what_was_simulated_before(database):
    custom(database, [record(0)])
    [result] = custom(database, [record(0)], scorers=[Correlation(), Count()], simulator=Lengths())
    assert not result.complete and result.scores["count"][0].value == 140


def test_a_scorer_that_asks_a_model_needs_no_simulation_and_is_asked_once(database):
    judge = Judge()

    class Unused(Lengths):
        def simulate(self, explanation, tokens):
            raise AssertionError("nothing is simulated for a judge")

    def scored():
        return custom(database, map(record, range(2)), scorers=[judge], simulator=Unused())

    first = scored()
    assert [result.failures for result in first] == [[], ["judge: out of taste"]]
    [stored] = database.scores(database.explanations(NeuronId(0, 0))[0].id)
    assert (stored.scorer, stored.judge, stored.version) == ("judge", "critic", "critic-1")
    assert stored.measured.value == 0.5
    again = scored()
    assert [result.complete for result in again] == [True, False]
    assert [neuron for neuron, _ in judge.asked] == [0, 1, 1]
    assert all(result.complete for result in scored())


def test_a_scorer_whose_simulations_were_there_is_not_asked_again(database):
    """Scores may cost seconds, as those by ablation do."""
    scored = []

    class Counted(Correlation):
        def score(self, record, explanation, excerpts):
            scored.append(record.id.index)
            return super().score(record, explanation, excerpts)

    custom(database, [record(0)], scorers=[Counted()])
    [result] = custom(database, [record(0)], scorers=[Counted(), Count()])
    assert scored == [0] and set(result.scores) == {"correlation", "count"}


def test_simulations_keep_their_split(database):
    custom(database, [record(0)], scorers=[Count()])
    rows = database.query("SELECT split, count(*) FROM simulations GROUP BY split ORDER BY split")
    assert rows == [("calibration", 10), ("test", 10)]


def test_a_simulator_that_gives_another_number_of_values_is_told(database):
    class Short(Lengths):
        def simulate(self, explanation, tokens):
            return [1.0, 2.0]

    with pytest.raises(UsageError, match=r"'lengths' gave \(2,\) values for 7 tokens"):
        custom(database, [record(0)], simulator=Short())


def test_what_comes_of_a_neuron_is_one_transaction(database):
    begun = []

    def trace(statement):
        if statement.startswith("BEGIN"):
            begun.append(statement)

    async def main():
        await database.write(lambda: database._connection().set_trace_callback(trace))
        how = {"explainer": LongestToken(), "simulator": Lengths()}
        return [result async for result in explain_neurons([record(0)], database, **how)]

    [result] = asyncio.run(main())
    assert correlation(result) is not None and len(begun) == 1
