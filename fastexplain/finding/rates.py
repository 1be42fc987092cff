"""How often tokens have a mark, as their kind lets expect: by pair, token and position.

A neuron of one word has its word's share of marks: a comma is nearly always seen before. So what a
neuron prefers is told from what its tokens bring with them by the marks on the same tokens in
other excerpts.
"""

from __future__ import annotations

import numpy as np

_WEIGHT = 2.0  # of a back-off, in tokens; as the lookup's of a pair to its token
_BASE = 2**32


class Rates:
    """The share of marked tokens in a corpus.

    1. A token's rate backs off to that of all tokens, a pair's (previous, current) to its token's:
       (marked + 2 back-off) / (count + 2).
    2. To the pair's comes what its position's rate has more than that of all tokens.

    Args:
        tokens: int `[S, T]`, excerpts 0 to S - 1 of the run.
        marks: bool `[S, T]`.
        skip: first counted token.
        context: what a rate is of: pairs (2), tokens (1), or all tokens alike (0), for marks that
            are the token's own doing.
    """

    def __init__(self, tokens: np.ndarray, marks: np.ndarray, skip: int, context: int = 2) -> None:
        self._excerpts = len(tokens)
        self._skip, self._context = skip, context
        counted = marks[:, skip:]
        self._rate = float(counted.mean()) if counted.size else 0.0
        self._positions = np.zeros(tokens.shape[1])
        if counted.size:
            self._positions[skip:] = counted.mean(axis=0) - self._rate
        self._known = [_counted(key[:, skip:], counted) for key in self._keys(tokens)]

    def expected(self, ids: np.ndarray, tokens: np.ndarray, marks: np.ndarray) -> np.ndarray:
        """Rates for excerpts, without what these themselves have: float64 `[n, T]`.

        Args:
            ids: int `[n]`, their numbers in the run.
            tokens, marks: of these, `[n, T]`.
        """
        inside = (ids < self._excerpts)[:, None]
        rate: np.ndarray | float = self._rate
        for (values, counts, marked), key in zip(self._known, self._keys(tokens), strict=True):
            same = key[:, :, None] == key[:, None, self._skip :]
            own = same.sum(axis=2), (same & marks[:, None, self._skip :]).sum(axis=2)
            place = np.minimum(np.searchsorted(values, key), max(len(values) - 1, 0))
            there = values[place] == key if len(values) else np.zeros(key.shape, bool)
            n, k = (
                np.where(there, total[place] if len(total) else 0, 0) - np.where(inside, mine, 0)
                for total, mine in zip((counts, marked), own, strict=True)
            )
            rate = (k + _WEIGHT * rate) / (n + _WEIGHT)
        return np.clip(np.broadcast_to(rate + self._positions, tokens.shape), 0.0, 1.0)

    def _keys(self, tokens: np.ndarray) -> list[np.ndarray]:
        return [tokens.astype(np.int64), _pairs(tokens)][: self._context]


def _pairs(tokens: np.ndarray) -> np.ndarray:
    """Each token with the one before it, as one number; the first has -1 before it."""
    previous = np.concatenate([np.full((len(tokens), 1), -1), tokens[:, :-1]], axis=1)
    return previous.astype(np.int64) * _BASE + tokens


def _counted(keys: np.ndarray, marks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different keys, rising, how often each stands there, and how often marked."""
    values, which = np.unique(keys, return_inverse=True)
    which = which.ravel()
    marked = np.bincount(which, weights=marks.ravel(), minlength=len(values))
    return values, np.bincount(which, minlength=len(values)), marked
