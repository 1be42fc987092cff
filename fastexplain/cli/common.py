"""What several commands have in common: arguments, and results as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastexplain.cli.terminal import out, print_json

if TYPE_CHECKING:
    from fastexplain.records import StoredExplanation

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="End standard output with the result as one JSON object.")
]


Device = Annotated[str | None, typer.Option(help="cpu, cuda or mps.")]
DType = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
Limit = Annotated[int, typer.Option(min=1, help="Explanations to show.")]


def print_rows(
    rows: list[StoredExplanation],
    as_json: bool,
    *,
    title: str | None = None,
    otherwise: str | None = None,
) -> None:
    """Print explanations as JSON or as a table; `otherwise` is what is said if there are none."""
    from fastexplain.cli.tables import explanations_table
    from fastexplain.report.neuron import explanation_data

    if as_json:
        print_json({"explanations": [explanation_data(row) for row in rows]})
    elif rows:
        out.print(explanations_table(rows, title))
    elif otherwise is not None:
        out.print(otherwise, markup=False)
