"""Which tokens stand in repeated text."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fastexplain.text.repeats import GRAM, repeated


def naive(token_ids: np.ndarray) -> np.ndarray:
    """The definition, token by token."""
    excerpts, tokens = token_ids.shape
    grams = [
        [tuple(row[start : start + GRAM]) for start in range(tokens - GRAM + 1)]
        for row in token_ids.tolist()
    ]
    found = np.zeros((excerpts, tokens), dtype=bool)
    for excerpt in range(excerpts):
        others = {gram for e, own in enumerate(grams) if e != excerpt for gram in own}
        for token in range(tokens):
            found[excerpt, token] = grams[excerpt][max(token - GRAM + 1, 0)] in others
    return found


@given(st.integers(1, 6), st.integers(4, 9), st.integers(0, 10**6), st.sampled_from([3, 10, 1000]))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_repeats_are_those_of_the_definition(excerpts, tokens, seed, at_once) -> None:
    ids = np.random.default_rng(seed).integers(0, 2, (excerpts, tokens)).astype(np.int32)
    assert (repeated(ids, at_once=at_once) == naive(ids)).all()


def test_a_copied_excerpt_is_repeated_throughout_and_fresh_text_is_not() -> None:
    ids = np.arange(3 * 64).reshape(3, 64)
    ids[2] = ids[0]
    assert repeated(ids).all(axis=1).tolist() == [True, False, True]
    assert repeated(ids).any(axis=1).tolist() == [True, False, True]


def test_what_is_repeated_within_one_excerpt_alone_is_not_marked() -> None:
    ids = np.stack([np.tile(np.arange(8), 8), np.arange(100, 164)])
    assert not repeated(ids).any()
