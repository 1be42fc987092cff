"""Ratings as comparisons of two texts each, which rankings and grades have in common."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import NamedTuple

from fastexplain.records import NeuronId
from fastexplain.run.ratings import SKIPPED, Rating, ShownText


class Pair(NamedTuple):
    """What one rater said of two texts of a neuron.

    Attributes:
        neuron: which one.
        first, second: the texts.
        preference: 1 where the first is better, -1 where the second is, 0 where they are alike.
    """

    neuron: NeuronId
    first: ShownText
    second: ShownText
    preference: int


def counting(ratings: Iterable[Rating]) -> list[Rating]:
    """The ratings that count and judge: neither withdrawn nor skips."""
    return [r for r in ratings if r.withdrawn is None and r.judgement.kind != SKIPPED]


def pairs(ratings: Iterable[Rating]) -> list[Pair]:
    """All comparisons of ratings that count; the text that is first in the alphabet comes first."""
    found = []
    for rating in ratings:
        liked = sorted(zip(rating.shown, rating.judgement.liking(), strict=True))
        for (first, own), (second, other) in combinations(liked, 2):
            found.append(Pair(rating.neuron, first, second, (own > other) - (own < other)))
    return found
