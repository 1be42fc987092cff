"""What many neurons' scores come to: a mean with its errors, quantiles, and how reliable they are.

A mean over neurons has two errors. Other neurons would give another mean: its standard error, the
deviation over the root of the number. So would other random excerpts, which all neurons of a run
share, so that no number of neurons takes that error away: the delete-one jackknife over these
excerpts (Efron and Stein 1981) where the scores without each of them are known; a bootstrap where
one is stored with the mean; else no more than the mean of the single neurons' standard errors,
which is what it would be if all moved together.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastexplain.explainers.baselines import SPLITS, Baseline

QUANTILES = (5, 25, 50, 75, 95)

WIDTH = 2 * 1.959964
"""So many standard errors of a normal distribution are in a 95% interval."""

# Neurons from which a correlation between halves is said.
_FEWEST = 10


def summary(values: np.ndarray, widths: np.ndarray | None = None) -> dict[str, Any]:
    """The distribution of neurons' scores.

    Args:
        values: float `[N]`, NaN where undefined.
        widths: float `[N]`, of their 95% intervals over excerpts, NaN without one; or None.

    Returns:
        `neurons` and `undefined` (how many), `mean`, `error_neurons`, `error_excerpts`,
        `quantiles` (as in `QUANTILES`), and `reliability`, which is None here. Others are None
        where they are not known.
    """
    defined = values[np.isfinite(values)]
    count = len(defined)
    own = np.empty(0) if widths is None else widths[np.isfinite(values) & np.isfinite(widths)]
    return {
        "neurons": count,
        "undefined": len(values) - count,
        "mean": float(defined.mean()) if count else None,
        "error_neurons": float(defined.std(ddof=1) / count**0.5) if count > 1 else None,
        "error_excerpts": float(own.mean() / WIDTH) if count and len(own) == count else None,
        "quantiles": np.percentile(defined, QUANTILES).tolist() if count else None,
        "reliability": None,
    }


def baseline_summary(baseline: Baseline, split: int) -> dict[str, Any]:
    """The same of one of a baseline's splits, with its error over excerpts and its reliability."""
    return summary(baseline.values[split]) | {
        # Top excerpts are every neuron's own: the error over neurons has theirs.
        "error_excerpts": None
        if SPLITS[split] == "top_only"
        else jackknife(baseline.values[split], baseline.without[split][baseline.used]),
        "reliability": reliability(*baseline.halves[split]),
    }


def jackknife(values: np.ndarray, without: np.ndarray) -> float | None:
    """The standard error over shared excerpts of a mean over neurons; None below two excerpts.

    A neuron counts where it is defined with all excerpts and without that one.

    Args:
        values: float `[N]`, of all excerpts.
        without: float `[R, N]`, without each of the shared ones.
    """
    known = np.isfinite(values) & np.isfinite(without)
    if len(without) < 2 or not known.any(axis=1).all():
        return None
    moves = np.where(known, without - values, 0).sum(axis=1) / known.sum(axis=1)
    count = len(moves)
    return float(np.sqrt((count - 1) / count * ((moves - moves.mean()) ** 2).sum()))


def reliability(first: np.ndarray, second: np.ndarray) -> float | None:
    """Split-half reliability of neurons' scores: how well they would agree with those of others.

    The correlation r over neurons of the scores on two halves of the excerpts, brought to the
    whole length by 2r / (1 + r) (Spearman 1910, Brown 1910); 0 where the halves do not agree.
    Its square root is the most that any measure can correlate with these scores.

    Args:
        first, second: float `[N]`, the scores on each half, NaN where undefined.
    """
    both = np.isfinite(first) & np.isfinite(second)
    if both.sum() < _FEWEST or np.ptp(first[both]) == 0 or np.ptp(second[both]) == 0:
        return None
    r = float(np.corrcoef(first[both], second[both])[0, 1])
    return 2 * r / (1 + r) if r > 0 else 0.0
