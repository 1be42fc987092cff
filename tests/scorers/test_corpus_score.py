"""The scorer of the whole corpus, on a subject of which it is known what drives each neuron."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import planted
import pytest
import torch
from programmed import rare_and_heavy

import fastexplain
from fastexplain import NeuronId, Run, Subject, load_subject
from fastexplain.errors import SubjectError
from fastexplain.explainers.lookup import predict_by_lookup, store_lookup
from fastexplain.pipeline.lookup_corpus import score_lookup
from fastexplain.results import Explanation, Measured
from fastexplain.run.splits import EXPLANATION_RANKS
from fastexplain.run.subjects import load_subject_of
from fastexplain.scorers.corpus import Corpus
from fastexplain.subject.activations import activations_at

RIVER = f"0:{planted.RIVER_OR_STONE}"


class River:
    """Explains every neuron by one of the two words that drive the planted one."""

    method, model, version = "rule", "river", "1"

    def explain(self, record) -> Explanation:
        return Explanation("river")


class SameToken:
    model, version = "same token", "1"

    def simulate(self, explanation, tokens) -> list[float]:
        return [float(token == explanation) for token in tokens]


def activations(subject: Subject, run: Run, neuron: int) -> np.ndarray:
    """Of all counted tokens of the corpus, `[excerpts, counted]`."""
    seen: list[np.ndarray] = []
    subject.trunk(torch.from_numpy(run.excerpts), lambda _, acts: seen.append(acts.numpy()))
    return seen[0][:, run.skip :, neuron]


def others(run: Run, neuron: str) -> np.ndarray:
    """Excerpts from which no explanation of a neuron is written."""
    top = [exemplar.excerpt for exemplar in run.neuron(neuron).top]
    return np.setdiff1d(np.arange(len(run.excerpts)), np.array(top)[EXPLANATION_RANKS])


def test_an_explanation_is_scored_over_the_corpus_and_stored(run: Run, planted_subject) -> None:
    found = fastexplain.explain(
        run, RIVER, explainer=River(), simulator=SameToken(), scorers=["corpus", "correlation"]
    )
    assert not found.failures
    with run.database(read_only=True) as database:
        [row] = database.explanations(NeuronId.parse(RIVER))
        stored = {s.measured.measure: s.measured for s in database.scores(row.id)
                  if s.scorer == "corpus"}  # fmt: skip
    assert stored.keys() == {"correlation", "auprc"}
    own = others(run, RIVER)
    true = np.maximum(activations(planted_subject, run, planted.RIVER_OR_STONE)[own], 0)
    simulated = run.excerpts[own, run.skip :] == planted.WORDS.index("river")
    truth = np.corrcoef(true.ravel(), simulated.ravel())[0, 1]
    measured = stored["correlation"]
    assert measured.split == "corpus" and measured.reason is None and measured.excerpts >= 8
    assert measured.low < truth < measured.high
    assert abs(measured.value - truth) < 0.1
    assert 0 <= stored["auprc"].low < stored["auprc"].value < stored["auprc"].high <= 1


def test_samples_have_the_subjects_activations_and_stand_for_the_corpus(
    run: Run, planted_subject
) -> None:
    record = run.neuron(RIVER)
    samples = Corpus(run).excerpts(record)
    every = activations(planted_subject, run, planted.RIVER_OR_STONE)
    for sample in samples:
        assert sample.split == "corpus" and len(sample.tokens) == len(sample.true)
        np.testing.assert_allclose(sample.true, every[sample.excerpt], rtol=1e-5, atol=1e-5)
    assert sum(sample.weight for sample in samples) == pytest.approx(len(run.excerpts) - 5)
    explained = {record.top[rank].excerpt for rank in EXPLANATION_RANKS}
    assert not explained & {sample.excerpt for sample in samples}


def scored(run: Run, subject: Subject, simulate) -> dict[str, Measured]:
    """Measures of one neuron by name; `simulate` gives an excerpt's simulation, or None."""
    scorer, record = Corpus(run, subject), run.neuron(RIVER)
    samples = [
        dataclasses.replace(sample, simulated=simulate(place, sample))
        for place, sample in enumerate(scorer.excerpts(record))
    ]
    return {each.measure: each for each in scorer.score(record, "", samples)}


