"""Does the score over the whole corpus hold what it says? `python benches/corpus_score.py RUN`

Or `--planted`, for neurons of known distributions: from frequent to rare, with tails from light to
heavy.

For sampled neurons of a run the subject runs over all of its excerpts, and the lookup predicts each
from tables that forget it: so the correlation, and the area under the precision-recall curve, over
the whole corpus are known. Beside them stand the estimates from the excerpts that the sweep kept,
and those that sweeps with other seeds of the hash would have kept. Printed: bias, root mean square
error, the share of intervals that hold the truth, their width.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import checkout  # first: it makes fastexplain importable
import numpy as np

sys.path.insert(0, str(checkout.ROOT / "tests"))

from populations import kept_by
from programmed import rare_and_heavy

from fastexplain import Corpus, NeuronId, Run, open_run, sweep
from fastexplain.explainers.lookup import predict_by_lookup
from fastexplain.run.splits import EXPLANATION_RANKS
from fastexplain.run.strata import Drawn, draw, drawn
from fastexplain.run.subjects import load_subject_of
from fastexplain.scorers.corpus import scales_of
from fastexplain.scorers.stratified import Estimates, Places, average_precisions, correlations
from fastexplain.subject.activations import activations_at


def report(run: Run, neurons: list[NeuronId], acts: np.ndarray, seeds: int) -> None:
    """Print how estimates and truths compare; `acts` are the true ones, float32 `[N, S, T]`."""
    layers = np.array([neuron.layer for neuron in neurons])
    indices = np.array([neuron.index for neuron in neurons])
    every = np.arange(acts.shape[1], dtype=np.int32)
    predicted, scales = np.empty_like(acts), np.empty(len(neurons), np.float32)
    explained = np.empty((len(neurons), len(EXPLANATION_RANKS)), np.int32)
    own_draws: dict[int, Drawn] = {}
    for layer in np.unique(layers).tolist():
        own = layers == layer
        ids = np.broadcast_to(every, (own.sum(), len(every)))
        predicted[own] = predict_by_lookup(run, layer, indices[own], ids, acts[own])
        scales[own] = scales_of(run, layer, indices[own])
        explained[own] = run.array(layer, "top.ids")[indices[own]][:, EXPLANATION_RANKS]
        own_draws[layer] = drawn(run, layer, indices[own])
    largest = acts[:, :, run.skip :].max(axis=2)
    rows = np.arange(len(neurons))[:, None]
    true, predicted = np.maximum(acts[:, :, run.skip :], 0), predicted[:, :, run.skip :]
    active = (true >= 0.1 * scales[:, None, None]) & (scales > 0)[:, None, None]

    def measured(places: Places, ids: np.ndarray, of: np.ndarray = rows) -> list[Estimates]:
        return [
            correlations(true[of, ids], predicted[of, ids], places),
            average_precisions(active[of, ids], predicted[of, ids], places),
        ]

    truths = [np.full(len(neurons), np.nan) for _ in range(2)]
    for neuron, own in enumerate(explained):
        others = np.setdiff1d(every, own)
        x, y = true[neuron, others].ravel(), predicted[neuron, others].ravel()
        if x.min() < x.max() and y.min() < y.max():
            truths[0][neuron] = np.corrcoef(x, y)[0, 1]
        truths[1][neuron] = _average_precision(active[neuron, others].ravel(), y)
    found: list[list[Estimates]] = []
    for seed in range(seeds):
        histogram, kept, random = kept_by(largest, seed)
        explained_largest = np.take_along_axis(largest, explained, axis=1)
        one = draw(histogram, kept, random, largest[:, random], explained, explained_largest, seed)
        found.append(measured(Places(one.strata, one.sizes), one.ids))
        if seed == 0:
            counts = (one.ids >= 0).sum(axis=1)
            print(f"{counts.mean():.1f} excerpts a neuron, from {counts.min()} to {counts.max()}")
    sweeps = []
    for layer, one in own_draws.items():
        of = np.flatnonzero(layers == layer)[:, None]
        sweeps.append(measured(Places(one.strata, one.sizes), one.ids, of))
    stored = [
        [Estimates(*(np.concatenate(x) for x in zip(*(s[k] for s in sweeps), strict=True)))]
        for k in range(2)
    ]
    order = np.concatenate([np.flatnonzero(layers == layer) for layer in own_draws])
    for k, name in enumerate(("correlation", "AUPRC")):
        print(f"{name}: mean truth {np.nanmean(truths[k]):.4f}")
        _print("  the run's own draw", stored[k], truths[k][order])
        _print(f"  {seeds} other draws", [each[k] for each in found], truths[k])


def report_planted(path: Path, seeds: int, count: int = 120, excerpts: int = 1000) -> None:
    """Sweep planted neurons, and report of rare and of frequent, of light and of heavy ones."""
    subject, frequency = rare_and_heavy(count)
    rng = np.random.default_rng(1)
    tokens = rng.choice(len(frequency), (excerpts, 64), p=frequency).astype(np.int32)
    run = sweep(subject, Corpus.from_excerpts(tokens), path)
    every = np.arange(excerpts)[None]
    kurtosis, active = (run.statistics(0)[name] for name in ("kurtosis", "fraction_positive"))
    for name, chosen in (
        ("frequent, above 0 on 2% of tokens or more", active >= 0.02),
        ("rare", active < 0.02),
        ("light tails, kurtosis below its median", kurtosis < np.median(kurtosis)),
        ("heavy tails", kurtosis >= np.median(kurtosis)),
    ):
        neurons = [NeuronId(0, int(index)) for index in np.flatnonzero(chosen)]
        print(f"{len(neurons)} neurons, {name}")
        acts = activations_at(subject, tokens, neurons, np.repeat(every, len(neurons), axis=0))
        report(run, neurons, acts, seeds)


def _average_precision(active: np.ndarray, simulated: np.ndarray) -> float:
    """Of bool and floating `[n]`; tokens of one value come at once."""
    values, which = np.unique(-simulated, return_inverse=True)
    found = np.bincount(which, weights=active, minlength=len(values))
    hits, seen = np.cumsum(found), np.cumsum(np.bincount(which, minlength=len(values)))
    return float((found * hits / seen).sum() / hits[-1]) if hits[-1] else np.nan


def _print(name: str, draws: list[Estimates], truth: np.ndarray) -> None:
    value, error, low, high = (np.stack([getattr(d, n) for d in draws]) for n in Estimates._fields)
    there = ~(np.isnan(value) | np.isnan(truth) | np.isnan(low))
    off = np.where(there, value - truth, np.nan)
    by_neuron = np.nanmean(off[:, there.any(axis=0)], axis=0)
    spread = by_neuron.std() / np.sqrt(len(by_neuron))
    covered = ((low <= truth) & (truth <= high))[there].mean()
    print(
        f"{name}: bias {np.nanmean(off):+.4f} (standard error {spread:.4f}), error "
        f"{np.sqrt(np.nanmean(off**2)):.4f}, said {np.sqrt(np.nanmean(error[there] ** 2)):.4f}, "
        f"intervals hold {covered:.1%}, median width {np.median((high - low)[there]):.3f}, "
        f"defined {there.mean():.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", help="a run's directory")
    parser.add_argument("--planted", action="store_true", help="120 planted neurons in its place")
    parser.add_argument("--neurons", type=int, default=8, help="of each layer")
    parser.add_argument("--layers", type=int, nargs="*", help="all by default")
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    if (options.run is None) != options.planted:
        parser.error("give a run, or --planted")
    if options.planted:
        with tempfile.TemporaryDirectory() as folder:
            report_planted(Path(folder) / "run", options.seeds)
        return
    run, rng = open_run(options.run), np.random.default_rng(0)
    neurons = [
        NeuronId(layer, int(index))
        for layer in options.layers or run.layers
        for index in np.sort(rng.choice(run.width(layer), options.neurons, replace=False))
    ]
    every = np.broadcast_to(np.arange(len(run.excerpts)), (len(neurons), len(run.excerpts)))
    acts = activations_at(load_subject_of(run), run.excerpts, neurons, every)
    report(run, neurons, acts, options.seeds)


if __name__ == "__main__":
    main()
