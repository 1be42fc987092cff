"""How well a measure tells true descriptions from false ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 1000


@dataclass(frozen=True)
class Ranking:
    """One measure over some puzzles.

    An undefined score never comes first; beside others it counts as 0, since only the order
    matters here: a simulator that predicts the same everywhere has said nothing.

    Attributes:
        puzzles: how many.
        defined: of them, those where the true description's score is defined.
        first: share of the puzzles where the true description scores above both false ones; 1/3 by
            chance.
        first_error: its standard error, sqrt(p (1 - p) / n).
        auc: chance that a true description, of whichever puzzle, scores above a false one, of
            whichever; ties count half. 0.5 by chance.
        auc_error: its standard error, by 1,000 resamples of the puzzles.
        true, false: mean scores where they are defined; None if nowhere.
    """

    puzzles: int
    defined: int
    first: float
    first_error: float
    auc: float
    auc_error: float
    true: float | None
    false: float | None

    @classmethod
    def of(cls, true: Sequence[float | None], false: Sequence[Sequence[float | None]]) -> Ranking:
        """Rank the scores of each puzzle's true description and of its false ones.

        Raises:
            ValueError: there is no puzzle, or one has no false description.
        """
        trues = np.array(true, dtype=np.float64)  # None is NaN
        falses = np.array(false, dtype=np.float64)
        if falses.ndim != 2 or len(falses) != len(trues) or not falses.size:
            raise ValueError(f"expected scores [P] and [P, F], got {trues.shape}, {falses.shape}")
        count = len(trues)
        defined = np.isfinite(trues)
        right = np.nan_to_num(trues)
        wrong = np.nan_to_num(falses)
        first = float((defined & (right > wrong.max(axis=1))).mean())
        above = right[:, None, None] > wrong
        equal = right[:, None, None] == wrong
        wins = (above + 0.5 * equal).mean(axis=2)  # [puzzle of the true, puzzle of the false]
        rng = np.random.default_rng(0)
        drawn = rng.integers(0, count, (_RESAMPLES, count))
        resampled = wins[drawn[:, :, None], drawn[:, None, :]].mean(axis=(1, 2))
        return cls(
            count,
            int(defined.sum()),
            first,
            float(np.sqrt(first * (1 - first) / count)),
            float(wins.mean()),
            float(resampled.std()),
            _mean(trues),
            _mean(falses),
        )


def _mean(values: np.ndarray) -> float | None:
    found = values[np.isfinite(values)]
    return float(found.mean()) if len(found) else None
