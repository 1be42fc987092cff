"""Which exemplars explain, and which score."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fastexplain.run.splits import held_out_excerpts, splits

FIRST_SLOT = {"calibration": 0, "validation": 1, "test": 2}
ids = st.integers(0, 40)
tops = st.lists(ids, unique=True, max_size=24)
randoms = st.lists(ids, unique=True, max_size=25)


def plain_split(top, random, name):
    """The rule as it is written, for one neuron."""
    ranks = [r for r in range(FIRST_SLOT[name] + 1, 20, 4) if r < len(top)]
    explanation = {top[r] for r in range(0, 20, 4) if r < len(top)}
    slots = []
    for slot in range(FIRST_SLOT[name], len(random), 3):
        used = explanation | {top[r] for r in ranks}
        if random[slot] not in used and len(slots) < 5:
            slots.append(slot)
    return ranks, slots


@given(tops, randoms)
def test_splits_follow_the_rule(top, random):
    dealt = splits(np.array(top, dtype=np.int64), np.array(random, dtype=np.int64))
    assert dealt["explanation"].top.tolist() == [r for r in range(0, 20, 4) if r < len(top)]
    assert dealt["explanation"].random.size == 0
    for name in FIRST_SLOT:
        assert (dealt[name].top.tolist(), dealt[name].random.tolist()) == plain_split(
            top, random, name
        )


@given(st.lists(tops, min_size=1, max_size=5), randoms)
def test_all_neurons_at_once_are_dealt_as_one_by_one(rows, random):
    padded = np.full((len(rows), 24), -1)
    for row, top in enumerate(rows):
        padded[row, : len(top)] = top
    top_ids, slots = held_out_excerpts(padded, np.array(random, dtype=np.int64))
    assert top_ids.dtype == slots.dtype == np.int32
    for row, top in enumerate(rows):
        ranks, own = plain_split(top, random, "test")
        assert top_ids[row][top_ids[row] >= 0].tolist() == [top[r] for r in ranks]
        assert slots[row][slots[row] >= 0].tolist() == own


@given(tops, randoms)
def test_what_scores_an_explanation_is_not_what_it_was_written_from(top, random):
    dealt = splits(np.array(top, dtype=np.int64), np.array(random, dtype=np.int64))
    shown = {top[r] for r in dealt["explanation"].top}
    pooled = [top[r] for r in dealt["test"].top] + [random[s] for s in dealt["test"].random]
    assert not shown & set(pooled)
    assert len(pooled) == len(set(pooled))


def test_splits_as_published():
    dealt = splits(np.arange(20), np.arange(100, 125))
    assert dealt["test"].top.tolist() == [3, 7, 11, 15, 19]
    assert dealt["test"].random.tolist() == [2, 5, 8, 11, 14]
    assert dealt["explanation"].top.tolist() == [0, 4, 8, 12, 16]
