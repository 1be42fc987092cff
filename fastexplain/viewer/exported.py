"""What an exported site has of a run: the data behind the same paths as the viewer's server has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastexplain.records import NeuronId
from fastexplain.report.neuron import neuron_data
from fastexplain.report.run import run_data
from fastexplain.run.directory import Run


def run_parts(run: Run, neurons: Sequence[NeuronId] | None) -> Iterator[tuple[str, Any]]:
    """Paths and data of what is one for the run; None for `neurons` is a page of one neuron."""
    yield "run", run_data(run)


def neuron_part(run: Run, neuron: NeuronId) -> tuple[str, Any]:
    """The path and the data of one neuron's page.

    Raises:
        UsageError: the run has no such neuron.
        RunError: the run can't be read.
    """
    return f"neuron/{neuron}", neuron_data(run, run.neuron(neuron), 20)
