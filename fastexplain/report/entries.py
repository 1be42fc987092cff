"""A list's entries as people read them: whole words, and for each one place where it stands.

1. Among the neuron's exemplars the place with the highest activation at the entry's tokens is its
   context; where no exemplar has them, the first place in the corpus, with no activation known.
2. A piece of a word is shown in its word there: `meth·'inks'` is the token `'inks'` in "methinks".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fastexplain.explainers.lists import mean_text
from fastexplain.records import Exemplar, NeuronRecord
from fastexplain.results import StoredExplanation
from fastexplain.run.directory import Run

SEARCHED = 4096  # excerpts of the corpus, which are shuffled; a search of these takes 1 ms
_BEFORE, _AFTER = 24, 16  # characters of a context
_WORD = 16  # characters of a word on either side of its piece


@dataclass(frozen=True)
class ShownEntry:
    """An entry of a list, or a term of a rule, with its place.

    Attributes:
        text: such as `meth·'inks'`, or `'moon' after 'bright'`; of a term its phrase.
        mean, count: as stored; of a term its value in place of the mean.
        before, own, after: a few words around the place, and the entry's own tokens; empty where
            the corpus's searched part has no such place.
        source: where it is: `top 1` (the first of the top exemplars), `random 7`, or `text 12` for
            an excerpt of the corpus that is no exemplar; empty as well.
        activation: the neuron's there; None where it is not known.
    """

    text: str
    mean: float
    count: int
    before: str
    own: str
    after: str
    source: str
    activation: float | None


class Place(NamedTuple):
    """Tokens of an excerpt, those from `start` to `stop` being meant; the rest as `ShownEntry`."""

    tokens: Sequence[str]
    start: int
    stop: int
    source: str
    activation: float | None


def shown_entries(run: Run, row: StoredExplanation) -> list[ShownEntry]:
    """The entries of a lookup explanation; none of one by an earlier version, which has no ids.

    Raises:
        RunError: a file is missing or damaged.
    """
    return entries_in(run, run.neuron(row.neuron), row) if _listed(row) else []


def entries_in(run: Run, record: NeuronRecord, row: StoredExplanation) -> list[ShownEntry]:
    """The same, of a neuron whose record is there."""
    kept = kept_of(record)
    # For each entry all at once: one after another they took 5 ms.
    ids = np.array([exemplar.token_ids for _, exemplar in kept])
    acts = np.array([exemplar.activations for _, exemplar in kept])

    def place(wanted: list[int]) -> Place | None:
        excerpts, ends = _ends(ids, wanted, record.skip) if kept else (ids, acts)
        if not len(excerpts):
            return _place_in_corpus(run, wanted, record.skip)
        best = int(np.argmax(acts[excerpts, ends]))
        (source, exemplar), last = kept[int(excerpts[best])], int(ends[best])
        start, activation = last + 1 - len(wanted), float(exemplar.activations[last])
        return Place(exemplar.tokens, start, last + 1, source, activation)

    return [_shown(entry, place(entry["ids"])) for entry in _listed(row)]


def kept_of(record: NeuronRecord) -> list[tuple[str, Exemplar]]:
    """A neuron's exemplars, each with its `source`, as `ShownEntry` has it."""
    return [
        (f"{kind} {number}", exemplar)
        for kind, exemplars in (("top", record.top), ("random", record.random))
        for number, exemplar in enumerate(exemplars, start=1)
    ]


def text_of_entries(entries: Iterable[ShownEntry], default: float) -> str:
    """A lookup explanation's text, with pieces in their words."""
    listed = ", ".join(f"{entry.text} {mean_text(entry.mean)}" for entry in entries)
    return f"{listed}; else {mean_text(default)}"


def _listed(row: StoredExplanation) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = row.data if isinstance(row.data, list) else []
    return entries if all("ids" in entry for entry in entries) else []


def whole_words(run: Run, rows: Iterable[StoredExplanation]) -> dict[int, str]:
    """The texts of lookup explanations with pieces in their words, by the explanations' ids."""
    texts = {}
    for row in rows:
        if row.method == "lookup" and (entries := shown_entries(run, row)):
            texts[row.id] = text_of_entries(entries, row.parameters["default"])
    return texts


