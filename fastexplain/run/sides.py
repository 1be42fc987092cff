"""A neuron's two sides: where it is above 0, and where it is below.

All that explains, simulates and scores looks at values above 0. The other side is the same neuron
with the signs of its activations turned: its bottom exemplars come first, and what is true is
max(-activation, 0).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fastexplain.errors import UsageError
from fastexplain.records import Exemplar, NeuronRecord
from fastexplain.results import SIDES, TOP
from fastexplain.run.directory import Run

NOT_BY_LOOKUP = (
    "lookup explains the top alone: the sweep's tables are sums of max(activation, 0); for the "
    "bottom name a language model as explainer"
)
"""What is said where the bottom is to be explained by lookup."""


def check_side(run: Run, side: str) -> None:
    """Raise UsageError where there is no such side, or the run has no exemplars of it."""
    if side not in SIDES:
        raise UsageError(f"there is no `side` '{side}'; choose from {', '.join(SIDES)}")
    if side == TOP:
        return
    if not all(run.array(site, f"{side}.ids", 0).size for site in run.sites):
        raise UsageError(
            f"{run.path} has no bottom exemplars, which that side is explained from; sweep again "
            "with `bottom`"
        )


def of_side(record: NeuronRecord, side: str) -> NeuronRecord:
    """The neuron as it is seen from one of its sides; from the top it is as it is.

    From the bottom, exemplars have their activations with the signs turned, and `top` and `bottom`
    have changed places. So have the statistics, as far as they follow: the fraction above 0 is NaN,
    and the histogram, which is one of the excerpts' maxima, is empty.
    """
    if side == TOP:
        return record
    found = record.statistics
    return replace(
        record,
        top=_turned(record.bottom),
        bottom=_turned(record.top),
        random=_turned(record.random),
        statistics=replace(
            found,
            mean=-found.mean,
            skewness=-found.skewness,
            fraction_positive=np.nan,
            mean_positive=found.mean_positive - found.mean,
            minimum=-found.maximum,
            maximum=-found.minimum,
            histogram=found.histogram[:0],
            histogram_edges=found.histogram_edges[:0],
            histogram_excerpts=found.histogram_excerpts[:0],
        ),
    )


def _turned(exemplars: list[Exemplar]) -> list[Exemplar]:
    return [replace(each, activations=-each.activations) for each in exemplars]
