"""Does a measure notice when an explanation gets worse? Two checks.

An explanation labels tokens: those where it predicts more than half of its largest value. A measure
that is to be trusted has to fall

1. when half of the labels are lost, drawn at random: the explanation is too narrow,
2. when as many others are added, drawn at random: it is too broad.

Source: the missing and extra labels tests of NeuronEval (Oikarinen, Yan and Weng, ICML 2025), here
with simulated values in place of a concept's labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Measure = Callable[[np.ndarray], dict[str, np.ndarray]]
"""Values `[N]` by name, NaN undefined, of simulations `[N, E, T]`."""

Fit = Callable[[np.ndarray, np.ndarray, np.ndarray], Measure]
"""Makes measures for true activations `[N, E, T]`.

What these take beside, such as a calibration, is fitted on simulations of the same shape that are
not disturbed. The last are the thresholds `[N]` above which a token is labelled.
"""

# Of the neurons, the share for which a measure has to fall to be said to notice.
ENOUGH = 0.9

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Noticed:
    """What became of one measure under one disturbance.

    Attributes:
        neurons: where it is defined before and after.
        before: its mean over them.
        drop: by how much it falls, on average.
        share: of the neurons, those for which the mean drop is above two of its standard errors
            over the draws.
    """

    neurons: int
    before: float
    drop: float
    share: float

    @property
    def notices(self) -> bool:
        return self.share >= ENOUGH


def thresholds_of(simulated: np.ndarray) -> np.ndarray:
    """Half of each neuron's largest simulated value: a token above it is labelled; `[N]`."""
    return np.fmax.reduce(simulated, axis=(1, 2)) / 2


def lose(simulated: np.ndarray, threshold: float, rng: np.random.Generator) -> np.ndarray:
    """One neuron's simulation with half of its labels lost: they get its smallest value."""
    found, rest = simulated.copy(), np.fmin.reduce(simulated, axis=None)
    labelled = np.flatnonzero(simulated > threshold)
    found.flat[rng.choice(labelled, len(labelled) // 2, replace=False)] = rest
    return found


def add(simulated: np.ndarray, threshold: float, rng: np.random.Generator) -> np.ndarray:
    """One neuron's simulation with twice the labels: other tokens get the values of those."""
    found = simulated.copy()
    labelled = np.flatnonzero(simulated > threshold)
    others = np.flatnonzero(simulated <= threshold)  # not those that are missing
    count = min(len(labelled), len(others))
    places = rng.choice(others, count, replace=False)
    found.flat[places] = simulated.flat[rng.choice(labelled, count, replace=False)]
    return found


def check(
    fit: Fit, true: np.ndarray, simulated: np.ndarray, *, draws: int = 20, seed: int = 0
) -> dict[str, tuple[Noticed, Noticed]]:
    """Which measures notice that labels are lost, and that they are added.

    Args:
        fit: makes the measures.
        true, simulated: floating `[N, E, T]`, NaN where there is nothing. Neurons with fewer than
            two labels are left out.
        draws: how often labels are drawn.

    Returns:
        By measure, what became of it when labels were lost, and when they were added.
    """
    rng = np.random.default_rng(seed)
    thresholds = thresholds_of(simulated)
    enough = (simulated > thresholds[:, None, None]).sum(axis=(1, 2)) >= 2
    true, simulated, thresholds = true[enough], simulated[enough], thresholds[enough]
    measure = fit(true, simulated, thresholds)
    before = measure(simulated)
    found: list[dict[str, Noticed]] = []
    for change in (lose, add):
        after: dict[str, list[np.ndarray]] = {name: [] for name in before}
        for _ in range(draws):
            changed = [change(s, t, rng) for s, t in zip(simulated, thresholds, strict=True)]
            for name, values in measure(np.stack(changed)).items():
                after[name].append(values)
        found.append({name: _noticed(before[name], np.stack(after[name])) for name in before})
    lost, added = found
    return {name: (lost[name], added[name]) for name in before}


def _noticed(before: np.ndarray, after: np.ndarray) -> Noticed:
    """From values `[N]` and those of each draw, `[draws, N]`."""
    known = np.isfinite(before) & np.isfinite(after).all(axis=0)
    if not known.any():
        return Noticed(0, float("nan"), float("nan"), float("nan"))
    drops = before[known] - after[:, known]
    means = drops.mean(axis=0)
    errors = drops.std(axis=0) / np.sqrt(len(drops))
    return Noticed(
        int(known.sum()),
        float(before[known].mean()),
        float(means.mean()),
        float((means > 2 * errors + _ROUNDING).mean()),
    )
