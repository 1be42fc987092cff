"""Scorers that simulate another text than the neuron's explanation: another neuron's, and none."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

import fastexplain
from fastexplain import Model, NeuronId, Price
from fastexplain.errors import UsageError
from fastexplain.pipeline.batches.rounds import explain_in_batches
from fastexplain.pipeline.estimate import rehearse
from fastexplain.pipeline.models import Settings
from fastexplain.results import Explanation, ExplanationRow, Measured

NEURONS = {0: "cat", 1: "0 1 2 3 4 5", 3: "river stone"}
NAMES = [f"0:{index}" for index in NEURONS]
ALL = ["correlation", "mismatched", "empty"]


class Right:
    """Knows what drives the planted neurons."""

    method, model, version = "rule", "right", "1"

    def explain(self, record):
        return Explanation(NEURONS[record.id.index])


class Mentions:
    """Predicts 1 at the words of the explanation; counts what it is asked."""

    model, version = "mentions", "1"

    def __init__(self):
        self.asked = []

    def simulate(self, explanation, tokens):
        self.asked.append((explanation, tuple(tokens)))
        return [float(token in explanation.split()) for token in tokens]


def scores(run, index: int) -> dict[tuple[str, str], Measured]:
    with run.database(read_only=True) as database:
        [(key, _)] = [database.find_explanation(NeuronId(0, index), "rule", "right", "1")]
        return {(s.scorer, s.measured.split): s.measured for s in database.scores(key)}


def test_another_neurons_explanation_and_none_explain_nothing(run) -> None:
    simulator = Mentions()
    found = fastexplain.explain(
        run, NAMES, explainer=Right(), simulator=simulator, scorers=["mismatched", *ALL]
    )
    assert found.failures == {}
    for row in found.explanations:
        assert row.scores.top_and_random > 0.95  # of its own explanation, as ever
        own = scores(run, row.neuron.index)
        other, empty = own["mismatched", "top_and_random"], own["empty", "top_and_random"]
        assert other.value < 0.1 and other.excerpts == 10
        assert empty.value is None and empty.reason == "one side has no variance"
    asked = {text for text, _ in simulator.asked}
    assert asked == {*NEURONS.values(), "something"}

    before = len(simulator.asked)
    fastexplain.explain(run, NAMES, explainer=Right(), simulator=simulator, scorers=ALL)
    assert len(simulator.asked) == before  # the scores are stored


def test_it_can_be_asked_for_later_and_alone(run) -> None:
    fastexplain.explain(run, NAMES, explainer=Right(), simulator=Mentions())
    simulator = Mentions()
    fastexplain.explain(run, NAMES, explainer=Right(), simulator=simulator, scorers=["mismatched"])
    assert len(simulator.asked) == 30
    # The next neuron's of the layer, of the last one the first's.
    texts = [text for text, _ in simulator.asked]
    assert texts == [NEURONS[1]] * 10 + [NEURONS[3]] * 10 + [NEURONS[0]] * 10


def test_alone_it_also_explains(run) -> None:
    found = fastexplain.explain(
        run, NAMES, explainer=Right(), simulator=Mentions(), scorers=["empty"]
    )
    assert [row.text for row in found.explanations] == list(NEURONS.values())
    assert ("empty", "top_only") in scores(run, 0)


def test_a_neuron_that_is_explained_alone_has_no_other(run) -> None:
    named = {
        "explainer": Right(),
        "simulator": Mentions(),
        "scorers": ["correlation", "mismatched"],
    }
    found = fastexplain.explain(run, NAMES[:1], **named)
    [[failure]] = found.failures.values()
    assert failure.startswith("mismatched: no other neuron is explained yet; explain more")
    assert found.explanations[0].scores.top_and_random > 0.95  # nothing else is lost
    found = fastexplain.explain(run, NAMES[:2], **named)
    assert found.failures == {} and ("mismatched", "top_only") in scores(run, 0)


def test_explanations_of_other_sites_serve_where_the_own_has_none(run) -> None:
    with run.database() as database:
        for site, text in ((1, "first"), (2, "second")):
            database.add_explanations([ExplanationRow(NeuronId(site, 5), "model", "m", "1", text)])
        database.add_explanations([ExplanationRow(NeuronId(0, 5), "lookup", "lookup", "1", "no")])
        assert database.other_explanation(NeuronId(0, 5)) == "first"
        assert database.other_explanation(NeuronId(1, 5)) == "second"


def test_a_simulation_that_fails_costs_only_itself(run) -> None:
    class Failing(Mentions):
        def simulate(self, explanation, tokens):
            if explanation == "something":
                return np.full(len(tokens), np.nan)
            return super().simulate(explanation, tokens)

    found = fastexplain.explain(run, NAMES, explainer=Right(), simulator=Failing(), scorers=ALL)
    for failures in found.failures.values():
        assert failures == ["empty: the simulator gave no value"]
    assert scores(run, 0)["mismatched", "top_only"].value is not None
    assert ("empty", "top_only") not in scores(run, 0)


@pytest.fixture
def model(server):
    return Model("m", server.url, price=Price(1.0, 1.0, 2.0))


def test_of_a_language_model_the_shared_excerpts_are_not_asked_again(run, model, server) -> None:
    fastexplain.explain(run, NAMES, explainer=Right(), simulator=model)
    found = fastexplain.explain(
        run, NAMES, explainer=Right(), simulator=model, scorers=["correlation", "mismatched"]
    )
    assert 0 < found.requests <= 5 * len(NAMES)  # of their top excerpts
    assert ("mismatched", "random_only") in scores(run, 0)


def test_the_estimate_has_what_it_costs(run, model) -> None:
    neurons = [NeuronId(0, index) for index in NEURONS]

    def requests(scorers) -> int:
        settings = Settings(model, model, scorers=scorers)
        return asyncio.run(rehearse(run, neurons, settings)).total.requests

    plain, other = requests(["correlation"]), requests(["correlation", "mismatched"])
    assert plain == len(NAMES) * 11 and plain < other <= plain + 5 * len(NAMES)


def test_batches_refuse_it_before_anything_is_sent(run, model, tmp_path) -> None:
    settings = Settings(model, model, scorers=["correlation", "mismatched"])
    neurons = [NeuronId(0, 0)]
    with pytest.raises(UsageError, match="the scorer 'mismatched' can't be used in batches; add"):
        asyncio.run(explain_in_batches(run, neurons, settings, tmp_path / "requests.jsonl"))
    assert not (tmp_path / "requests.jsonl").exists()


@pytest.mark.parametrize("name", ["mismatched", "empty"])
def test_it_is_not_scored_by_the_explanations_own_simulations(run, name) -> None:
    fastexplain.explain(run, NAMES, explainer=Right(), simulator=Mentions())
    with pytest.raises(UsageError, match=f"the scorer '{name}' asks a model; name it in"):
        fastexplain.score(run, NAMES, scorers=[name])
    assert (name, "top_only") not in scores(run, 0)
