"""Which of a neuron's exemplars an explanation is written from, and which it is scored on.

Source: Bills et al. 2023, "Step 3: Score the explanation by comparing". Ranks are places among a
neuron's top exemplars, slots are places among the random ones, which all neurons share. The first
20 ranks are dealt out modulo 4 (explanation, calibration, validation, test), the slots modulo 3
(calibration, validation, test); what is for calibration and validation is not used yet.
"""

from __future__ import annotations

import numpy as np

EXPLANATION_RANKS = np.arange(0, 20, 4)
TEST_RANKS = np.arange(3, 20, 4)

_FIRST_TEST_SLOT, _SLOT_STEP = 2, 3
_RANDOM_EXCERPTS = 5

# Excerpts of the test split, which score an explanation: five top ones and five random ones.
HELD_OUT = len(TEST_RANKS) + _RANDOM_EXCERPTS

_EMPTY = -1


def held_out(top_ids: np.ndarray, random_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The test splits of many neurons at once.

    A random excerpt that is also an explanation or a test excerpt among the neuron's top ones is
    passed over for the next one of the split.

    Args:
        top_ids: int `[neurons, K]`, best first; -1 where there is no exemplar.
        random_ids: int `[R]`; -1 where there is none.

    Returns:
        Ranks of the top ones and slots of the random ones, int32 `[neurons, 5]` each; -1 where
        there are no more.
    """
    count = top_ids.shape[1]
    held = TEST_RANKS[count > TEST_RANKS]
    ranks = np.full((len(top_ids), len(TEST_RANKS)), _EMPTY, dtype=np.int32)
    ranks[:, : len(held)] = np.where(top_ids[:, held] == _EMPTY, _EMPTY, held)

    used = np.concatenate([EXPLANATION_RANKS, TEST_RANKS])
    taken = top_ids[:, used[used < count]]
    slots = np.full((len(top_ids), _RANDOM_EXCERPTS), _EMPTY, dtype=np.int32)
    filled = np.zeros(len(top_ids), dtype=np.int64)
    # One candidate at a time for all neurons: there are about eight.
    for slot in range(_FIRST_TEST_SLOT, len(random_ids), _SLOT_STEP):
        if random_ids[slot] != _EMPTY:
            free = (taken != random_ids[slot]).all(axis=1) & (filled < _RANDOM_EXCERPTS)
            slots[free, filled[free]] = slot
            filled[free] += 1
    return ranks, slots
