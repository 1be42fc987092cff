"""What `explain` prints at its end: the explanations of the neurons that were named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastexplain.cli.common import print_rows
from fastexplain.cli.terminal import out

if TYPE_CHECKING:
    from rich.table import Table

    from fastexplain.records import NeuronId
    from fastexplain.results import StoredExplanation
    from fastexplain.run.database import Database
    from fastexplain.run.directory import Run

# Of more explained neurons than these only the best are shown.
_SHOWN = 50
# Layers of which the best is shown, a line each.
_LINES = 40
# Where they are of one layer, so many of its best.
_OF_ONE_LAYER = 10


def print_explained(
    run: Run, neurons: list[NeuronId], asked: tuple[str, str, str | None], as_json: bool
) -> None:
    """Print the explanations of neurons by a method, model and version.

    Without a version they are of any. Of very many neurons the best of each of their layers is
    printed, or the best ones of a single layer.
    """
    from fastexplain.cli.tables import best_table
    from fastexplain.report.entries import whole_words

    method, explainer, version = asked
    made_by = [(method, explainer), *([("rule", "rule")] if method == "lookup" else [])]
    best = not neurons or (len(neurons) > _SHOWN and not as_json)
    with run.database() as database:
        if best:
            rows = _best(run, database, neurons, made_by, version)
        else:
            rows = [
                row
                for neuron in neurons
                for row in database.explanations(neuron)
                if (row.method, row.model) in made_by and version in (None, row.version)
            ]
    if best and rows and not as_json:
        layers = {row.neuron.layer for row in rows}
        of = "each layer" if len(layers) > 1 else f"layer {layers.pop()}"
        title = f"The best of {of}, by its text's score on top and random excerpts"
        out.print(best_table(rows, title, whole_words(run, rows)))
        return
    undefined = f"None of the {len(neurons):,} neurons has a score that is defined."
    otherwise = undefined if best and neurons else None
    print_rows(rows, as_json, otherwise=otherwise, run=run, words=run)
    if not as_json and (table := spent_table(rows)):
        out.print(table)


def spent_table(rows: Sequence[StoredExplanation]) -> Table | None:
    """What was spent to find each explanation that was chosen or revised; None where none was."""
    from fastexplain.cli.tables import light_table
    from fastexplain.ledger.prices import dollars
    from fastexplain.ledger.tally import Tally

    spent = {row.id: row for row in rows if "spent" in row.parameters}
    if not spent:
        return None
    table = light_table("What it took to find them, without their scores")
    for column in ("neuron", "requests", "tokens", "cost"):
        table.add_column(column, justify="left" if column == "neuron" else "right")
    for row in spent.values():
        own = Tally(**row.parameters["spent"])
        table.add_row(
            str(row.neuron),
            f"{own.requests:,}",
            f"{own.prompt_tokens + own.completion_tokens:,}",
            "unknown" if own.cost is None else dollars(own.cost),
        )
    return table


def _best(
    run: Run,
    database: Database,
    neurons: list[NeuronId],
    made_by: list[tuple[str, str]],
    version: str | None,
) -> list[StoredExplanation]:
    """The best explanations of each layer of these neurons, or of all layers where there are none.

    Args:
        made_by: methods and models; of two for one neuron the better one counts.
        version: of the methods; of any if None.
    """
    from fastexplain.finding.search import headline

    named: dict[int, list[NeuronId]] = {layer: [] for layer in run.layers} if not neurons else {}
    for neuron in neurons:
        named.setdefault(neuron.layer, []).append(neuron)
    count = _OF_ONE_LAYER if len(named) == 1 else 1
    found = []
    for layer in _some(sorted(named)):
        rows = [
            row
            for method, model in made_by
            for row in database.best(
                count, method, layer=layer, model=model, version=version,
                neurons=named[layer] or None,
            )
        ]  # fmt: skip
        better: dict[NeuronId, StoredExplanation] = {}
        for row in sorted(rows, key=lambda row: headline(row) or 0.0, reverse=True):
            better.setdefault(row.neuron, row)
        found += list(better.values())[:count]
    return found


def _some(layers: list[int]) -> list[int]:
    """All layers, or as many as fit on a screen, spread evenly."""
    count = min(len(layers), _LINES)
    return [layers[place * len(layers) // count] for place in range(count)]
