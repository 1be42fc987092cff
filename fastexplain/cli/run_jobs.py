"""What the command line does with a finished run, with progress on the terminal.

Apart from `jobs.py`, whose imports, PyTorch and transformers, take seconds and are not needed here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastexplain.cli.terminal import progress, working
from fastexplain.explainers.lists import check_entries
from fastexplain.explainers.lookup import lookup_is_stored, store_lookup
from fastexplain.explainers.rules import rules_are_stored, store_rules
from fastexplain.report.figures import run_figures, steps
from fastexplain.report.pages import write_report as write_pages
from fastexplain.run.directory import Run


def explain_by_lookup(run: Run, *, fresh: bool = False, entries: int | None = None) -> None:
    """Explain every neuron by lookup and by a rule, where that wasn't done or is wanted `fresh`.

    Args:
        entries: of a lookup's text, at most; as many as those have that are stored if None.
    """
    if entries is not None:
        check_entries(entries)
    if fresh or not lookup_is_stored(run, entries):
        with progress("Explaining by lookup", len(run.layers)) as advance:
            store_lookup(run, advance, entries=entries)
    if fresh or not rules_are_stored(run):
        with progress("Explaining by rules", len(run.layers)) as advance:
            store_rules(run, advance)


def write_report(run: Run, directory: Path) -> tuple[dict[str, Any], list[Path]]:
    """Make a run's report; returns its figures and its files."""
    with progress("Scoring the baselines", steps(run)) as advance:
        figures = run_figures(run, advance)
    with working("Drawing"):
        return figures, write_pages(figures, directory)
