"""Neurons that fire on marked tokens, more than the same tokens let expect.

1. An exemplar's *energy* is the sum of squares of its activations above 0 at counted tokens:
   squares, since a gated neuron is a little above 0 nearly everywhere.
2. A neuron's share is that of the energy on marked tokens, a mean over its top exemplars, and its
   expected share the same of the rates of marks (`rates.py`).
3. It is found where half of its energy or more is on marked tokens, at least a quarter more than is
   expected; by the excess.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastexplain.finding.rates import Rates
from fastexplain.finding.results import LayerFound
from fastexplain.kernels.summary import widen
from fastexplain.run.directory import Run

SHARE, EXCESS = 0.5, 0.25
_FEWEST = 5  # exemplars that a share is a mean of
_SAMPLE = 2**14
"""Excerpts that rates are taken from; they are shuffled, so the first ones are a sample."""
_BLOCK = 256

Mark = Callable[[np.ndarray], np.ndarray]
"""Of token ids int `[n, T]` the marks, bool `[n, T]`."""


class MarkedSearch:
    """The search for a mark.

    Args:
        run: the run.
        mark: gives the marks.
        context: of what the rates are that let marks be expected; see `Rates`.
    """

    def __init__(self, run: Run, mark: Mark, context: int = 2) -> None:
        self._run, self.mark = run, mark
        sample = np.asarray(run.excerpts[:_SAMPLE])
        marks = mark(sample)
        self._rates = Rates(sample, marks, run.skip, context)
        # What excerpts have is found when a layer first asks for it.
        shape = run.excerpts.shape
        self._known = np.zeros(shape[0], bool)
        self._marks, self._expected = np.empty(shape, bool), np.empty(shape, np.float32)

    def layer(self, layer: int) -> LayerFound:
        """Search one layer's neurons."""
        run = self._run
        ids = run.array(layer, "top.ids")
        self._look_at(np.unique(ids[ids >= 0]))
        acts = widen(run.array(layer, "top.activations"))
        return shares(acts, ids, self._marks, self._expected, run.skip)

    def _look_at(self, ids: np.ndarray) -> None:
        new = ids[~self._known[ids]]
        for start in range(0, len(new), _BLOCK):
            block = new[start : start + _BLOCK]
            tokens = np.asarray(self._run.excerpts[block])
            marks = self.mark(tokens)
            self._marks[block] = marks
            self._expected[block] = self._rates.expected(block, tokens, marks)
        self._known[new] = True


def shares(
    acts: np.ndarray, ids: np.ndarray, marks: np.ndarray, expected: np.ndarray, skip: int
) -> LayerFound:
    """Shares of energy of N neurons.

    Args:
        acts: float32 `[N, K, T]`, of the top exemplars.
        ids: int `[N, K]`, rows of the next two; -1 for none.
        marks, expected: bool and floating `[S, T]`.
        skip: first counted token.
    """
    energy = np.square(np.maximum(acts[:, :, skip:], 0), dtype=np.float32)
    total = energy.sum(axis=2)
    used = (ids >= 0) & (total > 0)
    rows = np.where(used, ids, 0)

    def mean_share(values: np.ndarray) -> np.ndarray:
        on = np.einsum("nkt,nkt->nk", energy, values[rows, skip:].astype(np.float32))
        share = np.divide(on, total, out=np.zeros_like(on), where=used)
        return share.sum(axis=1) / np.maximum(used.sum(axis=1), 1)

    share, lets_expect = mean_share(marks), mean_share(expected)
    excess = share - lets_expect
    found = (share >= SHARE) & (excess >= EXCESS) & (used.sum(axis=1) >= _FEWEST)
    details = {"share": share.astype(np.float64), "expected": lets_expect.astype(np.float64)}
    return LayerFound(np.where(found, excess, np.nan).astype(np.float64), details)
