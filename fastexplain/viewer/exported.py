"""What an exported site has of a run: the data behind the same paths as the viewer's server has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastexplain.finding.search import best_explanation, headline
from fastexplain.records import NeuronId
from fastexplain.report.neuron import neuron_data
from fastexplain.report.run import run_data
from fastexplain.run.directory import Run


def is_whole(run: Run, neurons: Sequence[NeuronId]) -> bool:
    """Whether distinct neurons are all that a run has."""
    return len(neurons) == sum(site.units for site in run.sites.values())


def run_parts(run: Run, *, whole: bool) -> Iterator[tuple[str, Any]]:
    """Paths and data of what is one for the run.

    Args:
        whole: all neurons are exported, so that there is an overview of them.
    """
    yield "run", run_data(run)


def neuron_part(
    run: Run, neuron: NeuronId, before: NeuronId | None = None, after: NeuronId | None = None
) -> tuple[str, Any]:
    """The path and the data of one neuron's page.

    Args:
        before, after: the neurons beside it among those that are exported.

    Raises:
        UsageError: the run has no such neuron.
        RunError: the run can't be read.
    """
    beside = {"previous": before and str(before), "next": after and str(after)}
    return f"neuron/{neuron}", neuron_data(run, run.neuron(neuron), 20) | beside


def texts_part(run: Run, neurons: Sequence[NeuronId]) -> list[list[Any] | None]:
    """Method, model, text and headline score of neurons' best explanations; None without one.

    Raises RunError if the run's database is damaged.
    """
    found: list[list[Any] | None] = []
    with run.database(read_only=True) as database:
        for neuron in neurons:
            row = best_explanation(database.explanations(neuron))
            found.append(None if row is None else [row.method, row.model, row.text, headline(row)])
    return found