class SearchedCorpus:
    """The corpus's searched part, by token.

    Args:
        token_ids: int32 `[E, T]`.
    """

    def __init__(self, token_ids: np.ndarray) -> None:
        self._ids = token_ids.ravel()
        self._length = token_ids.shape[1]
        self._order = np.argsort(self._ids, kind="stable").astype(np.int32)
        self._sorted = self._ids[self._order].astype(np.int64)

    def first(self, ids: list[int], skip: int) -> tuple[int, int] | None:
        """Where tokens first stand one after another, the last one counted; excerpt and place."""
        low, high = np.searchsorted(self._sorted, [ids[-1], ids[-1] + 1])
        ends = self._order[low:high]
        places = ends % self._length
        holds = places >= skip
        if len(ids) > 1:
            holds &= (places > 0) & (self._ids[ends - 1] == ids[0])
        first = int(holds.argmax()) if len(holds) else 0
        return divmod(int(ends[first]), self._length) if holds[first : first + 1].any() else None


def _place_in_corpus(run: Run, ids: list[int], skip: int) -> Place | None:
    """The first place in the corpus where the tokens stand one after another."""
    if SearchedCorpus not in run.derived:
        run.derived[SearchedCorpus] = SearchedCorpus(run.excerpts[:SEARCHED])
    found = run.derived[SearchedCorpus].first(ids, skip)
    if found is None:
        return None
    excerpt, last = found
    tokens = run.excerpt_texts(excerpt)
    return Place(tokens, last + 1 - len(ids), last + 1, f"text {excerpt}", None)


def _ends(token_ids: np.ndarray, ids: list[int], skip: int) -> tuple[np.ndarray, np.ndarray]:
    """Where `ids` stand in `[E, T]`, the last one counted: excerpts, and places of the last one."""
    holds = token_ids == ids[-1]
    if len(ids) > 1:
        holds[:, 1:] &= token_ids[:, :-1] == ids[0]
        holds[:, 0] = False
    holds[:, :skip] = False
    excerpts, places = np.divmod(np.flatnonzero(holds), holds.shape[1])
    return excerpts, places


def _shown(entry: dict[str, Any], place: Place | None) -> ShownEntry:
    token, previous = repr(entry["token"]), entry["previous"]
    before, own, after = _parts(place)
    # One letter more than is shown says that there are more.
    left = _ends_of_word(before[-_WORD - 1 :], own)[0]
    right = _ends_of_word(own, after[: _WORD + 1])[1]
    left = left if len(left) <= _WORD else f"…{left[-_WORD:]}"
    right = right if len(right) <= _WORD else f"{right[:_WORD]}…"
    token = f"{token}·{right}" if right else token
    if previous is None:
        text = f"{left}·{token}" if left else token
    else:
        text = f"{token} after {f'{left}·' if left else ''}{previous!r}"
    return shown_at(text, entry["mean"], entry["count"], place)


def shown_at(text: str, mean: float, count: int, place: Place | None) -> ShownEntry:
    """What is shown of an entry or a term that stands at a place, or at none."""
    before, own, after = _parts(place)
    source, activation = ("", None) if place is None else (place.source, place.activation)
    return ShownEntry(text, mean, count, before[-_BEFORE:], own, after[:_AFTER], source, activation)


def _parts(place: Place | None) -> tuple[str, str, str]:
    """The texts before a place, there and behind it; empty where there is none."""
    if place is None:
        return "", "", ""
    tokens, start, stop, *_ = place
    return "".join(tokens[:start]), "".join(tokens[start:stop]), "".join(tokens[stop:])


def _ends_of_word(first: str, second: str) -> tuple[str, str]:
    """The letters on both sides of where two texts meet, if they make one word there."""
    left, right = re.search(r"[^\W\d_]+$", first), re.search(r"^[^\W\d_]+", second)
    return (left[0], right[0]) if left and right else ("", "")
