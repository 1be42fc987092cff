"""Whether automatic scores say what people say: of two explanations, which is better.

Only explanations of one neuron are compared, as people compared them. Lookup explanations and rules
predict by themselves; their own scores are compared with each other's, and with those that a judge
gave another explanation. Of a lookup explanation it is the score of its text, which is what people
saw, not of its whole table.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastexplain.explainers.lookup import METHOD as LOOKUP
from fastexplain.explainers.rules import METHOD as RULE
from fastexplain.rating.pairs import Pair
from fastexplain.rating.resampling import Estimate, estimate, share_of, weights
from fastexplain.records import NeuronId
from fastexplain.results import LIST
from fastexplain.run.database import Database
from fastexplain.run.ratings import ShownText, Source

ITSELF = "itself"
"""The judge where both explanations predict by themselves."""


class ScoreKind(NamedTuple):
    """What a score is; `judge` and `version` as in `Score`."""

    scorer: str
    judge: str
    version: str
    split: str
    measure: str


# Columns of what is counted: pairs that both order alike, that they order in opposite ways, that
# only the person has as ties, and only the score.
_ALIKE, _OPPOSITE, _PERSON_TIES, _SCORE_TIES = range(4)


class ScoreAgreement(NamedTuple):
    """How well one score agrees with people.

    Attributes:
        kind: which score.
        alike: of the pairs in which a person preferred one, the share in which the score is higher
            for it; where it is the same for both, one half. 0.5 by chance.
        tau: Kendall's tau-b over all pairs within neurons: (C - D) / sqrt((C + D + S)(C + D + P)),
            of pairs ordered alike C, in opposite ways D, with only the score tied S and only the
            person P. Source: Kendall 1945, "The treatment of ties in ranking problems". 0 by
            chance.
        pairs: how many comparisons by people have a score on both sides.
        neurons: of how many neurons.
    """

    kind: ScoreKind
    alike: Estimate
    tau: Estimate
    pairs: int
    neurons: int


def score_agreement(database: Database, pairs: Sequence[Pair]) -> list[ScoreAgreement]:
    """The agreement of every kind of score with people, the one that agrees best first."""
    scores = _Scores(database)
    tallies: dict[ScoreKind, dict[NeuronId, np.ndarray]] = defaultdict(dict)
    numbers: dict[ScoreKind, int] = defaultdict(int)
    for pair in pairs:
        for kind, (first, second) in scores.both(pair).items():
            own = tallies[kind].setdefault(pair.neuron, np.zeros(4))
            numbers[kind] += 1
            order = ((first > second) - (first < second)) * pair.preference
            if order:
                own[_ALIKE if order > 0 else _OPPOSITE] += 1
            elif pair.preference:
                own[_SCORE_TIES] += 1
            elif first != second:
                own[_PERSON_TIES] += 1
    found = [
        _agreement(kind, np.array(list(own.values())), numbers[kind])
        for kind, own in tallies.items()
    ]
    return sorted(found, key=lambda each: (-(each.alike.value or 0.0), each.kind))


def missing(database: Database, pairs: Sequence[Pair]) -> int:
    """How many of the texts that people compared are of explanations that are no longer there."""
    texts = {
        (pair.neuron, text.text, source.id)
        for pair in pairs
        for text in (pair.first, pair.second)
        for source in text.sources
    }
    there = {id_ for (id_,) in database.query("SELECT id FROM explanations")}
    return sum(id_ not in there for *_, id_ in texts)


class _Scores:
    """The scores of texts, each explanation's read once."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._read: dict[int, dict[ScoreKind, float]] = {}

    def both(self, pair: Pair) -> dict[ScoreKind, tuple[float, float]]:
        """By kind, the scores of both texts, where both have one.

        One that a text gives itself stands for those that the other has by judges.
        """
        first, second = self._of(pair.first), self._of(pair.second)
        found = {}
        for kind in first.keys() | second.keys():
            itself = kind._replace(judge=ITSELF, version="")
            own, other = (each.get(kind, each.get(itself)) for each in (first, second))
            if own is not None and other is not None:
                found[kind] = (own, other)
        return found

    def _of(self, text: ShownText) -> dict[ScoreKind, float]:
        """Of several explanations that say the same, the newest one's count."""
        found: dict[ScoreKind, float] = {}
        for source in text.sources:
            if source.id not in self._read:
                self._read[source.id] = dict(self._scores(source))
            found |= self._read[source.id]
        return found

    def _scores(self, source: Source) -> Iterator[tuple[ScoreKind, float]]:
        lookup = source.method == LOOKUP
        itself = None
        if lookup or (source.method, source.model) == (RULE, RULE):
            itself = LIST if lookup else RULE
        for score in self._database.scores(source.id):
            measured = score.measured
            if measured.value is None or (lookup and score.judge != LIST):
                continue
            judge, version = score.judge, score.version
            if judge == itself:
                judge, version = ITSELF, ""
            yield (
                ScoreKind(score.scorer, judge, version, measured.split, measured.measure),
                measured.value,
            )


def _agreement(kind: ScoreKind, tallies: np.ndarray, pairs: int) -> ScoreAgreement:
    """Of float64 `[neurons, 4]`."""
    neurons = len(tallies)
    decided = tallies[:, [_ALIKE, _OPPOSITE, _SCORE_TIES]].sum(axis=1)
    alike = share_of(tallies[:, _ALIKE] + tallies[:, _SCORE_TIES] / 2, decided)
    tau = estimate(_tau(tallies.sum(axis=0)), _tau(weights(neurons) @ tallies), neurons)
    return ScoreAgreement(kind, alike, tau, pairs, neurons)


def _tau(counts: np.ndarray) -> Any:
    """Kendall's tau-b of counts `[..., 4]`; NaN where one side has nothing but ties."""
    alike, opposite, person_ties, score_ties = np.moveaxis(counts, -1, 0)
    decided = alike + opposite
    with np.errstate(invalid="ignore", divide="ignore"):
        return (alike - opposite) / np.sqrt((decided + score_ties) * (decided + person_ties))
