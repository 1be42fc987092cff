"""Marks on tokens that say what an excerpt had before: seen, repeated, or a pattern broken.

Every function takes token ids, int `[excerpts, tokens]`, and gives bool of that shape. Source of
the kinds: Bills et al. 2023, "Interesting neurons".
"""

from __future__ import annotations

import numpy as np

_BLOCK = 256  # excerpts compared at a time: a megabyte for each of the arrays


def seen_before(tokens: np.ndarray) -> np.ndarray:
    """Tokens that stand earlier in the excerpt too."""
    return np.concatenate([_earlier(block, 0).any(axis=2) for block in _blocks(tokens)])


def repeats(tokens: np.ndarray) -> np.ndarray:
    """Tokens that follow the two before them as the last time: what an induction head predicts."""
    found = []
    for block in _blocks(tokens):
        known, followed, _ = _last_followed(_earlier(block, 2), block)
        found.append(known & (followed == block))
    return np.concatenate(found)


def breaks(tokens: np.ndarray) -> np.ndarray:
    """Tokens in whose place an established pattern had another.

    Established is what followed the same two tokens the last time, or the same one token the last
    two times, both times alike.
    """
    found = []
    for block in _blocks(tokens):
        known, followed, _ = _last_followed(_earlier(block, 2), block)
        after_two = known & (followed != block)
        first = _earlier(block, 1)
        known, followed, last = _last_followed(first, block)
        np.put_along_axis(first, last[:, :, None], False, axis=2)
        again, before, _ = _last_followed(first, block)
        after_one = known & again & (followed == before) & (followed != block)
        found.append(after_two | after_one)
    return np.concatenate(found)


def _blocks(tokens: np.ndarray) -> list[np.ndarray]:
    starts = range(0, max(len(tokens), 1), _BLOCK)
    return [tokens[start : start + _BLOCK] for start in starts]


def _earlier(tokens: np.ndarray, length: int) -> np.ndarray:
    """For each token t the earlier places j with the same `length` tokens before them.

    With length 0 the places with the same token itself. bool `[excerpts, t, j]`.
    """
    count = tokens.shape[1]
    same = tokens[:, :, None] == tokens[:, None, :]
    found = same if length == 0 else np.ones_like(same)
    for back in range(1, length + 1):
        shifted = np.zeros_like(same)
        shifted[:, back:, back:] = same[:, : count - back, : count - back]
        found = found & shifted
    return found & np.tri(count, k=-1, dtype=bool)


def _last_followed(
    places: np.ndarray, tokens: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether there is a place, the token at the last one, and that place; `[excerpts, t]` each."""
    last = places.shape[2] - 1 - places[:, :, ::-1].argmax(axis=2)
    return np.asarray(places.any(axis=2)), np.take_along_axis(tokens, last, axis=1), last
