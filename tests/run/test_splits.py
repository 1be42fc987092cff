"""Which exemplars explain, and which score."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fastexplain.records import Exemplar, NeuronId, NeuronRecord
from fastexplain.run.splits import EXPLANATION_RANKS, held_out, samples

ids = st.integers(0, 40)
tops = st.lists(ids, unique=True, max_size=24)
randoms = st.lists(ids, unique=True, max_size=25)


def plain_test_split(top, random, most=5):
    """The rule as it is written, for one neuron."""
    ranks = [r for r in range(3, 20, 4) if r < len(top)]
    explanation = {top[r] for r in range(0, 20, 4) if r < len(top)}
    slots = []
    for slot in range(2, len(random), 3):
        used = explanation | {top[r] for r in ranks}
        if random[slot] not in used and len(slots) < most:
            slots.append(slot)
    return ranks, slots


def dealt(rows, random, width=24):
    """What `held_out` gives, as lists for each neuron."""
    padded = np.full((len(rows), width), -1)
    for row, top in enumerate(rows):
        padded[row, : len(top)] = top
    ranks, slots = held_out(padded, np.array(random, dtype=np.int64))
    assert ranks.dtype == slots.dtype == np.int32
    return [
        (own_ranks[own_ranks >= 0].tolist(), own_slots[own_slots >= 0].tolist())
        for own_ranks, own_slots in zip(ranks, slots, strict=True)
    ]


@given(st.lists(tops, min_size=1, max_size=5), randoms)
def test_the_test_split_follows_the_rule(rows, random):
    assert dealt(rows, random) == [plain_test_split(top, random) for top in rows]


@given(tops, randoms)
def test_one_neuron_needs_no_padding(top, random):
    assert dealt([top], random, len(top)) == [plain_test_split(top, random)]


@given(tops, randoms)
def test_where_prediction_is_free_all_random_excerpts_of_the_split_score(top, random):
    [ranks], [slots] = held_out(np.array([top], np.int64), np.array(random, np.int64), every=True)
    expected = plain_test_split(top, random, most=len(random))
    assert (ranks[ranks >= 0].tolist(), slots[slots >= 0].tolist()) == expected
    assert len(slots) == len(range(2, len(random), 3))


@given(tops, randoms)
def test_what_scores_an_explanation_is_not_what_it_was_written_from(top, random):
    [(ranks, slots)] = dealt([top], random)
    shown = {top[r] for r in EXPLANATION_RANKS if r < len(top)}
    pooled = [top[r] for r in ranks] + [random[s] for s in slots]
    assert not shown & set(pooled)
    assert len(pooled) == len(set(pooled))


@given(tops, randoms)
def test_splits_of_a_neuron_share_nothing_with_its_explanation_or_its_test(top, random):
    def exemplar(excerpt):
        values = np.arange(4, dtype=np.float32) + excerpt
        return Exemplar(excerpt, np.zeros(4, np.int32), list("abcd"), values)

    record = NeuronRecord(
        NeuronId(0, 0), 1, list(map(exemplar, top)), [], list(map(exemplar, random)), None
    )
    shown = {top[r] for r in EXPLANATION_RANKS if r < len(top)}
    by_split = {split: samples(record, split) for split in ("calibration", "validation", "test")}
    for split, found in by_split.items():
        own = [each.excerpt for each in found]
        assert len(own) == len(set(own)) <= 10 and not shown & set(own)
        for each in found:
            assert each.split == split and each.simulated is None
            assert list(each.tokens) == ["b", "c", "d"] and each.true[0] == each.excerpt + 1
            places = top if each.top else random
            first, step = {"calibration": (1, 0), "validation": (2, 1), "test": (3, 2)}[split], 4
            assert places.index(each.excerpt) % (step - (not each.top)) == first[not each.top]
    tested = {each.excerpt for each in by_split["test"]}
    for split in ("calibration", "validation"):
        assert not tested & {each.excerpt for each in by_split[split]}


def test_splits_as_published():
    assert dealt([list(range(20))], list(range(100, 125))) == [
        ([3, 7, 11, 15, 19], [2, 5, 8, 11, 14])
    ]
    assert EXPLANATION_RANKS.tolist() == [0, 4, 8, 12, 16]
