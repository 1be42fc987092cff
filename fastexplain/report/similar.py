"""Neurons that are active where one is, by the random excerpts that all neurons share."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastexplain.kernels.summary import widen
from fastexplain.records import NeuronId
from fastexplain.run.directory import Run

MOST = 12
"""Neurons that are listed."""

# Variation beside the neuron's own that rounding may leave of none, in float32.
_LEAST = 1e-6


def similar_data(run: Run, name: str | NeuronId) -> dict[str, Any]:
    """The neurons of all sites whose activations follow one's most nearly.

    Pearson's correlation r over the counted tokens of the random excerpts, activations as they are:
    25 excerpts of 64 tokens, which few of a rare neuron's high places are among.

    Returns:
        `tokens`, how many it is over, and `neurons`: `neuron`, `correlation`, of either sign,
        largest first by its absolute value. None where the neuron does not vary there, or the run
        has no random excerpts.

    Raises:
        UsageError: the name is no neuron's, or no neuron of this run.
        RunError: a file is missing or damaged.
    """
    neuron = run.check(NeuronId.parse(name) if isinstance(name, str) else name)
    own = _activations(run, neuron.site)[:, neuron.index]
    own = own - own.mean() if len(own) else own
    length = float(np.sqrt(own @ own))
    found: list[tuple[float, str]] = []
    for site in run.sites if length > 0 else ():
        acts = _activations(run, site)
        products = own @ acts
        # The sum of squared differences from the mean, of what float32 keeps of it.
        squares = np.einsum("tn,tn->n", acts, acts) - len(acts) * acts.mean(axis=0) ** 2
        lengths = np.sqrt(np.maximum(squares, 0))
        with np.errstate(divide="ignore", invalid="ignore"):
            correlations = np.where(lengths > _LEAST * length, products / (lengths * length), 0)
        if site == neuron.site:
            correlations[neuron.index] = 0
        sizes = np.abs(correlations)
        found += [
            (float(correlations[place]), f"{site}:{place}")
            for place in np.argsort(-sizes, kind="stable")[:MOST].tolist()
            if sizes[place] > 0
        ]
    found.sort(key=lambda each: -abs(each[0]))
    return {
        "tokens": len(own),
        "neurons": [
            {"neuron": other, "correlation": float(f"{max(-1, min(1, r)):.4g}")}
            for r, other in found[:MOST]
        ],
    }


def _activations(run: Run, site: str) -> np.ndarray:
    """The counted activations of the random excerpts, float32 `[tokens, neurons]`."""
    acts = widen(run.array(site, "random.activations"))[:, run.skip :]
    return acts.reshape(-1, acts.shape[-1]).astype(np.float32, copy=False)
