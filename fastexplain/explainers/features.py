"""What a rule may speak of in a run: sets of positions, each with a phrase, shared by all neurons.

A position has six keys: its token, the token before it, the pair of both where the tables have a
row for it, and its three situations (`text/kinds.py`). A key has a list of features:

1. Classes of the token: `classes.py`, `families.py`.
2. Any token after one token, or after one of a class, unless that is a situation.
3. Situations: a kind (or any token) after a kind, at the start of a line, for the second time, ...
4. The token itself, and the pair itself.

Those of 1 to 3 are *wide*; they come first. A fit knows a position's key where the tables have a
row for it; a prediction knows all keys, so that a rule holds for words that the corpus showed once.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from functools import cached_property

import numpy as np

from fastexplain.errors import UsageError
from fastexplain.explainers.classes import KIND_PHRASES, PLURAL_KINDS, classes_of
from fastexplain.explainers.families import families, places_of
from fastexplain.kernels.cpu.rules import INSIDE, overlaps
from fastexplain.run.directory import Run
from fastexplain.text.kinds import (
    AGAIN,
    ASPECTS,
    BEFORE,
    EIGHTHS,
    KINDS,
    LINE_START,
    NOTHING,
    PLACE,
    STARTS,
    TokenKinds,
)

# Tokens and pairs that a rule may name: the most frequent. What the wide ones share with all has
# to fit into memory.
_MOST_NAMED = 2**14
_FEWEST = 5  # positions of the corpus that a feature must have

_ORDINALS = ("", "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "last")


class Features:
    """A run's features, and where they are.

    Args:
        run: whose.
        rows: `run.tables.rows(run.excerpts)`.

    Attributes:
        phrases: one for each feature.
        wide: how many come before the single tokens.
        first_pair: the first that is a pair.
        token_of: int32 `[features]`, of a pair the feature of its token, else -1.
        starts, members: see `kernels.cpu.rules.feature_sums`.
        keys: int32 `[excerpts, counted, 6]`, of every counted position; -1 for none.
        known: the same, -1 also where the tables have no row.
        rows: int32 `[V + P + C, 2]`, the keys of the tables' rows.
    """

    def __init__(self, run: Run, rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        tables, skip = run.tables, run.skip
        kinds = TokenKinds(run.vocabulary)
        excerpts = run.excerpts
        # A model may have more rows than its tokenizer tokens.
        ids = max(len(kinds.kinds), int(excerpts.max(initial=0)) + 1)
        self._lists: dict[int, list[int]] = {}
        self.phrases: list[str] = []
        before, pairs = ids, 2 * ids
        situations = pairs + len(tables.pairs)
        situated = situations_in(tables.situations)
        self._add_classes(run, kinds.marked, before, situated)
        for phrase, codes in situated.items():
            self._add(phrase, [situations + code for code in codes])
        self.wide = len(self.phrases)
        named = tables.tokens[:_MOST_NAMED].tolist()
        place = {token: self.wide + number for number, token in enumerate(named)}
        for token in named:
            self._add(repr(run.token_text(token)), [token])
        self.first_pair = len(self.phrases)
        token_of = [-1] * self.first_pair
        frequent = np.sort(np.argsort(-tables.pair_counts, kind="stable")[:_MOST_NAMED]).tolist()
        for row in frequent:
            previous, token = run.token_texts(tables.pairs[row].tolist())
            self._add(f"{token!r} after {previous!r}", [pairs + row])
            token_of.append(place.get(int(tables.pairs[row, 1]), -1))
        self.token_of = np.array(token_of, np.int32)

        lists = [self._lists.get(key, []) for key in range(situations + STARTS[-1])]
        self.starts = np.cumsum([0, *map(len, lists)]).astype(np.int32)
        self.members = np.array([f for own in lists for f in own], np.int32)

        token_rows, pair_rows, _ = rows
        self.keys = np.full((*excerpts.shape, 3 + len(ASPECTS)), -1, np.int32)
        self.keys[..., 0] = excerpts
        self.keys[:, 1:, 1] = before + excerpts[:, :-1]
        self.keys[..., 2] = np.where(pair_rows >= 0, pairs + pair_rows, -1)
        here = kinds.situations(excerpts, skip)
        self.keys[..., 3:] = np.where(here >= 0, situations + here, -1)
        self.known = self.keys.copy()
        self.known[token_rows < 0, 0] = -1
        self.known[pair_rows < 0, 1] = -1
        self.known[..., 3:][~np.isin(here, tables.situations)] = -1
        self.keys, self.known = (
            np.ascontiguousarray(own[:, skip:]) for own in (self.keys, self.known)
        )

        count = len(tables.tokens) + len(tables.pairs)
        self.rows = np.full((count + len(tables.situations), 2), -1, np.int32)
        self.rows[: len(tables.tokens), 0] = tables.tokens
        self.rows[len(tables.tokens) : count, 0] = pairs + np.arange(len(tables.pairs))
        self.rows[len(tables.tokens) : count, 1] = before + tables.pairs[:, 0]
        self.rows[count:, 0] = situations + tables.situations

    @property
    def counts(self) -> np.ndarray:
        """int64 `[features]`, positions of the corpus that the tables know."""
        return self._overlaps[0]

    @property
    def shared(self) -> np.ndarray:
        """int32 `[wide, features]`, those that two features share."""
        return self._overlaps[1]

    @cached_property
    def _overlaps(self) -> tuple[np.ndarray, np.ndarray]:
        counts = np.zeros(len(self.phrases), np.int64)
        shared = np.zeros((self.wide, len(self.phrases)), np.int32)
        overlaps(self.known, self.starts, self.members, self.wide, counts, shared)
        return counts, shared

    def named(self, phrase: str) -> int:
        """The feature of a phrase.

        Raises UsageError where there is none, or several: bytes that are no text look alike.
        """
        count = self.phrases.count(phrase)
        if count > 1:
            raise UsageError(f"{phrase} stands for {count} tokens that look alike")
        if not count:
            raise UsageError(f"the rules of this run's text have no term {phrase}")
        return self.phrases.index(phrase)

    def holds(self, feature: int, excerpts: np.ndarray) -> np.ndarray:
        """Where a feature is in excerpts, whose ids are int `[E]`: bool `[E, counted]`."""
        keys = [key for key, own in self._lists.items() if feature in own]
        own: np.ndarray = np.isin(self.keys[excerpts], keys)
        return np.logical_or.reduce(own, axis=-1)

    def inside(self, one: int, other: int) -> bool:
        """Whether nearly all positions of one feature are the other's too."""
        if one == other or not self.counts[one]:
            return one == other
        if other < self.wide:
            share = self.shared[other, one] / self.counts[one]
        else:
            share = float(self.token_of[one] == other)
        return bool(share > INSIDE)

    def _add(self, phrase: str, keys: list[int]) -> None:
        for key in keys:
            self._lists.setdefault(key, []).append(len(self.phrases))
        self.phrases.append(phrase)

    def _add_classes(self, run: Run, marked: bool, before: int, situated: Container[str]) -> None:
        """Classes of tokens, and any token after one of a class or after one token.

        What is a situation too is left to these: they are summed wherever they are, and pairs only
        where the tables have a row for them.
        """
        texts = {int(token): run.token_text(int(token)) for token in np.unique(run.excerpts)}
        classes: dict[str, list[int]] = {}
        for token, text in texts.items():
            for phrase in dict.fromkeys(classes_of(text, marked=marked)):
                classes.setdefault(phrase, []).append(token)
        tables = run.tables
        counts = dict(zip(tables.tokens.tolist(), tables.token_counts.tolist(), strict=True))
        firsts = dict.fromkeys(tables.pairs[:, 0].tolist(), 0)
        for first, count in zip(tables.pairs[:, 0].tolist(), tables.pair_counts, strict=True):
            firsts[first] += int(count)
        classes = {phrase: ids for phrase, ids in classes.items() if len(ids) > 1}
        for phrase, ids in (families(texts, places_of(texts, run.excerpts)) | classes).items():
            if sum(counts.get(id_, 0) for id_ in ids) >= _FEWEST:
                self._add(phrase, ids)
            after = f"any token after {phrase}"
            if phrase not in classes or after in situated:
                continue
            if sum(firsts.get(id_, 0) for id_ in ids) >= _FEWEST:
                self._add(after, [before + id_ for id_ in ids])
        for first, count in firsts.items():
            if count >= _FEWEST:
                self._add(f"any token after {texts.get(first, '')!r}", [before + first])


