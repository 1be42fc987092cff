"""Which measures notice labels that are lost or added at random: `python benches/sanity.py RUN`.

1. All 48 puzzles under their true descriptions, simulated by the oracle.
2. 20 neurons of each layer of a run with tables, such as
   `fastexplain sweep smollm2 --corpus stdlib --excerpts 200 --out RUN`, under their lookup
   explanations.

Both on the test split: top and random excerpts, and the random ones alone. Recall and precision
stand beside the measures that scorers give, since each must miss one of the two: recall rises when
labels are added, precision does not fall when they are lost.
"""

from __future__ import annotations

import argparse

import numpy as np

import fastexplain
from fastexplain.explainers.lookup import simulate_by_lookup
from fastexplain.kernels import best_threshold, correlate, excerpt_sums, measures
from fastexplain.kernels.measuring import MEASURES, Binary
from fastexplain.puzzles.sanity import Measure, check
from fastexplain.puzzles.texts import load
from fastexplain.records import NeuronId
from fastexplain.results import Sample
from fastexplain.run.directory import Run
from fastexplain.run.splits import samples

_A_LAYER = 20

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def fit(true: np.ndarray, undisturbed: np.ndarray, thresholds: np.ndarray) -> Measure:
    """All measures, and recall and precision of labels.

    As in scores, a token is active from a tenth of the largest activation on. Here the linear
    calibration, and the threshold of F1, IoU and cosine, are of the same tokens, undisturbed.
    """
    largest = np.fmax.reduce(true, axis=(1, 2))
    active = true >= largest[:, None, None] / 10
    linear = correlate(np.maximum(true, 0), undisturbed)
    best = best_threshold(true, undisturbed, largest)

    def measured(simulated: np.ndarray) -> dict[str, np.ndarray]:
        calibrated = linear.intercept[:, None, None] + linear.slope[:, None, None] * simulated
        sums = excerpt_sums(true, simulated, Binary(largest, best, calibrated))
        found = dict(zip(MEASURES, measures(sums).T, strict=True))
        labelled = simulated > thresholds[:, None, None]
        hits = (active & labelled).sum(axis=(1, 2))
        with np.errstate(invalid="ignore", divide="ignore"):
            found["recall"] = hits / active.sum(axis=(1, 2))
            found["precision"] = hits / labelled.sum(axis=(1, 2))
        return found

    return measured


def stacked(neurons: list[list[Sample]]) -> Arrays:
    """True and simulated `[N, E, T]`, and which excerpts are top ones `[N, E]`; NaN where a neuron
    has fewer excerpts, or an excerpt fewer tokens."""
    excerpts = max(map(len, neurons))
    tokens = max(len(each.true) for own in neurons for each in own)
    true = np.full((len(neurons), excerpts, tokens), np.nan)
    simulated, top = true.copy(), np.zeros((len(neurons), excerpts), dtype=bool)
    for n, own in enumerate(neurons):
        for e, each in enumerate(own):
            true[n, e, : len(each.true)] = each.true
            simulated[n, e, : len(each.true)] = each.simulated
            top[n, e] = each.top
    return true, simulated, top


def of_puzzles() -> Arrays:
    """The oracle's simulations of true descriptions are the activations themselves."""
    found = []
    for puzzle in load():
        own = samples(puzzle.record())
        found.append([Sample(s.excerpt, s.top, s.true, s.true) for s in own])
    return stacked(found)


def of_run(run: Run) -> Arrays:
    found = []
    for layer in run.layers:
        for index in np.linspace(0, run.width(layer) - 1, _A_LAYER).astype(int):
            record = run.neuron(NeuronId(layer, int(index)))
            predicted = simulate_by_lookup(run, record)
            own = samples(record)
            found.append(
                [Sample(s.excerpt, s.top, s.true, predicted[s.excerpt][run.skip :]) for s in own]
            )
    return stacked(found)


def report(title: str, arrays: Arrays) -> None:
    true, simulated, top = arrays
    for split, out in (("top and random", np.zeros_like(top)), ("random", top)):
        hidden = np.where(out[:, :, None], np.nan, simulated)
        known = np.isfinite(hidden).any(axis=(1, 2))
        found = check(fit, np.where(np.isfinite(hidden), true, np.nan)[known], hidden[known])
        print(f"\n{title}, {split}\n")
        print("| measure | neurons | before | labels lost: drop | noticed in | labels added: drop |"
              " noticed in | notices |")  # fmt: skip
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
        for name, (lost, added) in found.items():
            both = {(True, True): "both", (True, False): "lost", (False, True): "added",
                    (False, False): "neither"}[lost.notices, added.notices]  # fmt: skip
            print(
                f"| {name} | {min(lost.neurons, added.neurons)} | {lost.before:.2f} | "
                f"{lost.drop:.3f} | {lost.share:.1%} | {added.drop:.3f} | {added.share:.1%} | "
                f"{both} |"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="directory of a run with tables")
    arguments = parser.parse_args()
    report("Puzzles, true descriptions", of_puzzles())
    report("Lookup explanations", of_run(fastexplain.open_run(arguments.run)))
