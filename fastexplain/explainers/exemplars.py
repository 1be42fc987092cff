"""Which exemplars an explainer is shown: the top ones, or also some from the whole distribution.

None of them scores an explanation: top ones are of the explanation split, and others belong to no
split and are not among those that the scorer `corpus` draws.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import numpy as np

from fastexplain.records import Exemplar, NeuronRecord
from fastexplain.run.directory import Run
from fastexplain.run.splits import EXPLANATION_RANKS
from fastexplain.run.strata import drawn

if TYPE_CHECKING:
    from fastexplain.subject.model import Subject

TOP, BY_QUANTILE = "top", "quantiles"
CHOICES = (TOP, BY_QUANTILE)

QUANTILES = 5

Choose = Callable[[NeuronRecord], Awaitable[list[Exemplar]]]
"""Gives the exemplars of a neuron to show, the strongest first."""


def exemplars_of(record: NeuronRecord) -> list[Exemplar]:
    """The top exemplars of the explanation split, best first."""
    return [record.top[rank] for rank in EXPLANATION_RANKS if rank < len(record.top)]


async def choose_top(record: NeuronRecord) -> list[Exemplar]:
    """See `Choose`: the top ones alone."""
    return exemplars_of(record)


class ByQuantile:
    """Chooses the top exemplars and up to five more, from the quantiles of the distribution.

    Their activations are not stored, so the subject runs on them, for each neuron by itself: in a
    batch with other excerpts values differ in their last bits, and a request that differs in one
    value would be sent, and paid for, again.

    Args:
        run: whose neurons are explained.
        load: gives the run's subject, when it is first wanted.
    """

    def __init__(self, run: Run, load: Callable[[], Subject]) -> None:
        self._run, self._load = run, load
        self._subject: Subject | None = None
        self._running = asyncio.Lock()

    async def __call__(self, record: NeuronRecord) -> list[Exemplar]:
        """See `Choose`.

        Raises:
            SubjectError: the subject can't be loaded, or is not the one that was swept.
            RunError: a file is missing or damaged.
        """
        ids = quantile_excerpts(self._run, record)
        found = exemplars_of(record)
        if ids:
            async with self._running:
                found += await asyncio.to_thread(self._read, record, ids)
        return sorted(found, key=lambda each: -float(each.activations[record.skip :].max()))

    def _read(self, record: NeuronRecord, ids: list[int]) -> list[Exemplar]:
        from fastexplain.subject.activations import activations_at  # imports torch

        if self._subject is None:
            self._subject = self._load()
        tokens = np.stack([self._run.excerpt(id_) for id_ in ids])
        places = np.arange(len(ids))[None]
        [activations] = activations_at(self._subject, tokens, [record.id], places)
        return [
            Exemplar(id_, own, self._run.token_texts(own.tolist()), values)
            for id_, own, values in zip(ids, tokens, activations, strict=True)
        ]


def quantile_excerpts(run: Run, record: NeuronRecord) -> list[int]:
    """The ids of up to five excerpts, from a neuron's weak ones to its strong ones.

    They are near the quantiles 0.1, 0.3, ... 0.9 of the largest activations of those excerpts that
    reach above 0 (2**-14, the histogram's first edge): kept ones of the bin that has the quantile,
    or of the next bins that have one. Those that score something are left out: all that are in the
    neuron's record, and what `strata.drawn` draws.

    Raises:
        RunError: a file is missing or damaged.
    """
    kept = record.statistics.histogram_excerpts
    used = {each.excerpt for each in [*record.top, *record.random]}
    if kept.shape[1] > 1:  # runs that keep fewer have no score over the corpus
        index = np.array([record.id.index])
        used |= set(drawn(run, record.id.site, index).ids[0].tolist())
    free = [[int(id_) for id_ in own if id_ >= 0 and id_ not in used] for own in kept]
    free[0] = []
    counts = record.statistics.histogram.astype(np.float64)
    counts[0] = 0
    below = np.cumsum(counts)
    found: list[int] = []
    for part in range(QUANTILES):
        wanted = int(np.searchsorted(below, (part + 0.5) / QUANTILES * below[-1]))
        nearest = sorted(
            (place for place, own in enumerate(free) if own),
            key=lambda place: (abs(place - wanted), -place),
        )
        if nearest:
            found.append(free[nearest[0]].pop(0))
    return found
