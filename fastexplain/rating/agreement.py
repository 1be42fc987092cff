"""Whether raters agree: Krippendorff's alpha for ordinal values.

1 is perfect agreement, 0 what chance would give, below 0 less than that. Source: Krippendorff 2011,
"Computing Krippendorff's Alpha-Reliability".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fastexplain.rating.pairs import pairs
from fastexplain.rating.resampling import Estimate, estimate, weights
from fastexplain.records import NeuronId
from fastexplain.run.ratings import GRADES, HIGHEST_GRADE, LOWEST_GRADE, Rating

_PREFERENCES = (-1, 0, 1)


class BetweenRaters(NamedTuple):
    """How well raters agree.

    Attributes:
        alpha: undefined where no two raters judged the same, or all values are one.
        units: how many comparisons, or texts, two raters or more judged.
        neurons: of how many neurons.
    """

    alpha: Estimate
    units: int
    neurons: int


def coincidences(counts: np.ndarray) -> np.ndarray:
    """Which values meet in each unit, by pairs of raters.

    The coincidence matrix o_ck of a unit with m values: every ordered pair of them counts
    1 / (m - 1). One with fewer than two values has none.

    Args:
        counts: float64 `[units, values]`, how many raters gave a unit each value.

    Returns:
        float64 `[units, values, values]`.
    """
    raters = counts.sum(axis=1)
    met = counts[:, :, None] * counts[:, None, :]
    places = np.arange(counts.shape[1])
    met[:, places, places] -= counts  # a value does not meet itself
    return met / np.maximum(raters - 1, 1)[:, None, None]


def ordinal_alpha(met: np.ndarray) -> np.ndarray:
    """Alpha, 1 - D_o / D_e, of values whose order alone means something.

    D_o is the mean of the squared difference d over the values that meet, and D_e over all pairs of
    values, whatever their unit. The difference of two values c < k is ordinal: the number of values
    from c to k, of c and k one half each: sum(n_c ... n_k) - (n_c + n_k) / 2.

    Args:
        met: float64 `[..., values, values]`, a sum over units of `coincidences`; in ascending order
            of values.

    Returns:
        float64 `[...]`; NaN where there are no values, or no two different ones.
    """
    numbers = met.sum(axis=-1)
    total = numbers.sum(axis=-1)
    middles = np.cumsum(numbers, axis=-1) - numbers / 2
    squared = (middles[..., :, None] - middles[..., None, :]) ** 2
    observed = (met * squared).sum(axis=(-2, -1))
    expected = (numbers[..., :, None] * numbers[..., None, :] * squared).sum(axis=(-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected > 0, 1 - (total - 1) * observed / expected, np.nan)


def agreement_on_order(ratings: Sequence[Rating]) -> BetweenRaters:
    """Alpha of which of two texts is better, by rankings and grades alike.

    A unit is two texts of a neuron, its value -1, 0 or 1. Ranks themselves would not do: those of
    tasks with two texts and with four lie differently, so that raters who judge by chance would
    seem to agree. Each unit is counted in both directions: which text is named first means nothing.
    """
    units: dict[tuple[NeuronId, Hashable], list[int]] = defaultdict(list)
    for each in pairs(ratings):
        for text, other, value in (
            (each.first.text, each.second.text, each.preference),
            (each.second.text, each.first.text, -each.preference),
        ):
            units[each.neuron, (text, other)].append(value)
    found = _between(units, _PREFERENCES)
    return found._replace(units=found.units // 2)


def agreement_on_grades(ratings: Sequence[Rating]) -> BetweenRaters:
    """Alpha of the grades that texts got; a unit is a text of a neuron."""
    units: dict[tuple[NeuronId, Hashable], list[int]] = defaultdict(list)
    for rating in ratings:
        if rating.judgement.kind == GRADES:
            for shown, grade in zip(rating.shown, rating.judgement.values, strict=True):
                units[rating.neuron, shown.text].append(grade)
    return _between(units, range(LOWEST_GRADE, HIGHEST_GRADE + 1))


def _between(
    units: Mapping[tuple[NeuronId, Hashable], list[int]], values: Sequence[int]
) -> BetweenRaters:
    judged = {unit: own for unit, own in units.items() if len(own) > 1}
    neurons = list(dict.fromkeys(neuron for neuron, _ in judged))
    if not neurons:
        return BetweenRaters(Estimate(None), 0, 0)
    counts = np.array([[own.count(value) for value in values] for own in judged.values()], float)
    place = {neuron: number for number, neuron in enumerate(neurons)}
    met = np.zeros((len(neurons), len(values), len(values)))
    np.add.at(met, [place[neuron] for neuron, _ in judged], coincidences(counts))
    resampled = ordinal_alpha(np.tensordot(weights(len(neurons)), met, axes=1))
    alpha = estimate(float(ordinal_alpha(met.sum(axis=0))), resampled, len(neurons))
    return BetweenRaters(alpha, len(judged), len(neurons))
