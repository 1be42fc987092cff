"""What predicts a neuron without an explanation of it, to stand beside the scores of those."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastexplain.explainers.baselines import SPLITS, layer_baselines, neuron_baselines
from fastexplain.records import NeuronId
from fastexplain.report import columns
from fastexplain.report.maps import BASELINES, baseline_key
from fastexplain.run.directory import Run

SHOWN = ("mismatched", "token", "position")
"""Of `explainers.baselines.NAMES`; the table's own score is stored, and shown with it."""


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
    return {
        "neuron": str(neuron),
        "baselines": {
            own: {
                split: float(value) if np.isfinite(value) else None
                for split, value in zip(SPLITS, found[own].values[:, 0], strict=True)
            }
            for own in SHOWN
            if own in found
        },
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
