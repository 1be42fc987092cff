"""Neurons whose lookup fails while another explanation succeeds: what no list of tokens says."""

from __future__ import annotations

import numpy as np

from fastexplain.errors import UsageError
from fastexplain.finding.results import LayerFound
from fastexplain.results import LIST, TOP, side_of
from fastexplain.run.directory import Run
from fastexplain.run.table import NeuronTable

FAILS, SUCCEEDS = 0.3, 0.5
_LOOKUP, _HEADLINE = "lookup_top_and_random", "_top_and_random"


class BeyondLookupSearch:
    """The search through a run's scores; raises UsageError where there are none to compare."""

    def __init__(self, run: Run) -> None:
        self._table = run.table()
        others = [name for name in others_of(self._table) if not _empty(self._table[name])]
        if not others or _empty(self._table[_LOOKUP]):
            lacking = "other explanations than lookup's" if not others else "lookup"
            raise UsageError(
                f"{run.path} has no scores of {lacking} to compare; explain neurons by lookup, and "
                "some by `explainer=MODEL`"
            )
        self._others = others

    def layer(self, layer: int) -> LayerFound:
        """Search one layer's neurons."""
        own = self._table["site"] == str(layer)
        others = np.stack([self._table[name][own] for name in self._others])
        return beyond(self._table[_LOOKUP][own], others)


def others_of(table: NeuronTable) -> list[str]:
    """The columns of the top's headline scores by other methods than lookup and its text."""
    own = ("lookup", LIST)
    methods = [name.removesuffix(_HEADLINE) for name in table.columns if name.endswith(_HEADLINE)]
    return [f"{each}{_HEADLINE}" for each in methods if each not in own and side_of(each) == TOP]


def beyond(lookup: np.ndarray, others: np.ndarray) -> LayerFound:
    """What the best of the others has more than lookup, for N neurons.

    Found are those where lookup is below `FAILS` and the other from `SUCCEEDS` on.

    Args:
        lookup: float `[N]`, NaN where undefined.
        others: float `[methods, N]`, the same.
    """
    best = np.where(np.isnan(others), -np.inf, others).max(axis=0)
    found = (lookup < FAILS) & (best >= SUCCEEDS)
    values = np.where(found, best - lookup, np.nan)
    return LayerFound(
        values, {"lookup": lookup, "other": np.where(np.isfinite(best), best, np.nan)}
    )


def _empty(column: np.ndarray) -> bool:
    return bool(np.isnan(column).all())
