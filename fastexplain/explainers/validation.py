"""A neuron's validation split: how well explanations predict it, so that one can be chosen.

The test split is not looked at here: it is for what was chosen in the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import chain, zip_longest
from typing import TypeVar

import numpy as np

from fastexplain.errors import Deferred, LLMError, UnusableError
from fastexplain.kernels import correlate
from fastexplain.records import NeuronRecord
from fastexplain.results import Sample
from fastexplain.run.splits import samples

Predict = Callable[[str, Sequence[str]], Awaitable[np.ndarray]]
"""Simulates a text `[tokens]` from an explanation: float64 `[tokens]`, NaN where one is missing.

Raises LLMError where it can't."""

_T = TypeVar("_T")


class Validation:
    """One neuron's validation split, simulated from one explanation after another.

    Args:
        record: the neuron.
        predict: simulates.

    Attributes:
        excerpts: top and random ones by turns, so that the first few have both.
    """

    def __init__(self, record: NeuronRecord, predict: Predict) -> None:
        own = samples(record, "validation")
        turns = zip_longest((s for s in own if s.top), (s for s in own if not s.top))
        self.excerpts: list[Sample] = [s for s in chain.from_iterable(turns) if s is not None]
        self._predict = predict
        self._values: dict[str, list[np.ndarray | None]] = {}

    async def simulate(self, explanation: str, count: int) -> list[np.ndarray | None]:
        """The first `count` excerpts, float64 `[counted]` each; None where that failed.

        What was simulated before is not simulated again.
        """
        have = self._values.setdefault(explanation, [])
        missing = self.excerpts[len(have) : count]
        found = await settled(self._predict(explanation, each.tokens) for each in missing)
        have += [None if isinstance(each, LLMError) else each for each in found]
        return have[:count]

    async def score(self, explanation: str, count: int) -> float | None:
        """Pearson's correlation over the tokens of the first `count` excerpts, pooled; relu first.

        None where it is undefined. It is what the scorer `correlation` gives on the test split.
        """
        values = await self.simulate(explanation, count)
        pairs = [
            (np.maximum(sample.true, 0), own)
            for sample, own in zip(self.excerpts, values, strict=False)
            if own is not None
        ]
        if not pairs:
            return None
        sides = zip(*pairs, strict=True)
        true, simulated = (np.concatenate(each).astype(np.float64) for each in sides)
        found = float(correlate(true[None], simulated[None]).correlation[0])
        return None if np.isnan(found) else found


def rank(score: float | None, *, hopeful: bool = False) -> float:
    """A score for comparisons: an undefined one is below all others, or above if `hopeful`."""
    if score is None:
        return np.inf if hopeful else -np.inf
    return score


async def settled(results: Iterable[Awaitable[_T]]) -> list[_T | LLMError]:
    """Results in order, with the error in the place of each that failed.

    All are waited for: what was sent may have been paid for.

    Raises:
        UnusableError, BudgetError: no more can be asked.
        Deferred: some were noted for a batch, and nothing worse happened to the others.
    """
    outcomes = await asyncio.gather(*results, return_exceptions=True)
    raised = [
        each
        for each in outcomes
        if isinstance(each, BaseException)
        and (isinstance(each, UnusableError) or not isinstance(each, LLMError))
    ]
    for error in sorted(raised, key=lambda each: isinstance(each, Deferred)):
        raise error
    return outcomes  # type: ignore[return-value]
