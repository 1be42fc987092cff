"""Which explainers people prefer: strengths in the model of Bradley and Terry.

Explainer i is preferred to j with the odds p_i : p_j. Strengths are logarithms of p, with a mean of
0: a difference of 1 is odds of 2.7, or 73%. A tie counts as half a preference for each. So that
strengths stay finite where one is always preferred, each two explainers that were compared count as
compared once more, with a tie.

Found by the MM algorithm, which increases the likelihood at each step: Hunter 2004, "MM algorithms
for generalized Bradley-Terry models", Annals of Statistics 32, equation (3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fastexplain.rating.pairs import Pair
from fastexplain.rating.resampling import Estimate, estimate, weights
from fastexplain.records import NeuronId

_CLOSE = 1e-9  # the largest change of a strength in a step at which it is found
_STEPS = 10_000

Explainer = tuple[str, str, str]
"""Method, model and version."""


class Strength(NamedTuple):
    """What people's preferences say of an explainer.

    Attributes:
        explainer: method, model and version.
        strength: see above; over the explainers of its group.
        preferred: the share of its comparisons in which it was preferred, ties as one half.
        wins, ties, losses: in comparisons with all others.
        neurons: of how many neurons.
        group: from 0 on. Explainers of different groups were never compared, directly or through
            others, so that their strengths don't compare.
    """

    explainer: Explainer
    strength: Estimate
    preferred: float
    wins: int
    ties: int
    losses: int
    neurons: int
    group: int


def strengths(pairs: Sequence[Pair]) -> list[Strength]:
    """The explainers that were compared, group by group, the strongest first.

    Texts of several explainers are a comparison of each of them with the other text's; explainers
    that say the same are not compared with each other.
    """
    names, neurons, tallies = _tallies(pairs)
    if not names:
        return []
    wins, ties = tallies.sum(axis=0)
    compared = wins + wins.T + ties
    group = groups(compared)
    found = log_strengths(wins, ties, group)
    again = np.tensordot(weights(len(neurons)), tallies, axes=1)
    resampled = log_strengths(again[:, 0], again[:, 1], group, compared)
    rows = []
    for place, name in enumerate(names):
        won, lost, tied = (int(each.sum()) for each in (wins[place], wins[:, place], ties[place]))
        own = tallies[:, :, place].sum(axis=(1, 2)) + tallies[:, 0, :, place].sum(axis=1)
        seen = int((own > 0).sum())
        rows.append(
            Strength(
                name,
                estimate(found[place], resampled[:, place], seen),
                (won + tied / 2) / (won + tied + lost),
                *(won, tied, lost, seen, int(group[place])),
            )
        )
    return sorted(rows, key=lambda row: (row.group, -(row.strength.value or 0.0), row.explainer))


def log_strengths(
    wins: np.ndarray, ties: np.ndarray, group: np.ndarray, compared: np.ndarray | None = None
) -> np.ndarray:
    """Strengths, float64 `[..., K]`, with a mean of 0 in each group.

    Args:
        wins: float64 `[..., K, K]`, how often the row's explainer was preferred to the column's.
        ties: float64 `[..., K, K]`, symmetric.
        group: int `[K]`, as of `groups`.
        compared: float64 `[K, K]`, above 0 for those that count as compared once more; those that
            are compared, if None.
    """
    compared = wins + np.swapaxes(wins, -1, -2) + ties if compared is None else compared
    won = wins + ties / 2 + (compared > 0) / 2
    numbers = won + np.swapaxes(won, -1, -2)
    total = won.sum(axis=-1)
    found = np.zeros(total.shape)
    for _ in range(_STEPS):
        p = np.exp(found)
        step = np.log(total / (numbers / (p[..., :, None] + p[..., None, :])).sum(axis=-1))
        for number in range(int(group.max()) + 1):
            own = group == number
            step[..., own] -= step[..., own].mean(axis=-1, keepdims=True)
        change = np.abs(step - found).max(initial=0)
        found = step
        if change < _CLOSE:
            break
    return found


def groups(compared: np.ndarray) -> np.ndarray:
    """Numbers of the groups of explainers that are compared directly or through others.

    Args:
        compared: float64 `[K, K]`, symmetric, above 0 for those that are.
    """
    found = np.full(len(compared), -1)
    for start in range(len(compared)):
        if found[start] < 0:
            number, waiting = found.max() + 1, [start]
            while waiting:
                place = waiting.pop()
                if found[place] < 0:
                    found[place] = number
                    waiting += np.flatnonzero(compared[place]).tolist()
    return found


def _tallies(pairs: Sequence[Pair]) -> tuple[list[Explainer], list[NeuronId], np.ndarray]:
    """Explainers, neurons, and float64 `[neurons, 2, K, K]`: preferences, and ties (symmetric)."""
    met = [
        (pair, left[1:], right[1:])
        for pair in pairs
        for left in pair.first.sources
        for right in pair.second.sources
        if left[1:] != right[1:]
    ]
    names = sorted({name for _, *two in met for name in two})
    neurons = list(dict.fromkeys(pair.neuron for pair, *_ in met))
    rows = {neuron: number for number, neuron in enumerate(neurons)}
    tallies = np.zeros((len(neurons), 2, len(names), len(names)))
    for pair, left, right in met:
        own, first, second = rows[pair.neuron], names.index(left), names.index(right)
        if pair.preference == 0:
            tallies[own, 1, first, second] += 1
            tallies[own, 1, second, first] += 1
        else:
            winner, loser = (first, second) if pair.preference > 0 else (second, first)
            tallies[own, 0, winner, loser] += 1
    return names, neurons, tallies
