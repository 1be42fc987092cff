"""What a person judges: one neuron's explanations, blind, above its activations.

The exemplars are of the test split, so that no explanation shown was written from them. Explainers
that say the same are one text. Nothing that a task gives a face says whose a text is; the order is
drawn anew for each rater and neuron.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import xxhash

from fastexplain.errors import UsageError
from fastexplain.records import Exemplar, NeuronId, NeuronRecord
from fastexplain.report.entries import whole_words
from fastexplain.results import TOP
from fastexplain.run.database import Database
from fastexplain.run.directory import Run
from fastexplain.run.ratings import Judgement, Rating, ShownText, Source
from fastexplain.run.splits import samples

TEXTS = 4
"""Explanations of a neuron that are shown at the most."""

# Exemplars of each kind that are shown, of the five that the test split has: with each on two or
# three lines they fit a screen with the explanations.
_EXEMPLARS = {"top": 5, "random": 3}


class ShownExemplar(NamedTuple):
    """An exemplar, and its kind: "top" or "random"."""

    kind: str
    exemplar: Exemplar


@dataclass(frozen=True)
class Task:
    """One neuron to judge.

    Attributes:
        rating: what is to be stored, with the judgement if there is one already.
        exemplars: top ones first.
        largest: the neuron's largest activation in the sweep, at least 0: the scale of all of its
            exemplars.
        skip: so many tokens at an exemplar's beginning don't count.
    """

    rating: Rating
    exemplars: list[ShownExemplar] = field(repr=False)
    largest: float
    skip: int

    @property
    def neuron(self) -> NeuronId:
        return self.rating.neuron

    @property
    def texts(self) -> list[str]:
        """The explanations, in the order to be shown."""
        return [each.text for each in self.rating.shown]

    @property
    def judgement(self) -> Judgement | None:
        """What the rater said before, of a task that is shown again."""
        return self.rating.judgement if self.rating.id else None

    @property
    def key(self) -> str:
        """Changes with anything that is shown; by it `RatingSession.store` knows what was judged.

        It is a hash, which says nothing of whose the texts are.
        """
        r = self.rating
        shown = (r.rater, str(r.neuron), r.seed, r.shown, sorted(r.excerpts.items()))
        return xxhash.xxh3_128_hexdigest(repr(shown).encode("utf-8", "surrogatepass"))

    def data(self) -> dict[str, Any]:
        """All that a face shows, as JSON has it, without whose the texts are."""
        return {
            "neuron": str(self.neuron),
            "key": self.key,
            "rating": self.rating.id or None,
            "explanations": self.texts,
            "largest": self.largest,
            "skip": self.skip,
            "exemplars": [
                {
                    "kind": kind,
                    "excerpt": exemplar.excerpt,
                    "tokens": exemplar.tokens,
                    "activations": exemplar.activations.tolist(),
                }
                for kind, exemplar in self.exemplars
            ],
            "judgement": self.judgement and self.judgement._asdict(),
        }


def new_task(
    run: Run, database: Database, rater: str, neuron: NeuronId, seed: int, most: int
) -> Task:
    """A neuron's explanations of its top for a rater; of more than `most` the same for all raters.

    Raises:
        UsageError: there is no such neuron, or it has fewer than two different explanations.
        RunError: a file is missing or damaged.
    """
    record = run.neuron(neuron)
    rows = {row.id: row for row in database.explanations(neuron) if row.text and row.side == TOP}
    words = whole_words(run, rows.values())
    sources: dict[str, list[Source]] = {}
    for row in sorted(rows.values(), key=lambda row: row.id):
        text = (words.get(row.id) or row.text or "").strip()
        if text:
            sources.setdefault(text, []).append(Source(row.id, row.method, row.model, row.version))
    if len(sources) < 2:
        raise UsageError(
            f"neuron {neuron} has {len(sources) or 'no'} explanation{'' if sources else 's'} to "
            "compare, and rating takes two that differ; explain it by another method or model"
        )
    texts = [ShownText(text, tuple(own)) for text, own in sources.items()]
    texts = sorted(texts, key=lambda each: _drawn(seed, neuron, each.sources[0].id))[:most]
    texts.sort(key=lambda each: _drawn(seed, rater, neuron, each.sources[0].id))
    excerpts: dict[str, list[int]] = {kind: [] for kind in _EXEMPLARS}
    for sample in samples(record):
        own_kind = "top" if sample.top else "random"
        if len(excerpts[own_kind]) < _EXEMPLARS[own_kind]:
            excerpts[own_kind].append(sample.excerpt)
    unjudged = Judgement("", ())
    return _task(record, Rating(neuron, rater, unjudged, tuple(texts), excerpts, seed))


def former_task(run: Run, rating: Rating) -> Task:
    """What a rater was shown, once more, whatever became of the explanations since."""
    return _task(run.neuron(rating.neuron), rating)


def _task(record: NeuronRecord, rating: Rating) -> Task:
    exemplars = list(_exemplars(record, rating.excerpts))
    return Task(rating, exemplars, max(record.statistics.maximum, 0.0), record.skip)


def _exemplars(
    record: NeuronRecord, excerpts: Mapping[str, Iterable[int]]
) -> Iterable[ShownExemplar]:
    for kind in _EXEMPLARS:
        kept = {exemplar.excerpt: exemplar for exemplar in getattr(record, kind)}
        yield from (ShownExemplar(kind, kept[id_]) for id_ in excerpts[kind] if id_ in kept)


def _drawn(*of: object) -> int:
    """A number drawn by all of these, for an order by chance that is the same each time."""
    return xxhash.xxh3_64_intdigest("\n".join(map(str, of)).encode())
