"""What explains, simulates and scores: a class of the user's own may stand for each.

A rule-based explainer and a simulator that asks no language model, for example:

    class LongestToken:
        method, model, version = "rule", "longest token", "1"

        def explain(self, record):
            best = record.top[0]
            return Explanation(max(best.tokens, key=len))

    class Mentions:
        model, version = "mentions", "1"

        def simulate(self, explanation, tokens):
            return [10.0 * (token in explanation) for token in tokens]
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from fastexplain.records import NeuronId, NeuronRecord
from fastexplain.results import Explanation, Measured, Sample
from fastexplain.run.database import Database
from fastexplain.simulators.model import Simulation


@runtime_checkable
class Explainer(Protocol):
    """Writes explanations.

    Attributes:
        method: how: "model" for a language model.
        model: what or who: a language model's name.
        version: of the way it is asked. Explanations by the same method, model and version are
            found again, and not asked for once more.
    """

    method: str
    model: str
    version: str

    def explain(self, record: NeuronRecord) -> Explanation | Awaitable[Explanation]:
        """Explain one neuron; may be a coroutine.

        Raises:
            LLMError: this neuron can't be explained; it is stored with the message.
        """
        ...


@runtime_checkable
class Simulator(Protocol):
    """Predicts activations from an explanation.

    Attributes:
        model: what or who.
        version: of the way it is asked.
    """

    model: str
    version: str

    def simulate(
        self, explanation: str, tokens: Sequence[str]
    ) -> Simulation | Sequence[float] | np.ndarray | Awaitable[Simulation | np.ndarray]:
        """Predict a value for each counted token of an excerpt, on any scale; may be a coroutine.

        Returns:
            Values `[tokens]`, NaN where one is missing, or these as a `Simulation`.

        Raises:
            LLMError: this excerpt can't be simulated; it is stored with the message.
        """
        ...


@runtime_checkable
class Scorer(Protocol):
    """Scores an explanation, by simulations or by asking a model itself.

    Attributes:
        name: under which its scores are stored.
        measures: the names of the measures that it gives.
        judge: None for a scorer that goes by simulations. Else the model that it asks and the
            version of the way in which it does; its excerpts are not simulated. It may also have
            `most_requests`, what it asks of a neuron at the most, for the time left that is shown.
    """

    name: str
    measures: tuple[str, ...]
    judge: tuple[str, str] | None

    def excerpts(self, record: NeuronRecord) -> list[Sample]:
        """The excerpts on which it scores a neuron's explanation, most often `splits.samples`."""
        ...

    def score(
        self, record: NeuronRecord, explanation: str, excerpts: Sequence[Sample]
    ) -> list[Measured] | Awaitable[list[Measured]]:
        """Score one explanation; may be a coroutine.

        Args:
            excerpts: those that it wants, simulated unless it is a judge's scorer; those of which
                the simulation failed have none.

        Raises:
            LLMError: this explanation can't be scored; it is reported, and tried again by the next
                call.
        """
        ...


@runtime_checkable
class OtherText(Protocol):
    """A scorer for which excerpts are simulated from another text, to compare the explanation with.

    It is a `Scorer` without a judge. These simulations are not stored beside the explanation's own;
    a language model's answers are found again in the store of responses.
    """

    def text(self, neuron: NeuronId, database: Database) -> str:
        """The text to simulate from.

        Args:
            database: with the explanations of all neurons that were explained so far.

        Raises:
            LLMError: there is none; it is reported, and tried again by the next call.
        """
        ...
