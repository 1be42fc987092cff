"""What successive halving saves, and what it loses: candidates of which the worth can be computed.

The neurons, their texts and activations are those of a run. A neuron's candidates are lists drawn
from the entries of its lookup explanation, one to four at a time, so that they are partly right, as
a language model's are; a list is simulated word for word, which is free. For each choice of the
first excerpts it prints how many simulations a neuron takes, and the winners' mean correlation on
the test split, beside that of the first candidate and of the best by the test split itself.

    python benches/halving.py RUN [--neurons 300] [--candidates 8]
"""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import replace

import numpy as np

import fastexplain
from fastexplain.explainers.candidates import BestOf, most_simulations
from fastexplain.explainers.lookup import text_of
from fastexplain.puzzles.lookup import Lookup
from fastexplain.results import Explanation
from fastexplain.run.selection import select_neurons
from fastexplain.run.splits import HELD_OUT, samples
from fastexplain.scorers.correlation import Correlation

_LOOKUP = Lookup()


class Drawn:
    """Explains by its seed, from a neuron's candidates."""

    method, model, version = "model", "drawn", "1"

    def __init__(self, texts):
        self.texts = texts

    async def explain(self, record, *, temperature=0.0, seed=0):
        return Explanation(self.texts[seed])


async def predict(text, tokens):
    return np.asarray(_LOOKUP.simulate(text, tokens), np.float64)


def candidates(entries, count, rng):
    """Lists of one to four entries each, in the order of the whole list."""
    texts = []
    for _ in range(count):
        size = int(rng.integers(1, min(4, len(entries)) + 1))
        places = np.sort(rng.permutation(len(entries))[:size])
        texts.append(text_of([entries[place] for place in places]))
    return texts


def tested(record, text):
    """A text's correlation on the test split, 0 where it is undefined."""
    own = [replace(e, simulated=_LOOKUP.simulate(text, e.tokens)) for e in samples(record)]
    rows = Correlation().score(record, text, own)
    return next(row.value for row in rows if row.split == "top_and_random") or 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--neurons", type=int, default=300)
    parser.add_argument("--candidates", type=int, default=8)
    given = parser.parse_args()
    run = fastexplain.open_run(given.run)
    rng = np.random.default_rng(0)
    rows = {}
    with run.database(read_only=True) as database:
        for neuron in select_neurons(run, ["all"], sample=given.neurons):
            found = next((r for r in database.explanations(neuron) if r.method == "lookup"), None)
            entries = found.data if found and isinstance(found.data, list) else []
            if len(entries) < 4:
                continue
            record = run.neuron(neuron)
            texts = candidates(entries, given.candidates, rng)
            scores = {text: tested(record, text) for text in texts}
            rows.setdefault("first candidate", []).append(scores[texts[0]])
            rows.setdefault("best by test", []).append(max(scores.values()))
            for first in (1, 2, 4, None):
                way = BestOf(Drawn(texts), predict, "words", len(texts), first=first)
                best = asyncio.run(way.explain(record))
                rows.setdefault(first, []).append(scores[best.text])
    print(f"{len(rows[None])} neurons, {given.candidates} candidates each")
    full = np.array(rows[None])
    for name, values in rows.items():
        values = np.array(values)
        apart = values - full
        cost = ""
        if not isinstance(name, str):
            cost = f", {most_simulations(given.candidates, name, HELD_OUT)} simulations"
            name = f"first {name or 'all'}"
        error = apart.std(ddof=1) / np.sqrt(len(apart))
        print(f"{name:>16}: {values.mean():.3f}, {apart.mean():+.4f} ± {error:.4f} to all{cost}")


if __name__ == "__main__":
    main()
