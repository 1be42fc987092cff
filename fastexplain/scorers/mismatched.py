"""The score of another neuron's explanation on the neuron's own excerpts.

What an explanation scores no better than this it does not say of its neuron. Random excerpts are
shared by all neurons, so that of them the simulations are there already: a neuron costs as many
requests as it has top excerpts in the test split, five.
"""

from __future__ import annotations

from fastexplain.errors import LLMError
from fastexplain.records import NeuronId
from fastexplain.run.database import Database
from fastexplain.run.directory import Run
from fastexplain.scorers.correlation import Correlation
from fastexplain.scorers.registry import Connect


def make(run: Run, connect: Connect) -> Mismatched:
    """See `registry`."""
    return Mismatched()


class Mismatched(Correlation):
    """As `Correlation`, by what is simulated from another neuron's explanation."""

    name = "mismatched"

    def text(self, neuron: NeuronId, database: Database) -> str:
        """See `pipeline.protocols.OtherText` and `Reading.other_explanation`."""
        found = database.other_explanation(neuron)
        if found is None:
            raise LLMError("no other neuron is explained yet; explain more, then repeat this")
        return found
