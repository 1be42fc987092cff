"""Which tokens, token pairs and situations the sweep's tables have rows for, and which row a token
falls in.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

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
        token_counts, pair_counts: int64 `[V]`, `[P]`, counted tokens of the corpus behind each row.
        situations: int32 `[C]`, codes of `text.kinds`, sorted: the most frequent of the corpus;
            none in a run of an earlier version.
        situation_counts: int64 `[C]`, as `token_counts`.
    """

    tokens: np.ndarray
    pairs: np.ndarray
    token_counts: np.ndarray
    pair_counts: np.ndarray
    situations: np.ndarray = field(default_factory=lambda: _none(np.int32))
    situation_counts: np.ndarray = field(default_factory=lambda: _none(np.int64))

    @classmethod
    def choose(
        cls, token_ids: np.ndarray, *, skip: int, rows: int, kinds: TokenKinds | None = None
    ) -> Tables:
        """The most useful rows for a corpus.

        What occurs once gets no row: held out, it knows nothing. Tokens come first, in up to three
        quarters of the rows, since pairs are estimated around them; pairs get the rest, and tokens
        what the pairs leave. (SmolLM2, five layers, 1,024 excerpts, 5,825 rows: the lookup's mean
        score was 0.603 with a third of the rows for tokens, 0.623 with half, 0.631 with two
        thirds, which were all tokens there were; with no limit on rows, 0.649.)

        Args:
            token_ids: int32 `[excerpts, tokens]`.
            skip: first counted token.
            rows: V + P at most.
            kinds: of the subject's tokens; without them there are no situations.
        """
        sample = np.asarray(token_ids[:_SAMPLE])
        tokens, counts = _most_frequent(sample[:, skip:])
        keys, _ = _most_frequent(_pair_keys(sample)[:, max(skip - 1, 0) :])
        first = min(len(tokens), rows - rows // 4)
        keys = keys[: rows - first]
        tokens = tokens[: rows - len(keys)]
        pairs = np.stack(np.divmod(np.sort(keys), _PAIR_BASE), axis=1).astype(np.int32)
        chosen = cls(tokens.astype(np.int32), pairs.reshape(-1, 2), counts[:0], counts[:0])
        counted = chosen._counted(token_ids, skip)
        return counted if kinds is None else counted._with_situations(token_ids, skip, rows, kinds)

    def _counted(self, token_ids: np.ndarray, skip: int) -> Tables:
        """The same rows with their counts over the whole corpus."""
        counts = (np.zeros(len(self.tokens), np.int64), np.zeros(len(self.pairs), np.int64))
        for start in range(0, len(token_ids), _BLOCK):
            for count, rows in zip(
                counts, self.rows(token_ids[start : start + _BLOCK]), strict=True
            ):
                known = rows[:, skip:]
                count += np.bincount(known[known >= 0], minlength=len(count))
        return Tables(self.tokens, self.pairs, *counts)

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
    def size(self) -> tuple[int, int]:
        """V and P."""
        return len(self.tokens), len(self.pairs)

    @property
    def swept(self) -> tuple[int, int]:
        """Rows of a summary's two tables: V, and P with the situations' C behind them."""
        return len(self.tokens), len(self.pairs) + len(self.situations)

    def without_situations(self) -> Tables:
        """The same tokens and pairs alone."""
        return Tables(self.tokens, self.pairs, self.token_counts, self.pair_counts)

    def situation_rows(self, token_ids: np.ndarray, skip: int, kinds: TokenKinds) -> np.ndarray:
        """The rows of the tokens' situations, behind those of the pairs in a summary's table.

        int32 `[excerpts, tokens, aspects]`; -1 where there is none.
        """
        if not len(self.situations):
            return np.full((*token_ids.shape, len(ASPECTS)), -1, np.int32)
        rows = np.full(STARTS[-1] + 1, -1, np.int32)  # the last one is that of no situation, -1
        rows[self.situations] = len(self.pairs) + np.arange(len(self.situations))
        return rows[kinds.situations(token_ids, skip)]

    def rows(self, token_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of tokens and of pairs, two int32 `[excerpts, tokens]`; -1 where there is none.

        An excerpt's first token has no previous one, and so no pair.
        """
        order = np.argsort(self.tokens)
        token_rows = _find(self.tokens[order].astype(np.int64), token_ids)
        token_rows = np.where(token_rows >= 0, order[token_rows], -1) if len(order) else token_rows
        pair_rows = np.full(token_ids.shape, -1, np.int32)
        known = self.pairs[:, 0] * np.int64(_PAIR_BASE) + self.pairs[:, 1]
        pair_rows[:, 1:] = _find(known, _pair_keys(token_ids))
        return token_rows.astype(np.int32), pair_rows


_PAIR_BASE = 2**32


def _pair_keys(token_ids: np.ndarray) -> np.ndarray:
    """int64 `[excerpts, tokens - 1]`: each token but the first, with its previous one."""
    return token_ids[:, :-1] * np.int64(_PAIR_BASE) + token_ids[:, 1:]


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
