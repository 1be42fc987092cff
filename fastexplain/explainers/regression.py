"""A ridge regression under the lookup's tables, held out exactly from each neuron's excerpts.

The tables estimate what the regression leaves. All is linear, so that this is the tables' own
prediction, as without a regression, and a correction to it: what the regression predicts less what
the tables would have made of these predictions. For the neurons of a layer:

1. Take the split's random excerpts, which neurons share, from the sums, and factor what is left of
   the products once: L L' = sum of x x' + penalty.
2. Solve for each neuron's weights without its own top excerpts (`kernels/cpu/forgetting.py`).
3. Add to the tables' prediction that of the regression, and take from it the same tables'
   prediction of the regression's sums by row, these excerpts held out.

A neuron that fires in held-out excerpts alone has weights of exactly 0.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

import fastexplain.kernels as kernels
from fastexplain.errors import RunError
from fastexplain.kernels.cpu.forgetting import forget
from fastexplain.kernels.summary import HeldOut, LookupTables, widen
from fastexplain.run.directory import Run
from fastexplain.run.splits import random_slots

# In tokens: numbers have variance 1, so as many tokens' worth is each weight drawn to 0. Scores of
# 2,048 excerpts differed by less than 0.0001 between 10 and 100.
PENALTY = 100.0
_KEPT_BYTES = 2**29  # of a corpus's numbers, kept for all layers
_BLOCK = 256  # neurons whose excerpts are in memory together, where the corpus's are not


def predict(
    run: Run,
    layer: int,
    tables: LookupTables,
    excerpts: HeldOut,
    *,
    neurons: slice | np.ndarray = slice(None),
    splits: tuple[str, ...] = ("test",),
    ids: np.ndarray | None = None,
) -> np.ndarray:
    """What the whole table predicts, with the regression under it where the run has one.

    Args:
        neurons: those of the layer that `tables` and `excerpts` have.
        splits: those that the excerpts are of, whose random ones no regression has seen; empty
            for excerpts of any other kind.
        ids: int32 `[X]`, the excerpts whose places are `excerpts.ids`; all of the run's if None.

    Returns:
        float32 `[N, E, T]`, NaN as from `kernels.lookup`; with a regression at least 0.
    """
    if run.regression is None:
        return kernels.lookup(tables, excerpts)
    if (Ridge, splits) not in run.derived:
        run.derived[Ridge, splits] = Ridge(run, splits)
    ridge = run.derived[Ridge, splits]
    return ridge.correct(layer, neurons, tables, excerpts, ids)


class Ridge:
    """The regressions of a run, without the random excerpts of some splits.

    Args:
        run: one with a regression.
        splits: whose random excerpts no neuron's regression has seen; may be none.
    """

    def __init__(self, run: Run, splits: tuple[str, ...]) -> None:
        assert run.regression is not None
        self._run, self._sums = run, run.regression
        ids = run.array(run.layers[0], "random.ids")
        self.slots = np.array([s for s in random_slots(len(ids), splits) if ids[s] >= 0], np.int64)
        self.shared: np.ndarray = ids[self.slots]
        numbers = self._numbers_of(self.shared)
        self._numbers = numbers.reshape(-1, numbers.shape[2]).T.astype(np.float64)
        products = self._sums.products - self._numbers @ self._numbers.T
        penalty = np.full(len(products), PENALTY)
        penalty[-1] = PENALTY * np.finfo(np.float32).eps  # the intercept's
        try:
            self._lower = np.linalg.cholesky(products + np.diag(penalty))
        except np.linalg.LinAlgError:
            raise RunError(
                f"{run.file().path} is damaged: regression.products has no sums of squares; sweep "
                "again"
            ) from None
        self._inverse = np.linalg.solve(self._lower, np.eye(len(products)))

    def correct(
        self,
        layer: int,
        neurons: slice | np.ndarray,
        tables: LookupTables,
        excerpts: HeldOut,
        ids: np.ndarray | None,
    ) -> np.ndarray:
        """The tables' predictions corrected by the regression: what the whole table says.

        Args:
            neurons: those of the layer that `tables` and `excerpts` have.
            ids: int32 `[X]`, the excerpts whose places are `excerpts.ids`; all of the run's if
                None.

        Returns:
            float32 `[N, E, T]`, at least 0; NaN as from `kernels.lookup`.
        """
        skip = excerpts.skip
        weights, totals, rests = self._weights(layer, neurons, tables)
        found = np.empty(weights.shape, np.float32)
        said = np.full(excerpts.activations.shape, np.nan, np.float32)
        named = excerpts.ids if ids is None else np.where(excerpts.ids >= 0, ids[excerpts.ids], -1)
        forgotten = (named >= 0) & ~np.isin(named, self.shared)
        counted = excerpts.activations[:, :, skip:]
        block = max(len(weights), 1) if self._kept else _BLOCK
        for start in range(0, len(weights), block):
            own = slice(start, start + block)
            numbers, places = self._whitened(named[own])
            found[own], said[own, :, skip:] = forget(
                numbers, places, forgotten[own], counted[own],
                weights[own], totals[own], rests[own],
            )  # fmt: skip
        by_row = tables._replace(
            token_sums=self._by_row[0] @ found.T,
            pair_sums=self._by_row[1] @ found.T,
            triple_sums=self._by_row[2] @ found.T,
            positive_sums=found @ (self._inverse @ self._sums.products[-1]),
        )
        again = kernels.lookup(by_row, excerpts._replace(activations=said), True)
        return np.maximum(kernels.lookup(tables, excerpts) + (said - again), 0)

    def _weights(
        self, layer: int, neurons: slice | np.ndarray, tables: LookupTables
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Without the shared excerpts, as `forget` takes them: v, totals and rests."""
        acts = widen(self._of(layer, "random.activations", neurons)[self.slots, self._run.skip :])
        acts = np.maximum(acts.reshape(-1, len(tables.positive_sums)), 0)
        sums = self._of(layer, "tables.regression", neurons).astype(np.float64)
        sums -= self._numbers @ acts
        totals = tables.positive_sums
        return (self._inverse @ sums).T.copy(), totals, totals - acts.sum(axis=0, dtype=np.float64)

    def _of(self, layer: int, name: str, neurons: slice | np.ndarray) -> np.ndarray:
        if isinstance(neurons, slice):
            return self._run.array(layer, name, neurons)
        return self._run.array(layer, name)[..., neurons]

    @cached_property
    def _by_row(self) -> list[np.ndarray]:
        """Sums of z by row of the tables, float32 `[V, d]`, `[P, d]` and `[Q, d]`."""
        sums = (self._sums.token_sums, self._sums.pair_sums, self._sums.triple_sums)
        return [(own.astype(np.float64) @ self._inverse.T).astype(np.float32) for own in sums]

    @cached_property
    def _map(self) -> np.ndarray:
        return self._inverse.T.astype(np.float32)

    @property
    def _kept(self) -> bool:
        """Whether z of the whole corpus is kept once it is needed."""
        size = self._run.manifest["sweep"]["tokens"] * len(self._map) * self._map.itemsize
        return size <= _KEPT_BYTES

    @cached_property
    def _corpus(self) -> np.ndarray:
        """z of all the corpus's counted tokens, float32 `[S, C, d]`."""
        return self._whiten(np.arange(self._run.manifest["sweep"]["excerpts"]))

    @cached_property
    def _of_shared(self) -> np.ndarray:
        """The same of the shared excerpts alone."""
        return self._whiten(self.shared)

    def _whitened(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """z of the excerpts named, float32 `[U, C, d]`, and their places in it; -1 for none."""
        used = np.unique(ids[ids >= 0])
        if self._kept and 2 * len(used) > self._run.manifest["sweep"]["excerpts"]:
            return self._corpus, ids
        others = np.setdiff1d(used, self.shared)
        every = np.concatenate([self.shared, others])
        order = np.argsort(every)
        places = np.append(order, -1)[np.searchsorted(every, ids, sorter=order)]
        found = np.concatenate([self._of_shared, self._whiten(others)])
        return found, np.where(ids >= 0, places, -1).astype(np.int32)

    def _whiten(self, ids: np.ndarray) -> np.ndarray:
        numbers = self._numbers_of(ids)
        return (numbers.reshape(-1, len(self._map)) @ self._map).reshape(numbers.shape)

    def _numbers_of(self, ids: np.ndarray) -> np.ndarray:
        """x of excerpts' counted tokens, float32 `[n, C, d]`."""
        token_ids = self._run.excerpts_of(ids)
        self._sums.check_tokens(self._run.file().path, token_ids)
        return self._sums.regressors.of(token_ids)[:, self._run.skip :]