def situations_in(codes: np.ndarray) -> dict[str, list[int]]:
    """The codes of situations by phrase, for each kind of token and for any.

    Args:
        codes: int32, those that the tables know; a phrase of which none is known is left out.
    """
    known = set(codes.tolist())
    found = {}
    for kind in (None, *range(len(KINDS))):
        own = "any token" if kind is None else KIND_PHRASES[KINDS[kind]]
        plural = kind is not None and KINDS[kind] in PLURAL_KINDS
        for aspect, values, phrase in _situations(own, plural=plural):
            kinds = range(len(KINDS)) if kind is None else [kind]
            keys = [STARTS[aspect] + v * len(KINDS) + k for v in values for k in kinds]
            if known & set(keys):
                found[phrase] = keys
    return found


def _situations(own: str, *, plural: bool) -> Iterator[tuple[int, list[int], str]]:
    """Aspect, values and phrase of what is said of tokens called `own`."""
    are, have, repeat, it = (
        ("are", "have", "repeat", "them") if plural else ("is", "has", "repeats", "it")
    )
    for value, name in enumerate(KINDS):
        # At the start of a line stands also what follows the white space that it begins with.
        within = " within a line" if name == "space" else ""
        yield BEFORE, [value], f"{own} after {KIND_PHRASES[name]}{within}"
    yield BEFORE, [LINE_START], f"{own} at the start of a line"
    yield BEFORE, [NOTHING], f"{own} with nothing before {it}"
    yield AGAIN, [0], f"{own} that {are} new in the excerpt"
    yield AGAIN, [1, 3], f"{own} for the second time in the excerpt"
    yield AGAIN, [1, 2, 3, 4], f"{own} that {have} appeared before in the excerpt"
    yield AGAIN, [3, 4], f"{own} that {repeat} what last followed the token before {it}"

    def places(eighths: range, insides: range) -> list[int]:
        return [eighth * 4 + inside for eighth in eighths for inside in insides]

    every, anywhere = range(EIGHTHS + 1), range(4)
    yield PLACE, places(range(1), anywhere), f"{own} at the very start of the excerpt"
    yield PLACE, places(range(2), anywhere), f"{own} in the first eighth of the excerpt"
    half = range(EIGHTHS // 2 + 1)
    yield PLACE, places(half, anywhere), f"{own} in the first half of the excerpt"
    for eighth in range(2, EIGHTHS + 1):
        phrase = f"{own} in the {_ORDINALS[eighth]} eighth of the excerpt"
        yield PLACE, places(range(eighth, eighth + 1), anywhere), phrase
    yield PLACE, places(every, range(1, 4, 2)), f"{own} inside brackets"
    yield PLACE, places(every, range(2, 4)), f"{own} inside double quotation marks"