def test_the_true_activations_score_1(run: Run, planted_subject) -> None:
    found = scored(run, planted_subject, lambda place, sample: np.maximum(sample.true, 0))
    for measured in found.values():
        assert measured.value == pytest.approx(1) and measured.reason is None
        assert measured.low == pytest.approx(1, abs=1e-3)


def test_simulations_that_failed_are_missing_and_said_so(run: Run, planted_subject) -> None:
    def without(failed, place, sample):
        return None if place in failed else np.maximum(sample.true, 0)

    whole = len(Corpus(run, planted_subject).excerpts(run.neuron(RIVER)))
    one = scored(run, planted_subject, lambda *given: without({0}, *given))["correlation"]
    assert one.value == pytest.approx(1) and one.excerpts == whole - 1
    assert one.reason == f"1 of {whole} excerpts have no simulation"
    none = scored(run, planted_subject, lambda *given: None)["auprc"]
    assert (none.value, none.excerpts, none.reason) == (None, 0, "no excerpt was simulated")
    constant = scored(run, planted_subject, lambda place, sample: 0 * sample.true)["correlation"]
    assert constant.value is None and constant.reason == "one side has no variance"


def test_another_model_in_the_subjects_place_is_refused(run: Run, tmp_path: Path) -> None:
    subject = load_subject(str(planted.write_planted(tmp_path / "model")))
    subject.model.transformer.h[0].mlp.c_fc.weight.data *= 2
    subject.model.save_pretrained(tmp_path / "model")
    run.manifest["subject"]["name"] = str(tmp_path / "model")
    with pytest.raises(SubjectError, match=r"are not those that .* was swept with"):
        load_subject_of(run)
    run.manifest["subject"]["name"] = str(tmp_path / "nowhere")
    with pytest.raises(SubjectError, match="can't be loaded"):
        load_subject_of(run)


def test_lookup_is_scored_for_many_neurons_at_once(planted_run: Run, planted_subject) -> None:
    neurons = [NeuronId(0, i) for i in (planted.NEVER, planted.DIGIT, planted.CAT)]
    never, digit, cat = score_lookup(planted_run, neurons, planted_subject)
    for correlation, area in (digit, cat):
        assert (correlation.measure, area.measure) == ("correlation", "auprc")
        assert correlation.value > 0.99 and area.value > 0.99
        assert correlation.low <= correlation.value <= correlation.high
    assert [each.value for each in never] == [None, None]
    assert [each.reason for each in never] == ["one side has no variance", "no token is active"]
    [alone] = score_lookup(planted_run, [NeuronId(0, planted.CAT)])  # the subject by the manifest
    assert [m.value for m in alone] == pytest.approx([m.value for m in cat], abs=1e-6)


def test_an_excerpt_is_predicted_by_tables_that_forget_it_alone(run: Run, planted_subject) -> None:
    """By hand: a word's mean over all other excerpts, drawn to the neuron's mean."""
    every = np.maximum(activations(planted_subject, run, planted.ALWAYS), 0)
    excerpts = np.array([[5, -1, 9]], np.int32)
    acts = np.zeros((1, 3, run.excerpts.shape[1]), np.float32)
    acts[0, [0, 2], run.skip :] = every[[5, 9]]
    indices = np.array([planted.ALWAYS])
    found = predict_by_lookup(run, 0, indices, excerpts, acts)[0]
    assert np.isnan(found[1]).all() and not np.isnan(found[0, run.skip :]).any()
    again = predict_by_lookup(run, 0, indices, excerpts[:, :1], acts[:, :1])[0]
    np.testing.assert_array_equal(again[0], found[0])
    # The first counted token's pair begins at a token that is not counted: take those after it.
    corpus, others = run.excerpts, np.delete(np.arange(len(run.excerpts)), 5)
    token, previous = corpus[5, 9], corpus[5, 8]
    same = corpus[others, 1:] == token
    pair = same & (corpus[others, :-1] == previous)
    mean = every[others].mean()
    estimate = (every[others][same].sum() + 0.5 * mean) / (same.sum() + 0.5)
    if [previous, token] in run.tables.pairs.tolist():
        estimate = (every[others][pair].sum() + 2 * estimate) / (pair.sum() + 2)
    assert found[0, 9] == pytest.approx(estimate, rel=1e-4)


