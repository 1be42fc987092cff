"""What predicts a neuron without an explanation of it, to stand beside the scores of those."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastexplain.explainers.baselines import SPLITS, Baseline, layer_baselines, neuron_baselines
from fastexplain.records import NeuronId
from fastexplain.report import columns
from fastexplain.report.maps import BASELINES, baseline_key, baseline_maps
from fastexplain.run.directory import Run

SHOWN = ("mismatched", "token", "position")
"""Of `explainers.baselines.NAMES`; the table's own score is stored, and shown with it."""

A_LAYER = 8
"""A layer's baselines take as long as those of so many neurons one by one: 0.5 s and 0.07 s."""


def baselines_data(run: Run, name: str | NeuronId) -> dict[str, Any]:
    """Correlations on the excerpts that score a neuron's explanations; nothing is stored.

    Returns:
        `neuron` and `baselines`: by the names of `SHOWN`, of those that there are, the value by
        split, null where it is undefined. A unit that is no neuron of a layer's MLP has none.

    Raises:
        UsageError: the name is no neuron's, or no neuron of this run.
        RunError: a file is missing or damaged.
    """
    neuron = run.check(NeuronId.parse(name) if isinstance(name, str) else name)
    found = {} if neuron.place else neuron_baselines(run, neuron)
    return {"neuron": str(neuron), "baselines": _shown(found, 0)}


def baselines_of(run: Run, neurons: Sequence[NeuronId]) -> Iterator[dict[str, Any]]:
    """The `baselines` of `baselines_data` of some neurons, which ascend.

    Where they are many of a layer, the whole layer's are made at once.

    Raises RunError if a file is missing or damaged.
    """
    counts = Counter(neuron.layer for neuron in neurons if not neuron.place)
    whole = [layer for layer, count in sorted(counts.items()) if count > A_LAYER]
    layers = layer_baselines(run, whole) if whole else iter(())
    at, of_layer = -1, dict[str, Baseline]()
    for neuron in neurons:
        if neuron.place:
            yield {}
        elif neuron.layer not in whole:
            yield _shown(neuron_baselines(run, neuron), 0)
        else:
            while at != neuron.layer:
                at, of_layer = next(layers)
            yield _shown(of_layer, neuron.index)


def baselines_cost(neurons: Sequence[NeuronId]) -> int:
    """How many times as long as one neuron's all that `baselines_of` gives takes."""
    counts = Counter(neuron.layer for neuron in neurons if not neuron.place)
    return sum(min(count, A_LAYER) for count in counts.values())


def _shown(found: Mapping[str, Baseline], neuron: int) -> dict[str, Any]:
    """The values of a neuron by baseline and split."""
    return {
        own: {
            split: float(value) if np.isfinite(value) else None
            for split, value in zip(SPLITS, found[own].values[:, neuron], strict=True)
        }
        for own in SHOWN
        if own in found
    }


def baseline_columns(run: Run) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """The baselines of all neurons that `maps.baseline_maps` has, layer by layer: 0.5 s for 1,536.

    Yields:
        A layer, whose site is of that name, and by key its neurons' correlations, float32
        `[neurons]`, NaN where one is undefined.

    Raises:
        RunError: a file is missing or damaged.
    """
    for layer, found in layer_baselines(run):
        yield (
            layer,
            {
                baseline_key(name, split): own.values[SPLITS.index(split)].astype(np.float32)
                for name, own in found.items()
                if name in BASELINES
                for split in columns.SPLITS
            },
        )


def whole_columns(run: Run) -> dict[str, np.ndarray]:
    """The columns of `maps.baseline_maps` by key, float32 `[neurons]`; raises as the layers do."""
    found = {
        each["key"]: np.full(columns.neurons_of(run), np.nan, np.float32)
        for each in baseline_maps(run)
    }
    for layer, own in baseline_columns(run):
        for key, values in own.items():
            columns.by_site(run, found[key])[str(layer)][:] = values
    return found
