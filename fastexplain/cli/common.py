"""What several commands have in common: arguments, and results as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="End standard output with the result as one JSON object.")
]


def print_explanations(rows: list[Any]) -> None:
    from fastexplain.report.neuron import explanation_data

    print_json({"explanations": [explanation_data(row) for row in rows]})


def print_json(data: dict[str, Any]) -> None:
    print(json.dumps(data, allow_nan=False))
