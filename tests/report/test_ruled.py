"""Rules' simulations, made anew from what is stored of them."""

import dataclasses
import re

import numpy as np
import planted
import pytest

from fastexplain import Run
from fastexplain.errors import UsageError
from fastexplain.explainers.rules import store_rules
from fastexplain.records import NeuronId
from fastexplain.report.ruled import RuledExcerpts
from fastexplain.results import ExplanationRow, StoredExplanation


@pytest.fixture
def ruled(run: Run) -> Run:
    store_rules(run)
    return run


def rule_of(run: Run, neuron: NeuronId) -> StoredExplanation:
    with run.database(read_only=True) as database:
        [row] = database.explanations(neuron)
    return row


def test_a_rules_simulation_has_its_stored_score(ruled: Run) -> None:
    predicted = RuledExcerpts(ruled)
    for index in (planted.CAT, planted.DIGIT, planted.MOON_AFTER_BRIGHT):
        neuron = NeuronId(0, index)
        row, record = rule_of(ruled, neuron), ruled.neuron(neuron)
        found = predicted.data(str(neuron), row.id)["values"]
        activations = {each.excerpt: each.activations for each in record.top}
        top = [int(excerpt) for excerpt in found if int(excerpt) in activations]
        assert all(found[str(excerpt)][: ruled.skip] == [None] * ruled.skip for excerpt in top)
        true = np.concatenate([np.maximum(activations[each], 0)[ruled.skip :] for each in top])
        said = np.concatenate([found[str(each)][ruled.skip :] for each in top]).astype(float)
        assert np.corrcoef(true, said)[0, 1] == pytest.approx(row.scores.top_only, abs=1e-3)


def test_terms_have_the_place_of_the_strongest_exemplar(ruled: Run) -> None:
    neuron = NeuronId(0, planted.MOON_AFTER_BRIGHT)
    row, record = rule_of(ruled, neuron), ruled.neuron(neuron)
    shown = RuledExcerpts(ruled).terms(record, row)
    stored = [(term["term"], term["value"], term["count"]) for term in row.data]
    assert [(each.text, each.mean, each.count) for each in shown] == stored
    first = shown[0]
    assert first.text == "'moon' after 'bright'" and first.own.strip() == "moon"
    assert first.before.strip().endswith("bright") and first.source == "top 1"
    assert first.activation == record.statistics.maximum


def test_a_term_that_no_exemplar_has_stands_in_the_corpus(ruled: Run) -> None:
    neuron = NeuronId(0, planted.CAT)
    row, record = rule_of(ruled, neuron), ruled.neuron(neuron)
    alone = dataclasses.replace(record, top=[], random=[])
    [shown] = [each for each in RuledExcerpts(ruled).terms(alone, row) if each.text == "'cat'"]
    place = re.fullmatch(r"text (\d+)", shown.source)
    assert place is not None and shown.activation is None and shown.own.strip() == "cat"
    text = "".join(ruled.token_texts(ruled.excerpt(int(place[1])).tolist()))
    assert shown.before + shown.own + shown.after in text


def test_a_rule_that_can_not_be_told_is_said(ruled: Run) -> None:
    neuron = NeuronId(0, planted.CAT)
    row = rule_of(ruled, neuron)
    predicted = RuledExcerpts(ruled)
    predicted._features.phrases.append(row.data[0]["term"])
    with pytest.raises(UsageError, match="'cat' stands for 2 tokens that look alike"):
        predicted.data(str(neuron), row.id)
    predicted._features.phrases.clear()
    with pytest.raises(UsageError, match="of this run's text have no term 'cat'"):
        predicted.data(str(neuron), row.id)


def test_a_rule_of_another_version_is_not_read_as_one_of_this(ruled: Run) -> None:
    neuron = NeuronId(0, planted.CAT)
    row = rule_of(ruled, neuron)
    old = ExplanationRow(neuron, "rule", "rule", "rule-1", row.text, data=row.data)
    with ruled.database() as database:
        database.add_explanations([old])
    with pytest.raises(UsageError, match="0:0 is by another version; run: fastexplain explain"):
        RuledExcerpts(ruled).data(str(neuron), rule_of(ruled, neuron).id)
