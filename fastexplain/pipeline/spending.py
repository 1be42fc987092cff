"""Where explaining gains most, in which order neurons are worth their cost, which is alike for all.

What a neuron's explanation by a language model is expected to gain is

1. how much its score may rise above the lookup's, which is free: to 1, as long as nothing else is
   known. Where a run has 30 neurons or more that a language model has explained, to what a line
   through their scores, over those of their lookups, says;
2. times how much the neuron matters: the root mean square a of its activations beside the mean m of
   its layer's, as a / (a + m). So a few neurons of huge activations don't outweigh all the others.

A limit that stops a call in this order has left out what would have gained least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastexplain.errors import UsageError
from fastexplain.records import NeuronId
from fastexplain.results import TOP
from fastexplain.run.directory import Run
from fastexplain.run.table import NeuronTable

if TYPE_CHECKING:
    from fastexplain.ledger.budget import Share
    from fastexplain.pipeline.models import Settings

_ENOUGH = 30  # explained neurons, for a line through their scores


@dataclass(frozen=True)
class Part:
    """Some neurons of a plan.

    Attributes:
        neurons: how many.
        lookup: mean score of their lookups, undefined ones as 0; None of no neurons.
        most, least: the largest and the smallest expected gain of one of them.
        gain: the sum of what is expected.
        cost: of explaining them at the most, in US dollars; None if a price is not known.
        requests: that it takes at the most.
    """

    neurons: int
    lookup: float | None
    most: float | None
    least: float | None
    gain: float
    cost: float | None
    requests: int


@dataclass(frozen=True)
class Spending:
    """A plan beside the limits of a call.

    Attributes:
        explained: the neurons that the limits allow for, at the most that each may take.
        left: the others from which something is expected.
        without: neurons from which nothing is.
        learned: explained neurons that the expectation goes by; 0 where there were too few.
    """

    explained: Part
    left: Part
    without: int
    learned: int


@dataclass(frozen=True, eq=False)
class Plan:
    """Neurons in the order in which they are worth explaining.

    Attributes:
        neurons: those from which something is expected, most first.
        gains: of each, float64 `[neurons]`.
        lookup: their lookups' scores, float64 `[neurons]`; 0 where undefined.
        without, learned: as in `Spending`.
    """

    neurons: list[NeuronId]
    gains: np.ndarray
    lookup: np.ndarray
    without: int
    learned: int

    def afforded(self, settings: Settings, total: Share) -> Spending:
        """How far the limits on cost and requests reach.

        Args:
            total: what all of these neurons take, as `estimate.rehearse` has it.
        """
        count = len(self.neurons)
        known = not total.unpriced
        reach = [float(count)]
        if settings.max_cost is not None and known and total.cost:
            reach.append(count * settings.max_cost / total.cost)
        if settings.max_requests is not None and total.requests:
            reach.append(count * settings.max_requests / total.requests)
        end = int(min(reach))

        def part(own: slice) -> Part:
            gains, lookup = self.gains[own], self.lookup[own]
            share = len(gains) / count if count else 0.0
            return Part(
                len(gains),
                float(lookup.mean()) if len(gains) else None,
                float(gains[0]) if len(gains) else None,
                float(gains[-1]) if len(gains) else None,
                float(gains.sum()),
                total.cost * share if known else None,
                round(total.requests * share),
            )

        return Spending(part(slice(end)), part(slice(end, None)), self.without, self.learned)


def plan(run: Run, neurons: Sequence[NeuronId], side: str = TOP) -> Plan:
    """Put neurons in the order of what explaining them is expected to gain.

    Raises:
        UsageError: the run's neurons are not explained by lookup, nothing is expected from any, or
            another side than the top is to be explained.
    """
    if side != TOP:
        raise UsageError("`by_need` goes by lookup's scores, which are of the top; leave it out")
    table = run.table()
    lookup, model = table["lookup_top_and_random"], table["model_top_and_random"]
    if np.isnan(lookup).all():
        raise UsageError(
            "what a language model may gain is told by the lookups' scores, and there are none; "
            f"first run: fastexplain explain {run.path}"
        )
    known = ~np.isnan(model)
    learned = int(known.sum())
    free = np.nan_to_num(lookup)
    if learned >= _ENOUGH and free[known].std() > 0:
        slope, start = np.polyfit(free[known], model[known], 1)
        expected = np.clip(start + slope * free, 0, 1)
    else:
        learned = 0
        expected = np.ones(len(free))
    gains = np.maximum(expected - np.maximum(free, 0), 0) * _matters(table)
    places = {
        (site, index): place
        for place, (site, index) in enumerate(
            zip(table["site"].tolist(), table["index"].tolist(), strict=True)
        )
    }
    rows = np.array([places[neuron.site, neuron.index] for neuron in neurons], np.int64)
    order = rows[np.argsort(-gains[rows], kind="stable")]
    worth = order[gains[order] > 0]
    if not len(worth):
        raise UsageError(
            f"nothing is expected to be gained from any of {len(rows):,} neurons: lookup explains "
            "them, or they are never active; leave out `by_need` to explain them all the same"
        )
    sites, indices = table["site"][worth].tolist(), table["index"][worth].tolist()
    return Plan(
        [NeuronId.of(site, index) for site, index in zip(sites, indices, strict=True)],
        gains[worth],
        free[worth],
        len(rows) - len(worth),
        learned,
    )


def _matters(table: NeuronTable) -> np.ndarray:
    """How much each neuron matters, float64 `[neurons]`, 0 to 1; 0 where it is never above 0."""
    size = np.sqrt(np.nan_to_num(table["mean"] ** 2 + table["variance"]))
    _, sites = np.unique(table["site"], return_inverse=True)
    means = (np.bincount(sites, size) / np.bincount(sites))[sites]
    whole = size + means
    share = np.divide(size, whole, out=np.zeros_like(size), where=whole > 0)
    return np.where(table["maximum"] > 0, share, 0.0)
