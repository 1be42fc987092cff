"""Which excerpts an explanation is written from and scored on, and its scores.

Source: Bills et al. 2023, "Step 3: Score the explanation by comparing". Ranks are places among a
neuron's top exemplars, slots are places among the random ones, which all neurons share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# The first 20 top exemplars are dealt out by rank modulo 4, the random ones by slot modulo 3.
EXPLANATION_RANKS = np.arange(0, 20, 4)
TEST_RANKS = np.arange(3, 20, 4)
_RANKS = {
    "calibration": np.arange(1, 20, 4),
    "validation": np.arange(2, 20, 4),
    "test": TEST_RANKS,
}
_FIRST_SLOTS = {"calibration": 0, "validation": 1, "test": 2}

# Random excerpts that a split takes.
RANDOM_EXCERPTS = 5

EMPTY = -1


class Split(NamedTuple):
    """One split of one neuron's excerpts.

    Attributes:
        top: int `[<= 5]`, ranks among the top exemplars.
        random: int `[<= 5]`, slots among the random exemplars.
    """

    top: np.ndarray
    random: np.ndarray


@dataclass(frozen=True)
class Scores:
    """How well simulated activations follow the true ones; Pearson's correlation, None undefined.

    Attributes:
        random_only: over the random excerpts of the test split.
        top_and_random: over all of its excerpts; the headline.
        top_only: over its top excerpts.
        excerpts_random, excerpts_top: how many excerpts of each kind the scores rest on; those
            without a simulation don't count.
    """

    random_only: float | None
    top_and_random: float | None
    top_only: float | None
    excerpts_random: int
    excerpts_top: int


def splits(top_ids: np.ndarray, random_ids: np.ndarray) -> dict[str, Split]:
    """Deal one neuron's exemplars out.

    A random excerpt that is also an explanation excerpt or a top excerpt of the same split is
    passed over for the next one of that split.

    Args:
        top_ids: int `[K]`, ids of the top exemplars, best first; -1 where there is none.
        random_ids: int `[R]`, ids of the random exemplars.

    Returns:
        The splits `explanation`, which has no random excerpts, `calibration`, `validation` and
        `test`; fewer excerpts than 5 of a kind where there are no more.
    """
    tops = np.asarray(top_ids, dtype=np.int64)[None]
    explanation = _ranks(tops, EXPLANATION_RANKS)[0]
    result = {"explanation": Split(explanation[explanation != EMPTY], np.empty(0, np.int64))}
    for name, ranks in _RANKS.items():
        top, random = _ranks(tops, ranks)[0], _slots(tops, random_ids, name)[0]
        result[name] = Split(top[top != EMPTY], random[random != EMPTY])
    return result


def test_excerpts(top_ids: np.ndarray, random_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The test splits of many neurons at once; see `splits`.

    Args:
        top_ids: int `[neurons, K]`, -1 where there is no exemplar.
        random_ids: int `[R]`.

    Returns:
        Excerpt ids of the top ones, int32 `[neurons, 5]`, and slots of the random ones among
        `random_ids`, int32 `[neurons, 5]`; -1 where there is none.
    """
    tops = np.asarray(top_ids)
    ranks = _ranks(tops, TEST_RANKS)
    ids = np.where(ranks == EMPTY, EMPTY, _at(tops, TEST_RANKS))
    return ids.astype(np.int32), _slots(tops, random_ids, "test").astype(np.int32)


def score(
    true: Sequence[np.ndarray], simulated: Sequence[np.ndarray | None], top: Sequence[bool]
) -> Scores:
    """Score one neuron's simulations.

    An explanation says what drives a neuron up, so true activations count from 0: relu first.
    The tokens of all excerpts are pooled before they are correlated.

    Args:
        true: per excerpt the activations at its counted tokens, float `[counted]`.
        simulated: per excerpt the simulated values at the same tokens, NaN where one is missing;
            None where the simulation failed.
        top: per excerpt, whether it is a top excerpt, not a random one.
    """
    from fastexplain.kernels import correlate

    rows = [
        (np.maximum(t, 0), np.full(len(t), np.nan) if s is None else s)
        for t, s in zip(true, simulated, strict=True)
    ]
    there = [bool(np.isfinite(s).any()) for _, s in rows]
    if not any(there):
        return Scores(None, None, None, 0, 0)
    pooled_true = np.concatenate([t for t, _ in rows]).astype(np.float64)
    pooled = np.concatenate([s for _, s in rows]).astype(np.float64)
    is_top = np.repeat(np.asarray(top, dtype=bool), [len(t) for t, _ in rows])
    each = correlate(
        np.tile(pooled_true, (3, 1)),
        np.stack([np.where(is_top, np.nan, pooled), pooled, np.where(is_top, pooled, np.nan)]),
    ).correlation
    random_only, both, top_only = (None if np.isnan(r) else float(r) for r in each)
    count_top = sum(h and t for h, t in zip(there, top, strict=True))
    return Scores(random_only, both, top_only, sum(there) - count_top, count_top)


def _at(top_ids: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Ids `[neurons, ranks]`, -1 past the last exemplar."""
    result = np.full((len(top_ids), len(ranks)), EMPTY, dtype=np.int64)
    held = ranks[ranks < top_ids.shape[1]]
    result[:, : len(held)] = top_ids[:, held]
    return result


def _ranks(top_ids: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Those `ranks` at which there is an exemplar, `[neurons, ranks]`, -1 where there is none."""
    return np.where(_at(top_ids, ranks) == EMPTY, EMPTY, ranks)


def _slots(top_ids: np.ndarray, random_ids: np.ndarray, name: str) -> np.ndarray:
    """Slots `[neurons, 5]` of a split's random excerpts, -1 where there are no more."""
    candidates = np.arange(_FIRST_SLOTS[name], len(random_ids), 3)
    taken = np.concatenate([_at(top_ids, EXPLANATION_RANKS), _at(top_ids, _RANKS[name])], axis=1)
    ids = np.asarray(random_ids)[candidates]
    result = np.full((len(top_ids), RANDOM_EXCERPTS), EMPTY, dtype=np.int64)
    filled = np.zeros(len(top_ids), dtype=np.int64)
    # One candidate at a time for all neurons: there are about eight.
    for slot, excerpt in zip(candidates, ids, strict=True):
        free = (taken != excerpt).all(axis=1) & (filled < RANDOM_EXCERPTS)
        rows = np.flatnonzero(free & (excerpt != EMPTY))
        result[rows, filled[rows]] = slot
        filled[rows] += 1
    return result
