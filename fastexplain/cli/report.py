"""The report of a run: its scores beside their baselines, as pages and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastexplain.cli import terminal
from fastexplain.cli.common import AsJson, RunPath
from fastexplain.cli.terminal import out, print_json


def report(
    run: RunPath,
    directory: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Directory for the pages and pictures.")
    ],
    as_json: AsJson = False,
) -> None:
    """Write a report of a run's scores and their baselines.

    They are shown by layer, in index.html, report.md and pictures as SVG and PNG. It needs
    matplotlib: pip install 'fastexplain[report]'.
    """
    from fastexplain.cli import run_jobs
    from fastexplain.report.plots import check_matplotlib
    from fastexplain.run.directory import open_run

    opened = open_run(run)
    check_matplotlib()
    figures, files = run_jobs.write_report(opened, directory)
    if as_json:
        print_json(figures)
    else:
        # To a file on one line, for who searches in it by lines; a terminal would cut its words.
        line = f"Written: {', '.join(map(str, files))}"
        out.print(line, markup=False, soft_wrap=not terminal.LAID_OUT)
