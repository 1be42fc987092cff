"""One excerpt through whatever simulates, a language model or an object of the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Sequence
from typing import TypeVar

import numpy as np

from fastexplain.errors import LLMError, UsageError
from fastexplain.explainers.meanings import meanings_of
from fastexplain.explainers.validation import settled
from fastexplain.pipeline.protocols import Simulator
from fastexplain.simulators.model import Simulation

_T = TypeVar("_T")


async def simulate(simulator: Simulator, explanation: str, tokens: Sequence[str]) -> Simulation:
    """A simulator's values, checked: one for each token, none infinite, not all missing.

    Of an explanation with several meanings each is simulated by itself, and a token's value is the
    largest of theirs: such a neuron reacts where any of its meanings holds. (Shown all at once, a
    simulator has to tell them apart, and a sum would exceed the scale where two hold.) Where one is
    missing, so is the value, since that one might be the largest.

    Raises:
        LLMError: it failed, or gave no value that can be used, for one of the meanings.
        UsageError: it gave another number of values than there are tokens.
    """
    parts = meanings_of(explanation)
    outcomes = await settled(_simulated(simulator, each, tokens) for each in parts)
    read: list[Simulation] = []
    for outcome in outcomes:
        if isinstance(outcome, LLMError):
            raise outcome
        read.append(outcome)
    reason = next((each.reason for each in read if each.reason), None)
    return Simulation(np.max([each.values for each in read], axis=0), reason)


async def _simulated(simulator: Simulator, meaning: str, tokens: Sequence[str]) -> Simulation:
    """One meaning's values, checked."""
    found = await awaited(simulator.simulate(meaning, tokens))
    if not isinstance(found, Simulation):
        found = Simulation(np.asarray(found))
    values = np.asarray(found.values, dtype=np.float64)
    if values.shape != (len(tokens),):
        raise UsageError(
            f"the simulator '{simulator.model}' gave {values.shape} values for "
            f"{len(tokens)} tokens; it has to give one for each"
        )
    if np.isinf(values).any():
        raise LLMError("the simulator gave a value that is infinite")
    if np.isnan(values).all():
        raise LLMError(found.reason or "the simulator gave no value")
    return Simulation(values, found.reason)


async def awaited(result: _T | Awaitable[_T]) -> _T:
    """What came at once, or what a coroutine comes to."""
    return await result if inspect.isawaitable(result) else result
