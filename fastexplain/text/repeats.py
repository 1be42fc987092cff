"""Which tokens of a corpus continue text that stands in another excerpt too."""

from __future__ import annotations

import numpy as np

GRAM = 4
"""Tokens of a repeat: with the three before it a token is mostly given away."""

# n-grams that are sorted at a time: 256 MB.
_AT_ONCE = 2**25

# Excerpts whose n-grams are made at a time.
_BLOCK = 2**14

# An odd constant for a multiplicative hash: 2**64 over the golden ratio.
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def repeated(token_ids: np.ndarray, *, at_once: int = _AT_ONCE) -> np.ndarray:
    """Tokens whose 4-gram occurs in another excerpt, bool `[excerpts, tokens]`.

    A token's 4-gram is the one that ends with it; of an excerpt's first three tokens it is the
    excerpt's first. They are compared by hashes of 64 bits: among a billion tokens one is marked by
    chance with a probability of 1 in 10^10.

    Args:
        token_ids: int `[excerpts, tokens]`, at least 4 tokens.
        at_once: n-grams that are sorted at a time; it bounds memory, not the result.
    """
    excerpts, tokens = token_ids.shape
    grams = tokens - GRAM + 1
    parts = np.uint64(max(1, -(-excerpts * grams // at_once)))
    marked = np.zeros((excerpts, grams), dtype=bool)
    blocks = [slice(start, start + _BLOCK) for start in range(0, excerpts, _BLOCK)]
    for part in range(int(parts)):
        own = []
        for block in blocks:
            # Twice in one excerpt is once: its other tokens are held out with it.
            hashes = np.sort(_hashes(token_ids[block]), axis=1)
            first = np.ones(hashes.shape, dtype=bool)
            first[:, 1:] = hashes[:, 1:] != hashes[:, :-1]
            own.append(hashes[first & (hashes % parts == part)])
        found = np.sort(np.concatenate(own))
        several = np.unique(found[1:][found[1:] == found[:-1]])
        for block in blocks:
            marked[block] |= np.isin(_hashes(token_ids[block]), several)
    return np.concatenate([np.repeat(marked[:, :1], GRAM - 1, axis=1), marked], axis=1)


def _hashes(token_ids: np.ndarray) -> np.ndarray:
    """Of every 4-gram a hash, uint64 `[excerpts, tokens - 3]`."""
    ids = np.asarray(token_ids).astype(np.uint64) + np.uint64(1)
    width = ids.shape[1] - GRAM + 1
    found = np.zeros((len(ids), width), np.uint64)
    for place in range(GRAM):
        found = (found ^ ids[:, place : place + width]) * _FACTOR
        found ^= found >> np.uint64(29)
    return found
