"""Where explaining gains most, in which order neurons are worth their cost, which is alike for all.

What a neuron's explanation by a language model is expected to gain is

1. how much its score may rise above the lookup's, which is free: to 1, as long as nothing else is
   known. Where a run has 30 neurons or more that a language model has explained, to what a line
   through their scores, over those of their lookups, says;
2. times how much the neuron matters: the standard deviation a of its activations beside the mean m
   of its layer's, as a / (a + m). So a few neurons of huge activations don't outweigh all the
   others, and one that is always active alike, of which nothing is to be predicted, does not come
   first. Where the run has its neurons' weights, a is taken times the spread over the vocabulary of
   what a unit of activation adds to the logits.

A lookup whose score is undefined explains nothing, and counts as 0.

A limit that stops a call in this order has left out what would have gained least.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastexplain.errors import UsageError
from fastexplain.ledger.speed import requests_a_minute
from fastexplain.records import NeuronId
from fastexplain.results import TOP
from fastexplain.run.directory import Run
from fastexplain.run.table import NeuronTable
from fastexplain.run.weights import stored_weights

if TYPE_CHECKING:
    from fastexplain.ledger.budget import Share
    from fastexplain.pipeline.models import Settings

_ENOUGH = 30  # explained neurons, for a line through their scores


@dataclass(frozen=True)
class Part:
    """Some neurons of a plan.

    Attributes:
        neurons: how many.
        lookup: mean score of their lookups, as far as they are defined; None where none is.
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
        known: neurons that a language model has explained, with a score that is defined.
        by_output: whether the output's weights tell how much neurons matter, or activity alone.
        a_minute: requests a minute, by which a limit on minutes was counted; None where no speed
            is known, so that the plan ignores such a limit.
    """

    explained: Part
    left: Part
    without: int
    learned: int
    known: int
    by_output: bool
    a_minute: float | None


@dataclass(frozen=True, eq=False)
class Plan:
    """Neurons in the order in which they are worth explaining.

    Attributes:
        neurons: those from which something is expected, most first.
        gains: of each, float64 `[neurons]`.
        lookup: their lookups' scores, float64 `[neurons]`; NaN where undefined.
        without, learned, known, by_output: as in `Spending`.
    """

    neurons: list[NeuronId]
    gains: np.ndarray
    lookup: np.ndarray
    without: int
    learned: int
    known: int = 0
    by_output: bool = False

    def afforded(self, settings: Settings, total: Share, speed: float | None = None) -> Spending:
        """How far the limits on cost, requests and minutes reach.

        Args:
            total: what all of these neurons take, as `estimate.rehearse` has it.
            speed: requests a minute, as `ledger.speed` has it.
        """
        speeds = (speed, settings.limits.get("requests_per_minute"))
        a_minute = min((float(each) for each in speeds if each is not None), default=None)
        count = len(self.neurons)
        known = not total.unpriced
        reach = [float(count)]
        if settings.max_cost is not None and known and total.cost:
            reach.append(count * settings.max_cost / total.cost)
        if settings.max_requests is not None and total.requests:
            reach.append(count * settings.max_requests / total.requests)
        if settings.max_minutes is not None and a_minute is not None and total.requests:
            reach.append(count * settings.max_minutes * a_minute / total.requests)
        end = int(min(reach))

        def part(own: slice) -> Part:
            gains, lookup = self.gains[own], self.lookup[own]
            share = len(gains) / count if count else 0.0
            return Part(
                len(gains),
                float(np.nanmean(lookup)) if np.isfinite(lookup).any() else None,
                float(gains[0]) if len(gains) else None,
                float(gains[-1]) if len(gains) else None,
                float(gains.sum()),
                total.cost * share if known else None,
                round(total.requests * share),
            )

        return Spending(
            part(slice(end)), part(slice(end, None)), self.without, self.learned, self.known,
            self.by_output, a_minute,
        )  # fmt: skip


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
    free = np.nan_to_num(lookup)
    known = ~np.isnan(model)
    learned = count = int(known.sum())
    if learned >= _ENOUGH and free[known].std() > 0:
        slope, start = np.polyfit(free[known], model[known], 1)
        expected = np.clip(start + slope * free, 0, 1)
    else:
        learned = 0
        expected = np.ones(len(free))
    output = _output_sizes(run)
    gains = np.maximum(expected - np.maximum(free, 0), 0) * _matters(table, output)
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
        lookup[worth],
        len(rows) - len(worth),
        learned,
        count,
        output is not None,
    )


def _output_sizes(run: Run) -> np.ndarray | None:
    """What a unit of activation adds to the logits: their spread, float64 `[neurons]`.

    None where the run has no weights, or has other units than MLP neurons.
    """
    weights = stored_weights(run)
    if weights is None or list(run.sites) != [str(layer) for layer in run.layers]:
        return None
    spreads = [
        weights.file(layer).read("output.spread", (slice(None),)).astype(np.float64)
        for layer in run.layers
    ]
    return np.concatenate(spreads)


def _matters(table: NeuronTable, output: np.ndarray | None) -> np.ndarray:
    """How much each neuron matters, float64 `[neurons]`, 0 to 1; 0 where it is never above 0."""
    size = np.sqrt(np.maximum(np.nan_to_num(table["variance"]), 0))
    if output is not None:
        size *= output
    _, sites = np.unique(table["site"], return_inverse=True)
    means = (np.bincount(sites, size) / np.bincount(sites))[sites]
    whole = size + means
    share = np.divide(size, whole, out=np.zeros_like(size), where=whole > 0)
    return np.where(table["maximum"] > 0, share, 0.0)


def speed_of(run: Run, models: Collection[str]) -> float | None:
    """Requests a minute that these models answered in a run; see `ledger.speed`."""
    with run.database(read_only=True) as database:
        return requests_a_minute(database, models)
