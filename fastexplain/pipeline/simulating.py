"""One excerpt through whatever simulates, a language model or an object of the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Sequence
from typing import TypeVar

import numpy as np

from fastexplain.errors import LLMError, UsageError
from fastexplain.pipeline.protocols import Simulator
from fastexplain.simulators.model import Simulation

_T = TypeVar("_T")


async def simulate(simulator: Simulator, explanation: str, tokens: Sequence[str]) -> Simulation:
    """A simulator's values, checked: one for each token, none infinite, not all missing.

    Raises:
        LLMError: it failed, or gave no value that can be used.
        UsageError: it gave another number of values than there are tokens.
    """
    found = await awaited(simulator.simulate(explanation, tokens))
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
