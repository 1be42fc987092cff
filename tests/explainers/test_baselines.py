"""The baselines, on neurons for which it is known what each of them scores."""

from __future__ import annotations

import numpy as np
import planted
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import fastexplain.kernels as kernels
from fastexplain.explainers.baselines import (
    SPLITS,
    Baseline,
    baseline_of,
    layer_baselines,
    neuron_baselines,
    other_neurons,
)
from fastexplain.records import NeuronId

RANDOM_ONLY, TOP_AND_RANDOM, TOP_ONLY = range(3)


@pytest.fixture(scope="module")
def found(planted_run) -> dict[str, Baseline]:
    [(layer, baselines)] = layer_baselines(planted_run)
    assert layer == 0
    return baselines


def test_the_tables_pairs_score_what_the_lookup_explanation_does(planted_run, found) -> None:
    from fastexplain.explainers.lookup import explain_by_lookup

    (layer,) = explain_by_lookup(planted_run)
    stored = [[getattr(row.scores, split) for row in layer] for split in SPLITS]
    np.testing.assert_allclose(found["lookup"].values, np.array(stored, float), atol=1e-12)


def test_tokens_alone_explain_token_neurons_and_not_one_that_needs_a_pair(found) -> None:
    tokens, pairs = found["token"].values[TOP_AND_RANDOM], found["lookup"].values[TOP_AND_RANDOM]
    for neuron in (planted.CAT, planted.DIGIT, planted.RIVER_OR_STONE):
        assert tokens[neuron] > 0.95
    assert pairs[planted.MOON_AFTER_BRIGHT] > 0.9 > tokens[planted.MOON_AFTER_BRIGHT] + 0.2


def test_position_knows_nothing_of_neurons_of_words(found) -> None:
    words = [planted.CAT, planted.DIGIT, planted.RIVER_OR_STONE, planted.MOON_AFTER_BRIGHT]
    assert (np.abs(found["position"].values[:, words]) < 0.35).all()


def test_a_neuron_of_the_position_is_known_by_it(planted_run, monkeypatch) -> None:
    """Its activations are planted in the run's arrays: 1 at every eighth token, and noise."""
    from fastexplain.run.directory import Run

    read = Run.array

    def array(self, site, name, neurons=slice(None)):
        values = read(self, site, name, neurons)
        if name.endswith(".activations"):
            rng = np.random.default_rng(len(name))
            noise = rng.random(values.shape, np.float32) / 10
            comb = (np.arange(64) % 8 == 0).astype(np.float32)
            return noise + (comb if name.startswith("top") else comb[:, None])
        return values

    monkeypatch.setattr(Run, "array", array)
    [(_, baselines)] = layer_baselines(planted_run)
    assert (baselines["position"].values > 0.95).all()


def test_the_other_neurons_table_explains_nothing(found) -> None:
    """Of the planted neurons most never fire, whose tables are constant: undefined."""
    values = found["mismatched"].values[TOP_AND_RANDOM]
    defined = values[np.isfinite(values)]
    assert (defined < 0.5).all()


def test_neurons_that_are_alike_in_their_words_explain_each_other(planted_run) -> None:
    """With the neuron itself as the other one, its whole table is at least as good as held out."""
    from fastexplain.explainers import baselines as module

    def itself(neurons: int, layer: int) -> np.ndarray:
        return np.arange(neurons)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "other_neurons", itself)
        [(_, own)] = layer_baselines(planted_run)
    words = [planted.CAT, planted.DIGIT, planted.RIVER_OR_STONE, planted.MOON_AFTER_BRIGHT]
    assert (own["mismatched"].values[TOP_AND_RANDOM, words] > 0.95).all()


@pytest.mark.parametrize("neurons", [1, 2, 3, 100])
def test_the_other_neuron_is_another_and_each_is_one_once(neurons) -> None:
    others = other_neurons(neurons, 3)
    assert sorted(others) == list(range(neurons))
    assert (others != np.arange(neurons)).all() or neurons == 1
    assert (others == other_neurons(neurons, 3)).all()


