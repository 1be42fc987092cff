"""A text that somebody tries as a neuron's explanation: simulated by a language model, and scored.

What is asked is what `explain` asks to score an explanation by correlation, so each of them finds
the other's answers in the store. Nothing is added to the run's explanations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastexplain.errors import LLMError, UsageError
from fastexplain.explainers.validation import settled
from fastexplain.ledger.budget import Estimate
from fastexplain.ledger.responses import Responses
from fastexplain.pipeline.estimate import rehearsal_of
from fastexplain.pipeline.models import Settings, recorded_tuning, simulator_of
from fastexplain.pipeline.protocols import Simulator
from fastexplain.pipeline.simulating import simulate
from fastexplain.records import NeuronRecord
from fastexplain.results import Explanation, Measured, Sample
from fastexplain.scorers.correlation import Correlation
from fastexplain.simulators.model import Simulation


@dataclass(frozen=True)
class Typed:
    """Explains by a text that somebody typed; see `pipeline.protocols.Explainer`."""

    text: str
    method = model = "typed"
    version = "1"

    def explain(self, record: NeuronRecord) -> Explanation:
        """See `Explainer`."""
        return Explanation(self.text)


@dataclass(frozen=True)
class Tried:
    """What came of a text.

    Attributes:
        text: the same.
        simulator, version: who simulated, and how it was asked.
        scores: of the text, as the scorer `correlation` gives them.
        values: by excerpt id, float32 `[counted]`, NaN where one is missing.
        failures: why excerpts, or tokens of them, were not simulated.
    """

    text: str
    simulator: str
    version: str
    scores: list[Measured]
    values: dict[int, np.ndarray]
    failures: list[str]


async def try_text(
    record: NeuronRecord,
    text: str,
    simulator: Simulator,
    advance: Callable[[], None] = lambda: None,
) -> Tried:
    """Simulate a neuron's test excerpts from a text, and score it.

    Args:
        advance: called when an excerpt is simulated or has failed.

    Raises:
        LLMError: no excerpt could be simulated.
        BudgetError: a limit was reached; what was in flight is stored.
        UsageError: the neuron has no excerpts to be scored on.
    """
    excerpts = Correlation().excerpts(record)
    outcomes = await _simulated(record, excerpts, text, simulator, advance)
    return _scored(record, text, simulator, excerpts, outcomes)


async def _simulated(
    record: NeuronRecord,
    excerpts: Sequence[Sample],
    text: str,
    simulator: Simulator,
    advance: Callable[[], None] = lambda: None,
) -> list[Simulation | LLMError]:
    """A simulation of each excerpt, or why there is none."""
    if not excerpts:
        raise UsageError(f"{record.id} has no excerpts to be scored on")

    async def simulated(sample: Sample) -> Simulation:
        try:
            return await simulate(simulator, text, sample.tokens)
        finally:
            advance()

    return await settled(simulated(each) for each in excerpts)


def _scored(
    record: NeuronRecord,
    text: str,
    simulator: Simulator,
    excerpts: Sequence[Sample],
    outcomes: Sequence[Simulation | LLMError],
) -> Tried:
    """The score of what was simulated. Raises LLMError if that is nothing."""
    # In the precision in which simulations are stored, and so scored.
    values = {
        sample.excerpt: outcome.values.astype(np.float32)
        for sample, outcome in zip(excerpts, outcomes, strict=True)
        if isinstance(outcome, Simulation)
    }
    reasons = [
        outcome.reason if isinstance(outcome, Simulation) else str(outcome) for outcome in outcomes
    ]
    failures = [reason for reason in reasons if reason]
    if not values:
        raise LLMError(failures[0])
    own = [replace(each, simulated=values.get(each.excerpt)) for each in excerpts]
    scores = Correlation().score(record, text, own)
    return Tried(text, simulator.model, simulator.version, scores, values, failures)


async def rehearse_text(
    responses: Responses, record: NeuronRecord, text: str, settings: Settings
) -> tuple[Estimate, Tried | None]:
    """What `try_text` would ask and cost at the most; and what it would give, if that is nothing.

    Nothing is sent. What the simulator can do is taken from the run's record of a former probe;
    where there is none, that it can do what its kind mostly can.

    Args:
        responses: the run's, which are only read.
        settings: with a language model as simulator.

    Raises:
        UnusableError: the simulator is known to lack what is asked for.
        LLMError: all that is stored is of no use.
        UsageError: the neuron has no excerpts to be scored on.
    """
    _, model = settings.models
    total = Estimate()
    inner = rehearsal_of(model, "simulation", responses, total)
    assert inner.capabilities is not None
    tuned = recorded_tuning(responses, inner, settings)
    simulator = simulator_of(inner, settings, tuned, inner.capabilities)
    excerpts = Correlation().excerpts(record)
    outcomes = await _simulated(record, excerpts, text, simulator)
    if total.total.requests:  # some are of stand-ins for answers
        return total, None
    return total, _scored(record, text, simulator, excerpts, outcomes)
