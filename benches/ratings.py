"""How often the intervals of `fastexplain ratings` hold the truth, by simulated raters.

    python benches/ratings.py

Explainers have known strengths; a neuron's ranking is drawn from Plackett and Luce's model, whose
pairs follow Bradley and Terry's. Alpha's truth is that of very many neurons. Of shares, each neuron
has its own, so that its three comparisons hang together.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "rating"))

from judging_people import ranked, ranking_by

from fastexplain.rating import resampling
from fastexplain.rating.agreement import agreement_on_order
from fastexplain.rating.pairs import pairs
from fastexplain.rating.resampling import share_of
from fastexplain.rating.strengths import strengths

TRIALS = 400
TRUTHS = {"two, even": (0.0, 0.0), "two, 73%": (0.5, -0.5), "four": (1.0, 0.3, -0.2, -1.1),
          "three, far apart": (2.0, 0.0, -2.0)}  # fmt: skip
NAMES = "abcd"


def strength_coverage(rng: np.random.Generator, neurons: int, truth: np.ndarray) -> float:
    held = []
    for _ in range(TRIALS):
        ratings = [ranked(n, "x", ranking_by(rng, truth)) for n in range(neurons)]
        found = {row.explainer[1]: row.strength for row in strengths(pairs(ratings))}
        held += [
            found[name].low <= value <= found[name].high
            for name, value in zip(NAMES, truth, strict=False)
        ]
    return float(np.mean(held))


def alpha_coverage(rng: np.random.Generator, neurons: int, right: float) -> float:
    def drawn(count: int) -> list:
        return [
            ranked(n, rater, (1, 2) if (rng.random() < right) ^ (n % 2) else (2, 1))
            for n in range(count)
            for rater in "xyz"
        ]

    truth = agreement_on_order(drawn(20_000)).alpha.value
    found = [agreement_on_order(drawn(neurons)).alpha for _ in range(TRIALS)]
    return float(np.mean([each.low <= truth <= each.high for each in found]))


def share_coverage(rng: np.random.Generator, neurons: int, share: float) -> float:
    held = []
    for _ in range(10 * TRIALS):
        own = rng.beta(share * 4, (1 - share) * 4, neurons)
        found = share_of(rng.binomial(3, own).astype(float), np.full(neurons, 3.0))
        held.append(found.low <= share <= found.high)
    return float(np.mean(held))


def main() -> None:
    rng = np.random.default_rng(0)
    resampling.LEAST = 2  # to see what intervals of fewer would be worth
    for neurons in (12, 20, 40):
        for name, values in TRUTHS.items():
            before = time.perf_counter()
            covered = strength_coverage(rng, neurons, np.array(values))
            seconds = (time.perf_counter() - before) / TRIALS
            print(f"strengths, {neurons} neurons, {name}: {covered:.1%} ({seconds:.3f} s each)")
        for right in (0.6, 0.8, 0.95):
            covered = alpha_coverage(rng, neurons, right)
            print(f"alpha, {neurons} neurons, three raters right in {right:.0%}: {covered:.1%}")
        for share in (0.5, 0.7, 0.95):
            covered = share_coverage(rng, neurons, share)
            print(f"share, {neurons} neurons, {share:.0%} alike: {covered:.1%}")


if __name__ == "__main__":
    main()
