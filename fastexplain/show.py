"""One neuron on the screen: explanations, statistics, exemplars, simulations."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from fastexplain.display import (
    excerpt_text,
    explained_by,
    explanation_data,
    explanations_table,
)
from fastexplain.explainers.lookup import simulate_by_lookup
from fastexplain.records import Exemplar, NeuronRecord, StoredExplanation
from fastexplain.run.directory import Run

# An explanation, and by excerpt id what was predicted from it, float32 `[tokens]`.
_Simulated = tuple[StoredExplanation, dict[int, np.ndarray]]


def neuron_data(run: Run, record: NeuronRecord, count: int) -> dict[str, Any]:
    """A neuron as `--json` gives it: activations as numbers, NaN as null."""
    rows, simulated = _explanations(run, record)
    statistics = {
        name: value.tolist() if isinstance(value, np.ndarray) else _number(value)
        for name, value in vars(record.statistics).items()
    }
    return {
        "neuron": str(record.id),
        "skip": record.skip,
        "statistics": statistics,
        "explanations": [explanation_data(row) for row in rows],
        **{
            kind: [_exemplar_data(exemplar) for exemplar in getattr(record, kind)[:count]]
            for kind in ("top", "bottom", "random")
        },
        "simulations": [
            {
                "explanation": row.id,
                "simulator": row.simulator,
                "excerpt": excerpt,
                "activations": [_number(float(value)) for value in values],
            }
            for row, excerpts in simulated
            for excerpt, values in excerpts.items()
        ],
    }


def print_neuron(console: Console, run: Run, record: NeuronRecord, count: int) -> None:
    """Print a neuron: what is said of it, then exemplars, true above simulated."""
    rows, simulated = _explanations(run, record)
    found = record.statistics
    console.print(
        f"[bold]neuron {record.id}[/]  mean {found.mean:.3g}  standard deviation "
        f"{found.variance**0.5:.3g}  above 0 on {found.fraction_positive:.1%}  "
        f"from {found.minimum:.3g} to {found.maximum:.3g}"
    )
    if rows:
        console.print(explanations_table(rows))
    else:
        console.print(f"Not explained yet; run: fastexplain explain {run.path}", markup=False)
    largest = max(found.maximum, 0)
    for kind in ("top", "random"):
        _print_exemplars(console, kind, getattr(record, kind)[:count], largest, record.skip)
    if record.bottom:
        negated = [
            Exemplar(e.excerpt, e.token_ids, e.tokens, -e.activations)
            for e in record.bottom[:count]
        ]
        _print_exemplars(
            console, "bottom, by -activation", negated, max(-found.minimum, 0), record.skip
        )
    if simulated:
        _print_simulations(console, record, simulated, largest, count)
    console.print(
        "\nColours, or numbers in brackets where there are none, are tenths: of the neuron's "
        "largest activation, and of 10 (or a contrast's largest) where a language model simulates.",
        style="dim",
    )


def _print_simulations(
    console: Console,
    record: NeuronRecord,
    simulated: list[_Simulated],
    largest: float,
    count: int,
) -> None:
    """Print test excerpts, half of them top ones: the true activations above each simulation."""
    tested = set().union(*(excerpts for _, excerpts in simulated))
    tops = [("top", e) for e in record.top if e.excerpt in tested]
    seen = {exemplar.excerpt for _, exemplar in tops}
    others = [("random", e) for e in record.random if e.excerpt in tested - seen]
    chosen = tops[: max(-(-count // 2), count - len(others))]
    for kind, exemplar in chosen + others[: count - len(chosen)]:
        console.print(f"\n[bold]{kind} excerpt of the test split[/]")
        _print_line(console, "true", exemplar.tokens, exemplar.activations, largest, record.skip)
        for row, excerpts in simulated:
            if exemplar.excerpt in excerpts:
                values = excerpts[exemplar.excerpt]
                scale = _scale(row, excerpts, largest)
                _print_line(console, explained_by(row), exemplar.tokens, values, scale, record.skip)


def _scale(row: StoredExplanation, excerpts: dict[int, np.ndarray], largest: float) -> float:
    """The value that gets the full colour: a table predicts activations, a model integers to 10.

    A contrast has a scale of its own: there it is the largest that was simulated.
    """
    if row.method == "lookup":
        return largest
    if (row.simulation or "").endswith("contrast"):
        return max(float(np.nanmax(values)) for values in excerpts.values())
    return 10.0


def _explanations(
    run: Run, record: NeuronRecord
) -> tuple[list[StoredExplanation], list[_Simulated]]:
    """What is stored of a neuron, and the predictions of its test excerpts from each of these."""
    simulated: list[_Simulated] = []
    with run.database(read_only=True) as database:
        rows = database.explanations(record.id)
        for row in rows:
            if row.method == "lookup":
                simulated.append((row, simulate_by_lookup(run, record)))
                continue
            values = {
                found.excerpt: found.values
                for found in database.simulations(row.id)
                if (found.simulator, found.version) == (row.simulator, row.simulation)
                and found.values is not None
            }
            if values:
                simulated.append((row, values))
    return rows, simulated


def _print_exemplars(
    console: Console, title: str, exemplars: list[Exemplar], scale: float, skip: int
) -> None:
    console.print(f"\n[bold]{title}[/]")
    for exemplar in exemplars:
        strongest = float(exemplar.activations[skip:].max())
        label = f"{strongest:.2f}"
        _print_line(console, label, exemplar.tokens, exemplar.activations, scale, skip)


def _print_line(
    console: Console,
    label: str,
    tokens: list[str],
    activations: np.ndarray,
    scale: float,
    skip: int,
) -> None:
    counted = activations.copy()
    counted[:skip] = 0  # what counts for nothing gets no colour
    console.print(
        Text.assemble((f"{label:>8}  ", "dim"), excerpt_text(console, tokens, counted, scale)),
        soft_wrap=not console.is_terminal,  # a line each in a file, whole words on a screen
    )


def _exemplar_data(exemplar: Exemplar) -> dict[str, Any]:
    return {
        "excerpt": exemplar.excerpt,
        "token_ids": exemplar.token_ids.tolist(),
        "tokens": exemplar.tokens,
        "activations": [_number(value) for value in exemplar.activations.tolist()],
    }


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
