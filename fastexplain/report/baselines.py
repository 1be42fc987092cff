"""What predicts a neuron without an explanation of it, to stand beside the scores of those."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastexplain.explainers.baselines import SPLITS, neuron_baselines
from fastexplain.records import NeuronId
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
