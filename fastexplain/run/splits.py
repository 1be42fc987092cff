"""Which of a neuron's exemplars an explanation is written from, and which it is scored on.

Source: Bills et al. 2023, "Step 3: Score the explanation by comparing". Ranks are places among a
neuron's top exemplars, slots are places among the random ones, which all neurons share. The first
20 ranks are dealt out modulo 4 (explanation, calibration, validation, test), the slots modulo 3
(calibration, validation, test).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastexplain.records import NeuronRecord
from fastexplain.results import Sample

EXPLANATION_RANKS = np.arange(0, 20, 4)
TEST_RANKS = np.arange(3, 20, 4)

# By split: the first rank and the first slot.
_FIRST = {"calibration": (1, 0), "validation": (2, 1), "test": (3, 2)}
_RANK_STEP, _SLOT_STEP, _RANKS = 4, 3, 20
RANDOM_EXCERPTS = 5  # of a split, where each costs a simulation

# Excerpts of a split which score an explanation: five top ones and five random ones.
HELD_OUT = len(TEST_RANKS) + RANDOM_EXCERPTS

_EMPTY = -1


def held_out(
    top_ids: np.ndarray, random_ids: np.ndarray, split: str = "test", *, every: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """One split of many neurons at once.

    A random excerpt that is also an explanation's among the neuron's top ones, or one of the
    split's, is passed over for the next one of the split.

    Args:
        top_ids: int `[neurons, K]`, best first; -1 where there is no exemplar.
        random_ids: int `[R]`; -1 where there is none.
        split: "calibration", "validation" or "test".
        every: give all random ones of the split, for where prediction is free; else five.

    Returns:
        Ranks of the top ones and slots of the random ones, int32 `[neurons, 5]` each (of `every`
        as many as the split has); -1 where there are no more.
    """
    count = top_ids.shape[1]
    first_rank, first_slot = _FIRST[split]
    own = np.arange(first_rank, _RANKS, _RANK_STEP)
    held = own[count > own]
    ranks = np.full((len(top_ids), len(own)), _EMPTY, dtype=np.int32)
    ranks[:, : len(held)] = np.where(top_ids[:, held] == _EMPTY, _EMPTY, held)

    used = np.concatenate([EXPLANATION_RANKS, own])
    taken = top_ids[:, used[used < count]]
    own_slots = np.arange(first_slot, len(random_ids), _SLOT_STEP)
    candidates = random_ids[own_slots]
    free = (taken[:, None, :] != candidates[:, None]).all(axis=2) & (candidates != _EMPTY)
    most = len(own_slots) if every else RANDOM_EXCERPTS
    places = np.cumsum(free, axis=1) - 1  # of those that are free
    neurons, chosen = np.nonzero(free & (places < most))
    slots = np.full((len(top_ids), most), _EMPTY, dtype=np.int32)
    slots[neurons, places[neurons, chosen]] = own_slots[chosen]
    return ranks, slots


def random_slots(count: int, splits: Sequence[str]) -> list[int]:
    """Slots of all random excerpts, of so many, that splits may have, for any neuron."""
    return sorted(s for split in splits for s in range(_FIRST[split][1], count, _SLOT_STEP))


def samples(record: NeuronRecord, split: str = "test") -> list[Sample]:
    """One split of a neuron, top ones first, not simulated yet.

    What the test split has too is left out of the others, so that nothing which is chosen or
    fitted on these has seen the test's excerpts.
    """
    [ranks], [slots] = held_out(
        np.array([[e.excerpt for e in record.top]], dtype=np.int64),
        np.array([e.excerpt for e in record.random], dtype=np.int64),
        split,
    )
    found = [
        Sample(
            exemplar.excerpt,
            top,
            exemplar.activations[record.skip :],
            tokens=exemplar.tokens[record.skip :],
            split=split,
        )
        for top, kept, places in ((True, record.top, ranks), (False, record.random, slots))
        for exemplar in (kept[place] for place in places if place >= 0)
    ]
    if split == "test":
        return found
    tested = {each.excerpt for each in samples(record)}
    return [each for each in found if each.excerpt not in tested]
