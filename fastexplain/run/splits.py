"""Which of a neuron's exemplars an explanation is written from, and which it is scored on.

Source: Bills et al. 2023, "Step 3: Score the explanation by comparing". Ranks are places among a
neuron's top exemplars, slots are places among the random ones, which all neurons share.
"""

from __future__ import annotations

import numpy as np

from fastexplain.records import Split

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

# Excerpts of the test split, which score an explanation: five top ones and five random ones.
HELD_OUT = len(TEST_RANKS) + RANDOM_EXCERPTS

EMPTY = -1


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


def held_out_excerpts(top_ids: np.ndarray, random_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
