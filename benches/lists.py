"""What a list of entries is worth: the strongest ones, the chosen ones and the whole table.

    python benches/lists.py RUN                        held out of the run's own test excerpts
    python benches/lists.py RUN --text stdlib          on excerpts that the run has not seen

On the run's own excerpts a list is chosen and its means are estimated without the neuron's test
excerpts, either way. On other text it is as `explain` stores it; the strongest are those of the
whole table, as they were listed before. There the means of the entries are looked at too: how many
are below a quarter of what the list says.

A list that says the same of all tokens counts as 0: else a list would gain by saying nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import checkout  # noqa: F401, first: it makes fastexplain importable
import numpy as np

import fastexplain.kernels as kernels
from fastexplain import Corpus, NeuronId, Run, open_run
from fastexplain.explainers.lists import ShownLists, second_rows, shortened
from fastexplain.explainers.lookup import layer_tables, split_excerpts
from fastexplain.kernels.cpu.lists import choose
from fastexplain.kernels.scalars import pair_estimate, token_estimate
from fastexplain.kernels.summary import HeldOut, LookupTables
from fastexplain.run.splits import RANDOM_EXCERPTS
from fastexplain.run.subjects import load_subject_of
from fastexplain.subject.activations import activations_at

_PAIR_GAIN = 1.5  # a pair was listed where it was so much stronger than its token alone
_FALSE = 0.25  # of a claimed mean
_TOPS = 5


def strongest(tables: LookupTables, held_out: HeldOut, second: np.ndarray, count: int):
    """The rows with the largest estimates, as lists were made before: `ShownLists`, not rounded."""
    known = len(tables.token_counts)
    sums = np.concatenate([tables.token_sums, tables.pair_sums]).T.astype(np.float64)
    counts = np.concatenate([tables.token_counts, tables.pair_counts])
    left = np.repeat(counts[None].astype(np.float64), len(sums), axis=0)
    total, tokens = tables.positive_sums.copy(), np.full(len(sums), float(tables.count))
    for neuron, ids in enumerate(held_out.ids):
        for place in np.flatnonzero(ids >= 0):
            values = np.maximum(held_out.activations[neuron, place, held_out.skip :], 0)
            total[neuron] -= values.sum(dtype=np.float64)
            tokens[neuron] -= len(values)
            for rows, first in ((held_out.token_rows, 0), (held_out.pair_rows, known)):
                own = rows[ids[place], held_out.skip :]
                np.subtract.at(sums[neuron], first + own[own >= 0], values[own >= 0])
                np.subtract.at(left[neuron], first + own[own >= 0], 1)
    sums = np.where(left > 0, np.maximum(sums, 0), 0)
    mean = (total / np.maximum(tokens, 1))[:, None]
    alone = token_estimate(sums[:, :known], left[:, :known], mean)
    around = np.where(second >= 0, alone[:, second], mean)
    pairs = pair_estimate(sums[:, known:], left[:, known:], around)
    worth = np.hstack([alone * (alone > mean), pairs * (pairs > _PAIR_GAIN * around)])
    rows = np.argsort(-worth, axis=1, kind="stable")[:, :count]
    means = np.take_along_axis(worth, rows, axis=1)
    rows = np.where(means > 0, rows, -1).astype(np.int32)
    return ShownLists(
        rows, means, mean[:, 0], np.where(rows >= 0, np.take_along_axis(left, rows, 1), 0)
    )


def scores(true: np.ndarray, predicted: np.ndarray, top: np.ndarray) -> np.ndarray:
    """Mean correlations over top and random excerpts and over random ones, and undefined shares."""
    there = ~np.isnan(predicted).all(axis=2)
    paired = top | (np.cumsum(there & ~top, axis=1) <= RANDOM_EXCERPTS)
    found = []
    for own in (paired, ~top):
        part = np.where((own & there)[:, :, None], predicted, np.nan).astype(np.float32)
        values = kernels.correlate(np.maximum(true, 0), part).correlation
        found += [np.nan_to_num(values).mean(), np.isnan(values).mean()]
    return np.array(found)


def on_own_text(run: Run, layers: list[int], count: int) -> None:
    """Print scores on the run's test excerpts, held out from lists and tables."""
    rows, second = run.tables.rows(run.excerpts), second_rows(run.tables)
    found: dict[str, list[np.ndarray]] = {}
    seconds = {"table": 0.0, "list": 0.0}
    for layer in layers:
        tables = layer_tables(run, layer)
        tables = tables._replace(**{n: np.array(getattr(tables, n)) for n in tables._fields[:2]})
        ids, acts, top = split_excerpts(run, layer)
        excerpts = HeldOut(ids, acts, *rows, run.skip)
        started = time.process_time()
        by_table = kernels.lookup(tables, excerpts)
        seconds["table"] += time.process_time() - started
        started = time.process_time()
        chosen = shortened(choose(tables, excerpts, second, count=count), count)
        by_list = chosen.predict(excerpts, tables)
        seconds["list"] += time.process_time() - started
        before = strongest(tables, excerpts, second, count).predict(excerpts, tables)
        for name, each in (("strongest", before), ("chosen", by_list), ("table", by_table)):
            found.setdefault(name, []).append(scores(acts, each, top))
    for name, each in found.items():
        a, none_a, b, none_b = np.mean(each, axis=0)
        print(f"{name}: {a:.3f} ({none_a:.1%} undefined), random {b:.3f} ({none_b:.1%} undefined)")
    print(f"CPU seconds to predict by table {seconds['table']:.1f}, to choose and predict by list "
          f"{seconds['list']:.1f}")  # fmt: skip


