"""How well simulated activations follow the true ones, over each set of a split's excerpts.

The sets are `random_only`, `top_only` and `top_and_random`: the method's headline, over the top
excerpts and as many random ones as a split has for it (five), however many more there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from fastexplain.kernels import bootstrap, excerpt_sums, measures
from fastexplain.kernels.measuring import MEASURES, Binary, interval_share
from fastexplain.results import Mean, Measured, Sample
from fastexplain.run.splits import RANDOM_EXCERPTS

SETS = ("random_only", "top_and_random", "top_only")

# A score that rests on less of its excerpts' tokens says so.
_ENOUGH = 0.9

CALIBRATED = ("r_squared", "deviation_explained")
"""Measures that take calibrated values."""


@dataclass(frozen=True)
class Agreement:
    """What is measured of N neurons over one set of excerpts; K is len(MEASURES).

    Attributes:
        split: the set's name.
        values, low, high: float64 `[N, K]`, NaN where undefined; the ends of 95% intervals.
        excerpts: int64 `[N]`, how many have a simulation.
        share: float64 `[N]`, the part of the tokens of all simulated excerpts, whatever the set,
            that have a simulated value.
        active: bool `[N]`, whether any token is active; False where that is unknown.
        totals, counts: `[D, K]`, as in `kernels.measuring.Bootstrap`.
    """

    split: str
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    excerpts: np.ndarray
    share: np.ndarray
    active: np.ndarray
    totals: np.ndarray
    counts: np.ndarray

    def measured(
        self,
        neuron: int,
        names: Sequence[str],
        lacking: Mapping[str, str] = MappingProxyType({}),
    ) -> list[Measured]:
        """One neuron's rows, by the measures' names.

        Args:
            lacking: by a measure's name, why it could not be taken.
        """
        rows = []
        excerpts, share = int(self.excerpts[neuron]), float(self.share[neuron])
        lacks = None
        if share < _ENOUGH:
            lacks = f"rests on {share:.0%} of the tokens: the others have no simulated value"
        ends = self.values[neuron].tolist(), self.low[neuron].tolist(), self.high[neuron].tolist()
        numbers = dict(zip(MEASURES, zip(*ends, strict=True), strict=True))
        for name in names:
            # NaN, the one number that is not itself, is undefined.
            value, low, high = (each if each == each else None for each in numbers[name])
            reason = lacks
            if value is None and excerpts:
                reason = lacking.get(name) or self._why_undefined(name, neuron)
            elif value is None:
                reason = "no excerpt was simulated"
            rows.append(Measured(self.split, name, value, excerpts, low, high, reason))
        return rows

    def _why_undefined(self, name: str, neuron: int) -> str:
        if name in ("correlation", "raw_correlation", "spearman"):
            return "one side has no variance"
        if name in CALIBRATED:
            return "the true activations have no variance"
        if not self.active[neuron]:
            return "no token is active"
        return "no token is predicted to be active"


def agreement(
    true: np.ndarray,
    simulated: np.ndarray,
    top: np.ndarray,
    binary: Binary | None = None,
    sets: Sequence[str] = SETS,
) -> list[Agreement]:
    """Measure N neurons over each of the sets.

    Args:
        true, simulated: floating `[N, E, T]`, of counted tokens; NaN where one is missing.
        top: bool `[N, E]`, whether an excerpt is a top one.
        binary: as for `kernels.excerpt_sums`.
    """
    known = ~np.isnan(simulated)
    there = known.any(axis=2)
    share = known.sum(axis=(1, 2)) / np.maximum(there.sum(axis=1) * true.shape[2], 1)
    paired = top | (np.cumsum(there & ~top, axis=1) <= RANDOM_EXCERPTS)
    chosen = {"random_only": ~top, "top_and_random": paired, "top_only": top}
    found = []
    for name in sets:
        own = there & chosen[name]
        # No excerpt outside of the set, for any neuron, is looked at.
        used = own.any(axis=0)
        own, kinds = own[:, used], top[:, used]
        part = np.where(own[:, :, None], simulated[:, used], np.nan)
        judged = binary and binary._replace(calibrated=binary.calibrated[:, used])
        sums = excerpt_sums(true[:, used], part, judged)
        ends = bootstrap(sums, kinds)
        found.append(
            Agreement(
                name, measures(sums), ends.low, ends.high, own.sum(axis=1), share,
                ((sums.ranked >= 0) & (sums.ranked & 2 > 0)).any(axis=1),
                ends.totals, ends.counts,
            )
        )  # fmt: skip
    return found


def stacked(excerpts: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One neuron's excerpts as `agreement` takes them; without simulation all NaN."""
    shape = (1, len(excerpts), max((len(each.true) for each in excerpts), default=0))
    true, simulated = np.full((2, *shape), np.nan)
    for place, each in enumerate(excerpts):
        true[0, place, : len(each.true)] = each.true
        if each.simulated is not None:
            simulated[0, place, : len(each.true)] = each.simulated
    return true, simulated, np.array([[each.top for each in excerpts]], bool).reshape(shape[:2])


class Means:
    """Means over neurons, with their intervals over the choice of excerpts, from parts of a run.

    Neurons share their random excerpts, so that a mean over thousands is no surer than these few.
    A resample draws the same for all neurons; the interval is that of the resamples' means, as
    `kernels.bootstrap` has it of a neuron.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], list[np.ndarray]] = {}
        self._excerpts: dict[str, tuple[int, int]] = {}

    def add(self, site: str, found: Sequence[Agreement], top: np.ndarray) -> None:
        """Add a site's neurons; `top` is that of `agreement`."""
        tops = int(top.sum(axis=1).max(initial=0))
        for each in found:
            most = int(each.excerpts.max(initial=0))
            own_tops = 0 if each.split == "random_only" else min(tops, most)
            self._excerpts[each.split] = (own_tops, most - own_tops)
            there = ~np.isnan(each.values)
            values = np.where(there, each.values, 0).sum(axis=0)
            parts = [values, there.sum(axis=0), each.totals, each.counts]
            for name in (site, ""):
                before = self._sums.setdefault((name, each.split), [0 * part for part in parts])
                for total, part in zip(before, parts, strict=True):
                    total += part

    def rows(self, names: Sequence[str]) -> list[Mean]:
        """The means of these measures, of each site and of the whole run."""
        rows = []
        for (site, split), (values, neurons, totals, counts) in self._sums.items():
            share = interval_share(*self._excerpts[split])
            for name in names:
                own = MEASURES.index(name)
                if not neurons[own]:
                    continue
                low = high = None
                if share > 0 and counts[:, own].all():
                    means = totals[:, own] / counts[:, own]
                    low, high = np.quantile(means, [share, 1 - share]).tolist()
                count, mean = int(neurons[own]), float(values[own] / neurons[own])
                rows.append(Mean(site, split, name, count, mean, low, high))
        return rows
