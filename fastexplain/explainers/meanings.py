"""Several meanings of one neuron: exemplars in clusters, and texts that have a part for each.

Clusters are found by what stands at an exemplar's peak, the counted token with the highest
activation, and before it:

1. Exemplars whose peaks are forms of one word, or else the same token, are together; so are those
   with numbers, those with line breaks, with closing brackets and the like.
2. Of the clusters, the two whose words before the peak overlap most (Jaccard's index over eight
   tokens, a mean over pairs of exemplars) become one, as long as the overlap is `ALIKE` or more.
3. A cluster of fewer than `LEAST` goes into the one that it overlaps most with; where none is
   large enough, all exemplars are one cluster, and the neuron has one meaning.
4. While there are too many, the two that overlap most become one.

Words alone are compared: two words of one topic count as two meanings where each drives two of the
exemplars or more. What that comes to on real neurons is in `benches/NOTES.md`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np

from fastexplain.records import Exemplar
from fastexplain.text.kinds import KINDS, kind_of

LEAST = 2
ALIKE = 0.3
_BEFORE = 8  # tokens

_BLANK = ("newline", "space")
_ALIKE_KINDS = (*_BLANK, "number", "open", "close", "quote")

# The number of a meaning, behind what ends the one before it.
_NUMBER = re.compile(r"(?:^|; )(\d+)\. ")


def joined(meanings: Iterable[str]) -> str:
    """Meanings as one text, `1. rivers; 2. stones`; one alone stays as it is.

    Equal ones count once. A semicolon before a number in one of them becomes a comma, so that
    `meanings_of` finds the same parts again.
    """
    own = list(dict.fromkeys(meanings))
    if len(own) == 1:
        return own[0]
    parts = (re.sub(r";(?= \d+\. )", ",", each) for each in own)
    return "; ".join(f"{number}. {part}" for number, part in enumerate(parts, start=1))


def meanings_of(text: str) -> list[str]:
    """The parts of a text that `joined` has made; of another text, that text alone."""
    found = list(_NUMBER.finditer(text))
    numbers = [int(each[1]) for each in found]
    if len(found) < 2 or found[0].start() > 0 or numbers != list(range(1, len(found) + 1)):
        return [text]
    ends = [each.start() for each in found[1:]] + [len(text)]
    return [text[each.end() : end] for each, end in zip(found, ends, strict=True)]


class Peak:
    """An exemplar, and what stands at its peak and before it.

    Args:
        exemplar: an excerpt with activations.
        skip: its first counted token.

    Attributes:
        driver: what the token at the peak is the same as: see `driver_of`.
        before: the drivers of the tokens before it, without white space.
        order: sorts the strongest first, whatever the order in which they come.
    """

    def __init__(self, exemplar: Exemplar, skip: int) -> None:
        place = skip + int(np.argmax(exemplar.activations[skip:]))
        self.exemplar = exemplar
        self.driver = driver_of(exemplar.tokens[place])
        own = exemplar.tokens[max(place - _BEFORE, 0) : place]
        self.before = frozenset(map(driver_of, own)) - set(map(_named, _BLANK))
        self.order = (-float(exemplar.activations[place]), exemplar.excerpt)


def clusters(exemplars: Sequence[Exemplar], skip: int, most: int) -> list[list[Exemplar]]:
    """Exemplars by meaning.

    Args:
        exemplars: of one neuron, with different excerpts, in any order.
        skip: their first counted token.
        most: clusters at the most.

    Returns:
        1 to `most` clusters, unless there are no exemplars: then none. Each exemplar is in exactly
        one. The strongest stands first, in each cluster and among these.
    """
    peaks = sorted((Peak(each, skip) for each in exemplars), key=lambda peak: peak.order)
    same: dict[str, list[Peak]] = {}
    for peak in peaks:
        same.setdefault(peak.driver, []).append(peak)
    groups = list(same.values())
    while len(groups) > 1:
        closest = max(combinations(groups, 2), key=lambda pair: _overlap(*pair))
        if _overlap(*closest) < ALIKE:
            break
        groups = _merged(groups, *closest)
    large = [group for group in groups if len(group) >= LEAST]
    if not large:
        return [[peak.exemplar for peak in peaks]] if peaks else []
    for small in (group for group in groups if len(group) < LEAST):
        nearest = max(large, key=lambda group: (_overlap(small, group), len(group)))
        large[large.index(nearest)] = nearest + small
    while len(large) > most:
        # Of equals the smallest, so that what is clear stays apart.
        pairs = combinations(large, 2)
        first, second = max(pairs, key=lambda p: (_overlap(*p), -len(p[0]) - len(p[1])))
        large = _merged(large, first, second)
    ordered = [sorted(group, key=lambda peak: peak.order) for group in large]
    ordered.sort(key=lambda group: group[0].order)
    return [[peak.exemplar for peak in group] for group in ordered]


def driver_of(token: str) -> str:
    """What a token is the same as: its stem, its kind (numbers, white space, brackets and quotation
    marks), else itself."""
    if (stem := stem_of(token)) is not None:
        return stem
    kind = KINDS[kind_of(token)]
    return _named(kind) if kind in _ALIKE_KINDS else token.strip().lower()


def stem_of(text: str) -> str | None:
    """The stem of a word, so that its inflections have the same; None for what is no word.

    By its letters alone: of a few exemplars it is not known which words there are, as it is where
    `families.py` finds forms of one word. So "rate" and "rat" have one stem here.
    """
    word = text.strip().lower()
    if not (word.isalpha() and word.isascii()) or len(word) < 2:
        return None
    for ending, least in (("ies", 5), ("ied", 5)):
        if word.endswith(ending) and len(word) >= least:
            return word[:-3] + "y"
    for ending, least in (("ing", 6), ("ed", 5), ("es", 5), ("s", 4)):
        if word.endswith(ending) and len(word) >= least and not word.endswith("ss"):
            stem = word[: -len(ending)]
            if not any(c in "aeiouy" for c in stem):  # string
                break
            word = stem
            if ending in ("ing", "ed") and word[-1] == word[-2] and word[-1] not in "lsz":
                word = word[:-1]  # sitting, stopped
            break
    return word.removesuffix("e") if len(word) > 3 else word


def _named(kind: str) -> str:
    return f" {kind}"  # which no stem is


def _overlap(first: Sequence[Peak], second: Sequence[Peak]) -> float:
    """How much of the words before their peaks two clusters share, from 0 to 1."""
    shares = [
        len(a.before & b.before) / max(len(a.before | b.before), 1) for a in first for b in second
    ]
    return sum(shares) / len(shares)


def _merged(groups: list[list[Peak]], first: list[Peak], second: list[Peak]) -> list[list[Peak]]:
    rest = [group for group in groups if group is not first and group is not second]
    return [*rest, sorted(first + second, key=lambda peak: peak.order)]
