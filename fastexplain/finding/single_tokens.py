"""Neurons of a single token: that it is the token says nearly all of their activation."""

from __future__ import annotations

import numpy as np

from fastexplain.errors import UsageError
from fastexplain.finding.results import LayerFound
from fastexplain.run.directory import Run

CORRELATION = 0.8
FEWEST = 5
"""Counted tokens of that form in the corpus."""


class SingleTokenSearch:
    """The search through a run's tables; raises UsageError where it has none."""

    def __init__(self, run: Run) -> None:
        if not run.tables.size[0]:
            raise UsageError(
                f"{run.path} was swept without tables, which single tokens are found in; sweep "
                "again without `table_bytes=0`"
            )
        self._run = run
        names = [form(run.token_text(token), token) for token in run.tables.tokens.tolist()]
        self._names, forms = np.unique(names, return_inverse=True)
        self._counts = np.bincount(forms, run.tables.token_counts).astype(np.int64)
        # The tables' rows by form, and where each form's begin.
        self._order = np.argsort(forms, kind="stable")
        self._starts = np.flatnonzero(np.diff(forms[self._order], prepend=-1))

    def layer(self, layer: int) -> LayerFound:
        """Search one layer's neurons."""
        run = self._run
        statistics, count = run.statistics(layer), run.sites[str(layer)].counted_tokens
        rows = run.array(layer, "tables.tokens")[self._order]
        sums = np.add.reduceat(rows, self._starts, axis=0)
        best, correlation = by_form(
            sums, self._counts, statistics["mean_positive"], statistics["variance"], count
        )
        values = np.where(correlation >= CORRELATION, correlation, np.nan)
        return LayerFound(values, {"token": self._names[best], "count": self._counts[best]})


def form(text: str, token: int) -> str:
    """What forms of one token have in common: letters without case, and no space around.

    A token that is but a part of a character is alone.
    """
    if "\ufffd" in text:
        return f"{text} (token {token})"
    return text.strip().casefold() or text


def by_form(
    sums: np.ndarray, counts: np.ndarray, mean: np.ndarray, variance: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The form that tells most of each of N neurons, and how much, int and float64 `[N]`.

    It is the correlation over the corpus of max(activation, 0) with whether the token is of the
    form: with p the form's share of tokens, sqrt(p / (1 - p)) (its mean - the mean) / deviation.
    The deviation is the activation's own, which is no smaller than that of max(activation, 0), so
    the true one is no smaller either. Forms with fewer than `FEWEST` tokens are passed over.

    Args:
        sums: float32 `[forms, N]`, of max(activation, 0).
        counts: int `[forms]`, counted tokens.
        mean, variance: float64 `[N]`, of max(activation, 0) and of the activation.
        count: counted tokens of all.
    """
    enough = (counts >= FEWEST) & (counts < count)
    share = np.where(enough, counts / count, 0.5)
    rise = sums / np.maximum(counts, 1)[:, None].astype(np.float32) - mean.astype(np.float32)
    rise *= np.where(enough, np.sqrt(share / (1 - share)), 0)[:, None].astype(np.float32)
    best = rise.argmax(axis=0)
    most = rise[best, np.arange(rise.shape[1])].astype(np.float64)
    told = np.divide(most, np.sqrt(variance), out=np.zeros_like(most), where=variance > 0)
    return best, np.clip(told, 0, 1)
