"""Excerpts drawn by stratum: their number, their strata, and that each is drawn as often."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from populations import drawn_from, population

import fastexplain
from fastexplain import Run
from fastexplain.errors import RunError
from fastexplain.run.strata import EXCERPTS, STRATA, drawn
from fastexplain.scorers.stratified import Places

FORMER = Path(__file__).parents[1] / "data" / "run-schema-1"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.sampled_from([1, 2, 5, 6, 9, 40, 300]))
def test_strata_part_the_corpus_without_what_explanations_are_written_from(seed, count) -> None:
    own = population(np.random.default_rng(seed), neurons=12, excerpts=count)
    found = drawn_from(own, seed)
    explained = (own.explained >= 0).sum(axis=1)
    np.testing.assert_array_equal(found.sizes.sum(axis=1), count - explained)
    for neuron, ids in enumerate(found.ids):
        used = ids[ids >= 0]
        assert len(set(used)) == len(used) and not set(used) & set(own.explained[neuron])
        strata = found.strata[neuron][ids >= 0]
        assert (np.diff(strata) >= 0).all() and (found.strata[neuron][ids < 0] == -1).all()
        counts = np.bincount(strata, minlength=found.sizes.shape[1])
        sizes = found.sizes[neuron]
        if len(used) > 1:
            assert (counts >= np.minimum(sizes, 2))[sizes > 0].all() or (sizes > 0).sum() == 1
        # Strata are parts of the range of largest activations, one above the other.
        largest = own.acts[neuron, used].max(axis=1)
        for stratum in range(1, found.sizes.shape[1]):
            below, above = largest[strata < stratum], largest[strata >= stratum]
            assert not len(below) or not len(above) or below.max() < above.min() * 1.2


def test_about_fifteen_excerpts_are_drawn() -> None:
    own = population(np.random.default_rng(1), neurons=200, excerpts=1000)
    counts = (drawn_from(own, seed=1).ids >= 0).sum(axis=1)
    assert 13 <= counts.mean() <= 16 and counts.min() >= 8
    assert counts.max() <= 2 * (STRATA + 4)


def test_of_a_bin_with_all_of_the_corpus_the_random_excerpts_are_drawn_too() -> None:
    own = population(np.random.default_rng(1), neurons=3, excerpts=400)
    own.acts[:] = 1.5
    own.explained[:] = np.arange(5)
    found = drawn_from(own, seed=1)
    assert found.sizes.tolist() == [[395]] * 3
    assert ((found.ids >= 0).sum(axis=1) == EXCERPTS).all()


def test_each_excerpt_stands_for_itself_on_average() -> None:
    """Over seeds the mean weight, 0 where it is not drawn, is 1 to what chance allows."""
    own = population(np.random.default_rng(2), neurons=1, excerpts=60)
    seeds, total, last = 500, np.zeros(60), np.ones(60)
    for seed in range(seeds):
        found = drawn_from(own, seed)
        weights = Places(found.strata, found.sizes).weights()[0]
        used = found.ids[0] >= 0
        total[found.ids[0][used]] += weights[used]
        last[found.ids[0][used]] = weights[used]
    total, last = (np.delete(each, own.explained[0]) for each in (total, last))
    certain = last == 1
    np.testing.assert_array_equal(total[certain], seeds)
    z = (total / seeds - 1)[~certain] / np.sqrt((last - 1)[~certain] / seeds)
    assert len(z) > 30 and abs(z).max() < 4 and 0.4 < (z**2).mean() < 1.8


def test_a_run_draws_what_its_sweep_kept(planted_run: Run) -> None:
    indices = np.array([7, 0, 3])
    found = drawn(planted_run, 0, indices)
    for row, index in enumerate(indices):
        alone = drawn(planted_run, "0", np.array([index]))
        np.testing.assert_array_equal(alone.ids[0], found.ids[row][: alone.ids.shape[1]])
        assert found.sizes[row].sum() == len(planted_run.excerpts) - 5
        own = planted_run.neuron(f"0:{index}")
        kept = set(own.statistics.histogram_excerpts[own.statistics.histogram_excerpts >= 0])
        kept |= {exemplar.excerpt for exemplar in own.random}
        assert set(found.ids[row][found.ids[row] >= 0]) <= kept


def test_bins_that_keep_one_excerpt_are_too_few() -> None:
    former = fastexplain.open_run(FORMER)
    with pytest.raises(RunError, match=r"earlier version.*too few excerpts.*sweep again"):
        drawn(former, 2, np.array([5]))
