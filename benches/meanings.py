"""How many neurons of a run have several meanings, and what a second one adds; no language model.

    python benches/meanings.py RUN [--neurons 1000] [--quantiles 100] [--show 20]

1. The exemplars of neurons drawn at random are put into clusters, of the top ones alone, and for a
   part of them (`--quantiles`) with those by quantiles, on which the subject is run.
2. Where there are two, each meaning is worded by the form that stands at most of its peaks, and
   simulated as 10 at such a token, else 0. The text of the first meaning alone, and that of both,
   are scored on the test split as any explanation is; so is a control, whose second word is that
   of the next such neuron.
3. The puzzles, of which each has one meaning, are put into clusters too.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fastexplain import NeuronId, open_run
from fastexplain.explainers.exemplars import ByQuantile, exemplars_of
from fastexplain.explainers.meanings import Peak, clusters, driver_of, joined
from fastexplain.pipeline.simulating import simulate
from fastexplain.puzzles.texts import load
from fastexplain.records import Exemplar, NeuronRecord
from fastexplain.run.directory import Run
from fastexplain.run.selection import select_neurons
from fastexplain.run.splits import samples
from fastexplain.run.subjects import load_subject_of
from fastexplain.scorers.correlation import Correlation

MOST = 4


class Forms:
    """Simulates 10 for every form of the explanation's word."""

    model, version = "forms", "1"

    def simulate(self, explanation: str, tokens: Sequence[str]) -> list[float]:
        return [10.0 * (driver_of(token) == explanation) for token in tokens]


def word(cluster: Sequence[Exemplar], skip: int) -> str:
    """What stands at most of the peaks; of equals, at the strongest."""
    return Counter(Peak(each, skip).driver for each in cluster).most_common(1)[0][0]


def score(record: NeuronRecord, text: str) -> float:
    """Correlation over top and random excerpts of the test split; 0 where it is undefined."""
    done = [
        replace(each, simulated=asyncio.run(simulate(Forms(), text, each.tokens)).values)
        for each in samples(record)
    ]
    rows = Correlation().score(record, text, done)
    return next(row.value for row in rows if row.split == "top_and_random") or 0.0


def by_quantiles(run: Run, neurons: Sequence[NeuronId]) -> Counter[int]:
    """Neurons by their number of meanings, with exemplars by quantiles."""
    choose = ByQuantile(run, lambda: load_subject_of(run))
    found: Counter[int] = Counter()
    for neuron in neurons:
        record = run.neuron(neuron)
        found[len(clusters(asyncio.run(choose(record)), run.skip, MOST))] += 1
    return found


def show(record: NeuronRecord, groups: Sequence[Sequence[Exemplar]]) -> None:
    print(record.id)
    for number, group in enumerate(groups, start=1):
        for each in group:
            place = record.skip + int(np.argmax(each.activations[record.skip :]))
            before = "".join(each.tokens[max(place - 8, 0) : place])
            value = each.activations[place]
            print(f"  {number} {value:6.2f}  {before!r} >> {each.tokens[place]!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--neurons", type=int, default=1000)
    parser.add_argument("--quantiles", type=int, default=100)
    parser.add_argument("--show", type=int, default=0)
    given = parser.parse_args()
    run = open_run(given.run)
    neurons = select_neurons(run, ["all"], sample=given.neurons, seed=0)
    found: Counter[int] = Counter()
    several = []
    for neuron in neurons:
        record = run.neuron(neuron)
        groups = clusters(exemplars_of(record), run.skip, MOST)
        found[len(groups)] += 1
        if len(groups) == 2:
            several.append((record, groups))
    for record, groups in several[: given.show]:
        show(record, groups)
    print(f"top: neurons by meanings {dict(sorted(found.items()))}")
    drawn = np.random.default_rng(0).permutation(len(neurons))[: given.quantiles].tolist()
    if drawn:
        counts = by_quantiles(run, [neurons[place] for place in drawn])
        print(f"quantiles: neurons by meanings {dict(sorted(counts.items()))}")
    puzzles = [puzzle.record() for puzzle in load()]
    counts = Counter(len(clusters(exemplars_of(each), each.skip, MOST)) for each in puzzles)
    print(f"puzzles by meanings {dict(sorted(counts.items()))}")
    words = [[word(group, run.skip) for group in groups] for _, groups in several]
    scores = np.array(
        [
            [
                score(record, text)
                for text in (
                    first,
                    joined([first, second]),
                    joined([first, words[(place + 1) % len(words)][1]]),
                )
            ]
            for place, ((record, _), (first, second)) in enumerate(zip(several, words, strict=True))
        ]
    )
    for name, column in zip(("first", "both", "first and another's"), scores.T, strict=True):
        print(f"{name}: mean score {column.mean():.3f}")
    for name, column in (("both", scores[:, 1]), ("first and another's", scores[:, 2])):
        gain = column - scores[:, 0]
        error = gain.std(ddof=1) / len(gain) ** 0.5
        print(
            f"{name} less first: {gain.mean():+.3f} (standard error {error:.3f}); better "
            f"{(gain > 1e-6).sum()}, worse {(gain < -1e-6).sum()} of {len(gain)}"
        )


if __name__ == "__main__":
    main()