def on_other_text(
    run: Run, layers: list[int], count: int, source: str, excerpts: int, neurons: int
) -> None:
    """Print scores and the entries' means on text that the run has not seen."""
    subject, rng = load_subject_of(run), np.random.default_rng(0)
    seen = {own.tobytes() for own in run.excerpts}
    drawn = np.asarray(Corpus([source], subject.tokenizer, seed=1).tokens)
    fresh = np.array([own for own in drawn if own.astype(np.int32).tobytes() not in seen])
    fresh = fresh[:excerpts].astype(np.int32)
    chosen = {
        layer: np.sort(rng.choice(run.width(layer), min(neurons, run.width(layer)), False))
        for layer in layers
    }
    units = [NeuronId(layer, int(i)) for layer, own in chosen.items() for i in own]
    every = np.broadcast_to(np.arange(len(fresh)), (len(units), len(fresh)))
    acts = activations_at(subject, fresh, units, every)
    own_rows, rows = run.tables.rows(run.excerpts), run.tables.rows(fresh)
    second = second_rows(run.tables)
    found: dict[str, list[np.ndarray]] = {}
    false: dict[tuple[str, str], list[int]] = {}
    for place, (layer, indices) in enumerate(chosen.items()):
        width = len(indices)
        true = acts[place * width : (place + 1) * width]
        tables = layer_tables(run, layer)
        tables = tables._replace(
            token_sums=np.ascontiguousarray(tables.token_sums[:, indices]),
            pair_sums=np.ascontiguousarray(tables.pair_sums[:, indices]),
            positive_sums=tables.positive_sums[indices],
        )
        ids, own_acts, _ = (own[indices] for own in split_excerpts(run, layer))
        held = HeldOut(ids, own_acts, *own_rows, run.skip)
        nothing = held._replace(ids=np.full_like(ids, -1))
        lists = {
            "strongest": strongest(tables, nothing, second, count),
            "chosen": shortened(choose(tables, held, second, count=count), count),
        }
        ids = np.repeat(np.arange(len(fresh), dtype=np.int32)[None], width, axis=0)
        tested = HeldOut(ids, true, *rows, run.skip)
        # What is predicted is not in the tables: made to hold nothing out, they are read whole.
        predicted: dict[str, Any] = {n: own.predict(tested, tables) for n, own in lists.items()}
        predicted["table"] = _whole(tables, rows)
        top = np.zeros(ids.shape, bool)
        strongest_first = np.argsort(-true[:, :, run.skip :].max(axis=2), axis=1)[:, :_TOPS]
        np.put_along_axis(top, strongest_first, True, axis=1)
        counted = slice(run.skip, None)
        for name, each in predicted.items():
            own = scores(true[:, :, counted], each[:, :, counted], top)
            found.setdefault(name, []).append(own)
        for name, own in lists.items():
            _count_false(own, true, rows, run.skip, len(tables.token_counts), name, false)
    for name, each in found.items():
        a, none_a, b, none_b = np.mean(each, axis=0)
        print(f"{name}: {a:.3f} ({none_a:.1%} undefined), random {b:.3f} ({none_b:.1%} undefined)")
    for (name, which), (wrong, all_) in sorted(false.items()):
        print(f"{name}, {which}: {wrong / max(all_, 1):.1%} of {all_:,} entries are false")


def _whole(tables: LookupTables, rows: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """What whole tables predict, float32 `[N, E, T]`; the formulas are those of `lookup`."""
    token_rows, pair_rows = rows
    mean = tables.positive_sums / max(tables.count, 1)
    found = np.empty((len(mean), *token_rows.shape), np.float32)
    for neuron, own in enumerate(mean):
        alone = token_estimate(tables.token_sums[:, neuron], tables.token_counts, own)
        estimate = np.where(token_rows >= 0, np.append(alone, own)[token_rows], own)
        sums, counts = (
            np.where(pair_rows >= 0, np.append(x, 0)[pair_rows], 0)
            for x in (tables.pair_sums[:, neuron], tables.pair_counts)
        )
        found[neuron] = pair_estimate(sums, counts, estimate)
    return found


def _count_false(
    lists: ShownLists, acts: np.ndarray, rows: Any, skip: int, known: int, name: str,
    false: dict[tuple[str, str], list[int]],
) -> None:  # fmt: skip
    """Count the entries that stand in the text, and those whose mean there is far below."""
    token_rows, pair_rows = (own[:, skip:] for own in rows)
    for neuron, entries in enumerate(lists.rows):
        values = np.maximum(acts[neuron, :, skip:], 0)
        for entry, row in enumerate(entries.tolist()):
            where = token_rows == row if row < known else pair_rows == row - known
            if row < 0 or not where.any():
                continue
            wrong = values[where].mean() < _FALSE * lists.means[neuron, entry]
            few = "of one or two tokens" if lists.counts[neuron, entry] <= 2 else "of more"
            for which in ("all", few):
                own = false.setdefault((name, which), [0, 0])
                own[0] += int(wrong)
                own[1] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--text", help="a corpus; the run's own test excerpts by default")
    parser.add_argument("--excerpts", type=int, default=256, help="of that text")
    parser.add_argument("--neurons", type=int, default=128, help="of each layer, on that text")
    parser.add_argument("--layers", type=int, nargs="*", help="all by default")
    parser.add_argument("--entries", type=int, default=8)
    options = parser.parse_args()
    run = open_run(options.run)
    layers = options.layers or run.layers
    if options.text is None:
        on_own_text(run, layers, options.entries)
    else:
        on_other_text(run, layers, options.entries, options.text, options.excerpts, options.neurons)


if __name__ == "__main__":
    main()