def test_one_neurons_baselines_are_those_of_its_layer(planted_run, found) -> None:
    for neuron in (planted.DIGIT, planted.MOON_AFTER_BRIGHT):
        own = neuron_baselines(planted_run, NeuronId(0, neuron))
        assert own.keys() == found.keys() - {"unrepeated"}
        for name, baseline in own.items():
            expected = found[name].values[:, neuron]
            np.testing.assert_allclose(baseline.values[:, 0], expected, atol=1e-12)


def test_without_tables_there_is_the_position_alone(
    planted_subject, planted_corpus, tmp_path
) -> None:
    import fastexplain

    run = fastexplain.sweep(planted_subject, planted_corpus, tmp_path / "run", table_bytes=0)
    [(_, baselines)] = layer_baselines(run)
    assert list(baselines) == ["position"]
    assert list(neuron_baselines(run, NeuronId(0, 1))) == ["position"]


def test_without_random_exemplars_top_alone_is_scored(
    planted_subject, planted_corpus, tmp_path
) -> None:
    import fastexplain

    run = fastexplain.sweep(planted_subject, planted_corpus, tmp_path / "run", random=0)
    [(_, baselines)] = layer_baselines(run)
    assert np.isnan(baselines["position"].values).all()
    assert np.isnan(baselines["lookup"].values[RANDOM_ONLY]).all()
    assert baselines["lookup"].values[TOP_ONLY, planted.CAT] > 0.9
    assert baselines["lookup"].without.shape == (3, 0, planted.NEURONS)


def test_copies_of_documents_are_left_out(planted_subject, tmp_path) -> None:
    """Half of the corpus is copied; a neuron's answers for copies do not count as held out."""
    import fastexplain
    from fastexplain import Corpus

    ids = np.random.default_rng(5).integers(0, planted.TOKENS, (120, 64)).astype(np.int32)
    run = fastexplain.sweep(
        planted_subject, Corpus.from_excerpts(np.concatenate([ids, ids])), tmp_path / "run"
    )
    [(_, baselines)] = layer_baselines(run)
    assert np.isnan(baselines["unrepeated"].values).all()
    assert baselines["lookup"].values[TOP_AND_RANDOM, planted.CAT] > 0.95


# Some alike, and none so near to another that the square of what is between them is rounding.
values = arrays(
    np.float32,
    (3, 4, 6),
    elements=st.sampled_from([0.0, 0.1, 5.3, np.nan]) | st.integers(0, 6400).map(lambda x: x / 64),
)


@given(values, values)
@settings(derandomize=True, deadline=None, max_examples=150)
def test_sums_correlate_as_the_kernel_does(true, predicted) -> None:
    ids = np.tile(np.array([[7, 8, 1, 2]]), (3, 1))
    found = baseline_of(true, predicted, ids, 2, np.array([1, 2, 3]))
    for split, part in enumerate((slice(2, None), slice(None), slice(2))):
        expected = kernels.correlate(true[:, part], predicted[:, part]).correlation
        assert (np.isnan(found.values[split]) == np.isnan(expected)).all()
        np.testing.assert_allclose(found.values[split], expected, atol=1e-6)
    assert found.used.tolist() == [True, True, False]
    rest = kernels.correlate(true[:, [0, 1, 3]], predicted[:, [0, 1, 3]]).correlation
    np.testing.assert_allclose(found.without[TOP_AND_RANDOM, 0], rest, atol=1e-6)
    np.testing.assert_array_equal(found.without[:, 2], found.values)
    for half, places in enumerate(([0, 3], [1, 2])):  # a top one and a random one each
        own = kernels.correlate(true[:, places], predicted[:, places]).correlation
        np.testing.assert_allclose(found.halves[TOP_AND_RANDOM, half], own, atol=1e-6)
