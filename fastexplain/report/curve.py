"""How well a lookup explanation's text predicts by the number of its entries, by layer.

Lists are nested, so one choice of the most entries serves every length. A list that says the same
of all tokens that score it explains nothing of them, and counts as 0 here, where lengths are
compared; as a neuron's own score it would be undefined.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import fastexplain.kernels as kernels
from fastexplain.explainers.lists import second_rows, shortened
from fastexplain.explainers.lookup import layer_tables, split_excerpts
from fastexplain.explainers.regression import predict
from fastexplain.kernels.cpu.lists import choose
from fastexplain.kernels.summary import HeldOut, LookupTables
from fastexplain.progress import Report
from fastexplain.run.directory import Run
from fastexplain.run.splits import RANDOM_EXCERPTS

LENGTHS = (1, 2, 4, 8, 16, 32)
SPLITS = ("top_and_random", "random_only")


def curve_figures(run: Run, progress: Report = lambda done: None) -> dict[str, Any] | None:
    """The curves of a run with tables, as `--json` gives them; None without tables.

    Args:
        progress: called with the number of layers done, after each.

    Returns:
        `lengths`, and `layers`, a list of `layer` and by split the means over neurons, one for each
        length and, last, that of the whole table; and `all`, the same over all layers.

    Raises:
        RunError: a file of the run is missing or damaged.
    """
    if not len(run.tables.tokens):
        return None
    layers, values = [], []
    for layer, own in _layers(run):
        values.append(own)
        layers.append({"layer": layer} | _means(own))
        progress(len(layers))
    return {
        "lengths": list(LENGTHS),
        "layers": layers,
        "all": _means(np.concatenate(values, axis=2)),
    }


def _means(values: np.ndarray) -> dict[str, list[float]]:
    return {split: values[place].mean(axis=1).tolist() for place, split in enumerate(SPLITS)}


def _layers(run: Run) -> Iterator[tuple[int, np.ndarray]]:
    """By layer the correlations by split and length, the table's last; float64 `[2, 7, N]`.

    N counts the neurons that vary on their excerpts.
    """
    rows, second = run.tables.rows(run.excerpts), second_rows(run.tables)
    for layer in run.layers:
        tables = layer_tables(run, layer)
        ids, activations, top = split_excerpts(run, layer)
        excerpts = HeldOut(ids, activations, *rows, run.skip)
        whole = predict(run, layer, tables, excerpts)
        values = length_scores(tables, excerpts, top, second, whole)
        known = ~np.isnan(values[0, -1])
        yield layer, np.nan_to_num(values[:, :, known])


def length_scores(
    tables: LookupTables,
    excerpts: HeldOut,
    top: np.ndarray,
    second: np.ndarray,
    whole: np.ndarray,
) -> np.ndarray:
    """Correlations by split, length (the whole table last) and neuron, float64 `[2, 7, F]`.

    Args:
        excerpts: which score, held out from lists and tables.
        top: bool `[F, E]`, whether an excerpt is a top one.
        second: as for `kernels.cpu.lists.choose`.
        whole: float32 `[F, E, T]`, what the whole table predicts.
    """
    lists = choose(tables, excerpts, second, count=LENGTHS[-1])
    there = excerpts.ids >= 0
    paired = top | (np.cumsum(there & ~top, axis=1) <= RANDOM_EXCERPTS)
    true = np.maximum(excerpts.activations, 0)
    of_splits = [np.where(own[:, :, None], true, np.nan) for own in (paired, ~top)]
    predicted = [shortened(lists, length).predict(excerpts, tables) for length in LENGTHS]
    predicted.append(whole)
    return np.array(
        [[kernels.correlate(own, each).correlation for each in predicted] for own in of_splits]
    )