def test_each_neuron_gets_its_own_excerpts_in_whatever_batches(tiny_subject) -> None:
    tokens = np.random.default_rng(0).integers(1, 257, (7, 12))
    units = [NeuronId(2, 5), NeuronId(0, 3), NeuronId(2, 40)]
    excerpts = np.array([[0, 6, -1], [3, 3, 1], [5, -1, -1]])
    found = activations_at(tiny_subject, tokens, units, excerpts, batch_size=3)
    for unit, row, own in zip(units, excerpts, found, strict=True):
        for excerpt, values in zip(row, own, strict=True):
            if excerpt < 0:
                assert np.isnan(values).all()
            else:
                expected = tiny_subject.activations(tokens[excerpt], unit).values[:, 0]
                np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-6)


def test_lookup_explanations_that_a_run_has_are_scored(run: Run) -> None:
    store_lookup(run)
    fastexplain.score(run, ["0:0-5"], scorers=["corpus"])
    expected = score_lookup(run, [NeuronId(0, planted.CAT)])[0]
    with run.database(read_only=True) as database:
        [cat] = database.explanations(NeuronId(0, planted.CAT))
        found = [s.measured for s in database.scores(cat.id) if s.scorer == "corpus"]
        [never] = database.explanations(NeuronId(0, planted.NEVER))
        assert not [s for s in database.scores(never.id) if s.scorer == "corpus"]  # not asked for
    # With the other neurons products are added up in another order.
    for one, other in zip(sorted(found), sorted(expected), strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-6)
        assert (one.low, one.high) == pytest.approx((other.low, other.high), rel=1e-6)
        assert one == other._replace(value=one.value, low=one.low, high=one.high)


def test_intervals_of_rare_and_heavy_neurons_hold_the_truth(tmp_path: Path) -> None:
    """Planted from frequent to rare, with lognormal tails; each sweep draws other excerpts."""
    subject, frequency = rare_and_heavy(30)
    tokens = np.random.default_rng(1).choice(len(frequency), (200, 64), p=frequency)
    neurons = [NeuronId(0, index) for index in range(30)]
    every = np.broadcast_to(np.arange(200, dtype=np.int32), (30, 200))
    acts = activations_at(subject, tokens, neurons, every)
    inside, off = [], []
    for seed in range(3):
        corpus = fastexplain.Corpus.from_excerpts(tokens.astype(np.int32), seed=seed)
        run = fastexplain.sweep(subject, corpus, tmp_path / str(seed))
        simulated = predict_by_lookup(run, 0, np.arange(30), every, acts)
        for neuron, rows in zip(neurons, score_lookup(run, neurons, subject), strict=True):
            found = next(row for row in rows if row.measure == "correlation")
            own = others(run, str(neuron))
            x = np.maximum(acts[neuron.index, own, run.skip :], 0)
            if found.low is None or not x.any():
                continue
            truth = np.corrcoef(x.ravel(), simulated[neuron.index, own, run.skip :].ravel())[0, 1]
            inside.append(found.low <= truth <= found.high)
            off.append(found.value - truth)
    assert len(inside) > 75 and np.mean(inside) > 0.88
    assert abs(np.mean(off)) < 0.02
