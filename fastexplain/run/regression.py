"""What all neurons' regressions under the tables share: sums over the corpus's text.

With x a token's numbers (`text/regressors.py`) and a a neuron's activation there, the sweep sums
x max(a, 0) for every neuron. These are the sums of x x' over all counted tokens, and of x over the
tokens of each of the tables' rows: with them one can solve for a neuron's weights, and knows what
its regression puts into each row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastexplain.errors import RunError
from fastexplain.run.tables import Tables
from fastexplain.text.regressors import Regressors

_BLOCK = 256  # excerpts at a time: 30 MB of numbers


@dataclass(frozen=True, eq=False)
class Regression:
    """What all neurons' regressions share.

    Attributes:
        regressors: how a token's d numbers are made.
        products: float64 `[d, d]`, sums of x x' over counted tokens.
        token_sums, pair_sums, triple_sums: float32 `[V, d]`, `[P, d]`, `[Q, d]`, sums of x over
            the tokens of each row.
    """

    regressors: Regressors
    products: np.ndarray
    token_sums: np.ndarray
    pair_sums: np.ndarray
    triple_sums: np.ndarray

    @classmethod
    def over(
        cls, regressors: Regressors, tables: Tables, token_ids: np.ndarray, skip: int
    ) -> Regression:
        """The sums over a corpus.

        Args:
            token_ids: int `[excerpts, tokens]`.
            skip: first counted token.
        """
        from fastexplain.kernels.cpu.regressors import add_by_row

        products = np.zeros((regressors.count, regressors.count))
        sums = [np.zeros((size, regressors.count)) for size in tables.size]
        for start in range(0, len(token_ids), _BLOCK):
            block = np.asarray(token_ids[start : start + _BLOCK])
            numbers = regressors.of(block)[:, skip:].reshape(-1, regressors.count)
            products += numbers.T @ numbers
            for total, rows in zip(sums, tables.rows(block), strict=True):
                add_by_row(total, rows[:, skip:].ravel(), numbers)
        return cls(regressors, products, *(total.astype(np.float32) for total in sums))

    def check(self, path: Path) -> None:
        """Raise RunError, naming the file they are from, unless these can be sums over a corpus."""
        fits = len(self.products) == self.regressors.count
        _require(fits and bool(np.isfinite(self.products).all()), path)

    def check_tokens(self, path: Path, token_ids: np.ndarray) -> None:
        """The same unless numbers can be made of such tokens, int of any shape."""
        _require(token_ids.max(initial=0) < len(self.regressors.components), path)


def _require(fits: bool, path: Path) -> None:
    if not fits:
        raise RunError(f"{path} is damaged: its regression is not of these tokens; sweep again")
