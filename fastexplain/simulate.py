"""Simulation: a model predicts a neuron's activations from its explanation alone.

Source: Bills et al. 2023, "Step 2: Simulate the neuron's activations", and its section on
simulating a whole excerpt at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastexplain.llm import Connection
from fastexplain.prompts import simulator


async def simulate(explanation: str, tokens: Sequence[str], connection: Connection) -> np.ndarray:
    """Predict a neuron's values on the counted tokens of an excerpt, in one request.

    Args:
        explanation: what the neuron reacts to.
        tokens: the excerpt's counted tokens, as text.
        connection: the simulator; it must give log-probabilities of prompts.

    Returns:
        float64 `[tokens]`: the expectation over the integers 0..10, or 0..9 where "10" is not one
        token for the simulator, their probabilities renormalised. NaN where the model puts too
        little on the integers to know.

    Raises:
        LLMError: the simulator failed; the simulation is then missing.
    """
    prompt = simulator.prompt(explanation, tokens, await connection.largest_integer())
    return expectation(
        await connection.integer_log_probabilities(prompt.text, prompt.places, shared=prompt.shared)
    )


def expectation(log_probabilities: np.ndarray) -> np.ndarray:
    """The expected integer of each row of `[tokens, integers]`, renormalised; NaN if unknown."""
    # Relative to the row's largest, lest probabilities too small for a float vanish together.
    relative = np.exp(log_probabilities - log_probabilities.max(axis=1, keepdims=True))
    return relative @ np.arange(relative.shape[1]) / relative.sum(axis=1)
