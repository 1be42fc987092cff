"""Which tokens, pairs, triples and situations the sweep's tables have rows for, and which a token
falls in.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from fastexplain.text.kinds import ASPECTS, STARTS, TokenKinds

# Excerpts that the choice is made from: they are shuffled, so these are a sample, and counting
# their pairs takes 130 MB and about 2 s.
_SAMPLE = 2**18
_BLOCK = 2**14  # excerpts counted at a time

# Situations get so many rows at the most, as a part of the others: a large model's tables have a
# few hundred rows in all. There are at most 798, of which an excerpt of text has about a tenth.
_SITUATIONS_SHARE = 1 / 8


def _none(dtype: type) -> np.ndarray:
    return np.zeros(0, dtype)


@dataclass(frozen=True)
class Tables:
    """The rows of the tables, shared by all layers.

    Attributes:
        tokens: int32 `[V]`, the most frequent tokens, most frequent first.
        pairs: int32 `[P, 2]`, the most frequent (previous token, token), sorted.
        triples: int32 `[Q, 3]`, the most frequent (two before, previous, token), sorted.
        token_counts, pair_counts, triple_counts: int64 `[V]`, `[P]`, `[Q]`, counted tokens of the
            corpus behind each row.
        situations: int32 `[C]`, codes of `text.kinds`, sorted: the most frequent of the corpus;
            none in a run of an earlier version.
        situation_counts: int64 `[C]`, as `token_counts`.
        regressors: D, numbers of a regression under the tables, each of which takes a row of a
            summary's; only while a sweep runs.
    """

    tokens: np.ndarray
    pairs: np.ndarray
    triples: np.ndarray
    token_counts: np.ndarray
    pair_counts: np.ndarray
    triple_counts: np.ndarray
    situations: np.ndarray = field(default_factory=lambda: _none(np.int32))
    situation_counts: np.ndarray = field(default_factory=lambda: _none(np.int64))
    regressors: int = field(default=0, kw_only=True)

    @classmethod
    def choose(
        cls, token_ids: np.ndarray, *, skip: int, rows: int, kinds: TokenKinds | None = None
    ) -> Tables:
        """The most useful rows for a corpus.

        What occurs once gets no row: held out, it knows nothing. Tokens come first, in up to three
        quarters of the rows, since all else is estimated around them. The others go to the most
        frequent contexts, pairs before triples as frequent; a triple that is as frequent as its
        pair is that pair, and gets none. Measured in `benches/NOTES.md`, "Lookup scores".

        What contexts leave goes to tokens.

        Args:
            token_ids: int32 `[excerpts, tokens]`.
            skip: first counted token.
            rows: V + P + Q at most.
            kinds: of the subject's tokens; without them there are no situations.
        """
        sample = np.asarray(token_ids[:_SAMPLE])
        tokens, counts = _most_frequent(sample[:, skip:])
        first = min(len(tokens), rows - rows // 4)
        pairs, triples = _contexts(sample, skip, rows - first)
        tokens, none = tokens[: rows - len(pairs) - len(triples)], counts[:0]
        chosen = cls(tokens.astype(np.int32), pairs, triples, none, none, none)
        counted = chosen._counted(token_ids, skip)
        return counted if kinds is None else counted._with_situations(token_ids, skip, rows, kinds)

    def _counted(self, token_ids: np.ndarray, skip: int) -> Tables:
        """The same rows with their counts over the whole corpus."""
        counts = [np.zeros(size, np.int64) for size in self.size]
        for start in range(0, len(token_ids), _BLOCK):
            for count, rows in zip(
                counts, self.rows(token_ids[start : start + _BLOCK]), strict=True
            ):
                known = rows[:, skip:]
                count += np.bincount(known[known >= 0], minlength=len(count))
        return Tables(self.tokens, self.pairs, self.triples, *counts)

    def _with_situations(
        self, token_ids: np.ndarray, skip: int, rows: int, kinds: TokenKinds
    ) -> Tables:
        """The same with the situations that occur most often, more than once."""
        counts = np.zeros(STARTS[-1], np.int64)
        for start in range(0, len(token_ids), _BLOCK):
            codes = kinds.situations(token_ids[start : start + _BLOCK], skip)
            counts += np.bincount(codes[codes >= 0], minlength=len(counts))
        most = min(int(rows * _SITUATIONS_SHARE), int((counts > 1).sum()))
        chosen = np.sort(np.argsort(-counts, kind="stable")[:most]).astype(np.int32)
        return replace(self, situations=chosen, situation_counts=counts[chosen])

    @property
    def size(self) -> tuple[int, int, int]:
        """V, P and Q."""
        return len(self.tokens), len(self.pairs), len(self.triples)

    @property
    def swept(self) -> tuple[int, int, int]:
        """Rows of a summary's tables: V, P with the situations' C and D behind them, and Q."""
        behind = len(self.situations) + self.regressors
        return len(self.tokens), len(self.pairs) + behind, len(self.triples)

    def without_situations(self) -> Tables:
        """The same tokens, pairs and triples alone."""
        return replace(self, situations=_none(np.int32), situation_counts=_none(np.int64))

    def with_regressors(self, count: int) -> Tables:
        """The same with so many rows for a regression's sums."""
        return replace(self, regressors=count)

    def situation_rows(self, token_ids: np.ndarray, skip: int, kinds: TokenKinds) -> np.ndarray:
        """The rows of the tokens' situations, behind those of the pairs in a summary's table.

        int32 `[excerpts, tokens, aspects]`; -1 where there is none.
        """
        if not len(self.situations):
            return np.full((*token_ids.shape, len(ASPECTS)), -1, np.int32)
        rows = np.full(STARTS[-1] + 1, -1, np.int32)  # the last one is that of no situation, -1
        rows[self.situations] = len(self.pairs) + np.arange(len(self.situations))
        return rows[kinds.situations(token_ids, skip)]

    def rows(self, token_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows of tokens, pairs and triples, int32 `[excerpts, tokens]`; -1 where none is.

        An excerpt's first token has no previous one, and so no pair, and its second no triple.
        """
        order, tokens, pairs, firsts, triples = self._sorted
        token_rows = _find(tokens, token_ids)
        token_rows = np.where(token_rows >= 0, order[token_rows], -1) if len(order) else token_rows
        pair_rows, triple_rows = (np.full(token_ids.shape, -1, np.int32) for _ in range(2))
        keys = _pair_keys(token_ids)
        pair_rows[:, 1:] = _find(pairs, keys)
        triple_rows[:, 2:] = _find(triples, _keys(_find(firsts, keys[:, :-1]), token_ids[:, 2:]))
        return token_rows.astype(np.int32), pair_rows, triple_rows

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, ...]:
        """What `rows` searches: made once, for a sweep asks for the rows of every batch.

        The order of the tokens, and int64 the tokens, the keys of pairs, those of triples' first
        two tokens, and those of triples, which go by the place of these.
        """
        order = np.argsort(self.tokens)
        firsts = _keys(self.triples[:, 0], self.triples[:, 1])
        known = np.unique(firsts)
        return (
            order,
            self.tokens[order].astype(np.int64),
            _keys(self.pairs[:, 0], self.pairs[:, 1]),
            known,
            _keys(_find(known, firsts), self.triples[:, 2]),
        )


_BASE = 2**32


def _keys(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """int64: numbers that are ordered as (high, low); below 0 where `high` is."""
    return high * np.int64(_BASE) + low


def _pair_keys(token_ids: np.ndarray) -> np.ndarray:
    """int64 `[excerpts, tokens - 1]`: each token but the first, with its previous one."""
    return _keys(token_ids[:, :-1], token_ids[:, 1:])


def _contexts(sample: np.ndarray, skip: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The most frequent pairs and triples, int32 `[P, 2]` and `[Q, 3]`, each sorted; P + Q <= rows.

    Args:
        sample: int32 `[excerpts, tokens]`.
        skip: first counted token.
    """
    keys = _pair_keys(sample)
    pairs, pair_counts = _most_frequent(keys[:, max(skip - 1, 0) :])
    firsts, places = np.unique(keys, return_inverse=True)
    # Of a triple the places of its two pairs, which are the same for all that has that text.
    places = places.reshape(keys.shape)[:, max(skip - 2, 0) :].astype(np.int64)
    triples, triple_counts = _most_frequent(_keys(places[:, :-1], places[:, 1:]))
    before, last = np.divmod(triples, _BASE)
    order = np.argsort(pairs)
    of_pair = pair_counts[order][np.searchsorted(pairs[order], firsts[last])]
    distinct = triple_counts < of_pair
    triple_counts, before, last = triple_counts[distinct], before[distinct], last[distinct]

    counts = np.concatenate([pair_counts, triple_counts])
    chosen = np.argsort(-counts, kind="stable")[:rows]
    taken = chosen[chosen >= len(pairs)] - len(pairs)
    pairs = np.sort(pairs[chosen[chosen < len(pairs)]])
    triples = np.stack([firsts[before[taken]] // _BASE, *np.divmod(firsts[last[taken]], _BASE)], 1)
    triples = triples[np.lexsort(triples.T[::-1])]
    pairs = np.stack(np.divmod(pairs, _BASE), axis=1)
    return pairs.reshape(-1, 2).astype(np.int32), triples.reshape(-1, 3).astype(np.int32)


def _most_frequent(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values that occur more than once with their counts, most frequent first, then by value."""
    found, counts = np.unique(values, return_counts=True)
    found, counts = found[counts > 1], counts[counts > 1]
    order = np.lexsort((found, -counts))
    return found[order], counts[order]


def _find(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The place of each value in a sorted array, -1 where it is not there."""
    if len(known) == 0:
        return np.full(values.shape, -1, np.int64)
    places = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.where(known[places] == values, places, -1)
