"""One neuron on the screen: explanations, statistics, exemplars, simulations."""

from __future__ import annotations

from rich.console import Console

from fastexplain.cli.excerpts import LABEL, print_exemplars, print_line_of
from fastexplain.cli.signs import print_sign_exemplars, signs_table
from fastexplain.cli.tables import (
    baselines_table,
    entries_table,
    explained_by,
    explanations_table,
    interval_text,
    judges_table,
)
from fastexplain.cli.token_text import marked
from fastexplain.cli.weights import weights_table
from fastexplain.errors import UsageError
from fastexplain.records import Exemplar, NeuronRecord
from fastexplain.report.baselines import baselines_data
from fastexplain.report.entries import shown_entries, whole_words
from fastexplain.report.neuron import Simulated, explanations_of, full_of
from fastexplain.report.ruled import RuledExcerpts, is_rule
from fastexplain.results import DOCUMENTS, SIDES, TOP, StoredExplanation
from fastexplain.run.directory import Run
from fastexplain.run.sides import of_side

_LONGEST_LABEL = 18  # columns of who simulated


def print_neuron(
    console: Console, run: Run, record: NeuronRecord, count: int, *, signs: bool = False
) -> None:
    """Print a neuron: what is said of it, then exemplars, true above simulated.

    Args:
        signs: print the exemplars of its sign classes too.

    Raises:
        UsageError: the run has no sign classes.
    """
    classes = run.signs(record.id)
    if signs and classes is None:
        raise UsageError(f"{run.path} has no sign classes; sweep again with `signs`")
    rows, simulated = explanations_of(run, record)
    found = record.statistics
    console.print(
        f"[bold]neuron {record.id}[/]  mean {found.mean:.3g}  standard deviation "
        f"{found.variance**0.5:.3g}  above 0 on {found.fraction_positive:.1%}  "
        f"from {found.minimum:.3g} to {found.maximum:.3g}"
    )
    if rows:
        console.print()
        console.print(explanations_table(rows, intervals=True, texts=whole_words(run, rows)))
        if baselines := baselines_data(run, record.id)["baselines"]:
            console.print()
            console.print(baselines_table(baselines))
        for row in (row for row in rows if row.text_scores is not None):
            if entries := shown_entries(run, row):
                console.print()
                console.print(entries_table(entries, row.parameters["default"]))
        simulated += _print_rules(console, run, record, rows)
        if table := judges_table(run, rows):
            console.print()
            console.print(table)
        _print_documents(console, run, rows)
    else:
        console.print(f"Not explained yet; run: fastexplain explain {run.path}", markup=False)
    if (weights := run.weights(record.id)) is not None:
        console.print()
        console.print(weights_table(weights))
    if classes is not None:
        console.print()
        console.print(signs_table(classes))
    largest = max(found.maximum, 0)
    for kind in ("top", "random"):
        print_exemplars(console, kind, getattr(record, kind)[:count], largest, record.skip)
    if record.bottom:
        negated = [
            Exemplar(e.excerpt, e.token_ids, e.tokens, -e.activations)
            for e in record.bottom[:count]
        ]
        print_exemplars(
            console, "bottom, by -activation", negated, max(-found.minimum, 0), record.skip
        )
    if signs and classes is not None:
        print_sign_exemplars(console, classes, count, record.skip)
    for side in SIDES:
        if own := [each for each in simulated if each[0].side == side]:
            _print_simulations(console, of_side(record, side), own, side, count)
    console.print(
        f"\nColours, or numbers as in {marked(console, 8)} where there are none, are tenths: "
        "of the neuron's largest activation, and of 10 (or a contrast's largest) where a language "
        "model simulates.",
        style="dim",
    )


def _print_rules(
    console: Console, run: Run, record: NeuronRecord, rows: list[StoredExplanation]
) -> list[Simulated]:
    """Print the terms of rules; returns what these predict."""
    ruled, simulated = RuledExcerpts(run), []
    for row in (row for row in rows if is_rule(row)):
        console.print()
        try:
            simulated.append((row, ruled.simulated(row)))
            terms = ruled.terms(record, row)
            console.print(entries_table(terms, row.parameters["default"], rule=True))
        except UsageError as error:
            console.print(f"No terms: {error}", markup=False)
    return simulated


def _print_documents(console: Console, run: Run, rows: list[StoredExplanation]) -> None:
    """Print what lookup's table scores without whole documents, where it is scored so."""
    with run.database(read_only=True) as database:
        for row in (row for row in rows if row.text_scores is not None):
            for each in (s.measured for s in database.scores(row.id) if s.scorer == DOCUMENTS):
                console.print(
                    "Lookup's table, whole documents left out: "
                    f"{interval_text(each.value, each.low, each.high)} on random excerpts"
                    f"{f' ({each.reason})' if each.reason else ''}.",
                    markup=False,
                )


def _print_simulations(
    console: Console,
    record: NeuronRecord,
    simulated: list[Simulated],
    side: str,
    count: int,
) -> None:
    """Print test excerpts, half of them top ones: the true activations above each simulation.

    Args:
        record: the neuron as it is seen from the side that is explained.
    """
    largest = max(record.statistics.maximum, 0)
    turned = "" if side == TOP else ", by -activation"
    tested = set().union(*(excerpts for _, excerpts in simulated))
    tops = [(side, e) for e in record.top if e.excerpt in tested]
    seen = {exemplar.excerpt for _, exemplar in tops}
    others = [("random", e) for e in record.random if e.excerpt in tested - seen]
    width = max(LABEL, *(min(len(explained_by(row)), _LONGEST_LABEL) for row, _ in simulated))
    chosen = tops[: max(-(-count // 2), count - len(others))]
    for kind, exemplar in chosen + others[: count - len(chosen)]:
        console.print(f"\n[bold]{kind} excerpt of the test split{turned}[/]")
        print_line_of(
            console, "true", exemplar.tokens, exemplar.activations, largest, record.skip, width
        )
        for row, excerpts in simulated:
            if exemplar.excerpt in excerpts:
                values = excerpts[exemplar.excerpt]
                scale = full_of(row, excerpts, largest)
                by = explained_by(row)
                print_line_of(console, by, exemplar.tokens, values, scale, record.skip, width)
