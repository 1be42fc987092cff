"""The score of an empty explanation: what the simulator predicts by the excerpt alone."""

from __future__ import annotations

from fastexplain.records import NeuronId
from fastexplain.run.database import Database
from fastexplain.run.directory import Run
from fastexplain.scorers.correlation import Correlation
from fastexplain.scorers.registry import Connect

# True of every token, as the empty explanation of the contrast readout: prompts have a place for
# an explanation, which no text at all would leave odd. Where neurons share excerpts it is asked
# once for all.
_TEXT = "something"


def make(run: Run, connect: Connect) -> Empty:
    """See `registry`."""
    return Empty()


class Empty(Correlation):
    """As `Correlation`, by what is simulated from an explanation that says nothing."""

    name = "empty"

    def text(self, neuron: NeuronId, database: Database) -> str:
        """See `pipeline.protocols.OtherText`."""
        return _TEXT
