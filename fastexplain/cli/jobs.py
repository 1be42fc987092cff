"""The jobs of the command line: the library's calls with their progress on the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.markup import escape

from fastexplain.bench import turns as bench
from fastexplain.bench.geometries import random_subject
from fastexplain.cli.terminal import interrupts, messages, print_line, progress, working
from fastexplain.errors import RunError
from fastexplain.explainers.lists import check_entries
from fastexplain.explainers.lookup import lookup_is_stored, store_lookup
from fastexplain.explainers.rules import rules_are_stored, store_rules
from fastexplain.report.figures import run_figures, steps
from fastexplain.report.pages import write_report as write_pages
from fastexplain.run.directory import Run
from fastexplain.subject.model import Subject, load_subject
from fastexplain.sweeping.loop import sweep
from fastexplain.sweeping.warmup import compiled_beside
from fastexplain.text.corpus import Corpus


def load(name: str, **options: Any) -> Subject:
    """Load a subject; options as for `load_subject`."""
    with working(f"Loading {name}"):
        return load_subject(name, **options)


def sweep_corpus(
    subject: Subject,
    sources: list[str],
    run: Path,
    *,
    excerpts: int | None,
    seed: int = 0,
    column: str = "text",
    verbose: bool = False,
    **settings: Any,
) -> Run:
    """Read a corpus and sweep it, with progress on standard error.

    Args:
        verbose: list the files that were passed over.
    """
    with (
        progress(f"Reading {', '.join(sources)}", 100, percent=True) as advance,
        compiled_beside(subject, tables=settings.get("table_bytes") != 0),
    ):
        corpus = Corpus(
            sources, subject.tokenizer, excerpts=excerpts, seed=seed, column=column,
            progress=lambda fraction: advance(int(100 * fraction)),
        )  # fmt: skip
    if corpus.passed_over:
        line = corpus.passed_over_line()
        print_line(f"{line[0].upper()}{line[1:]}{':' if verbose else '; --verbose lists them.'}")
        for path, reason in corpus.passed_over.items() if verbose else ():
            print_line(f"  {path} {reason}")
    width = corpus.tokens.shape[1]
    with progress("Sweeping", len(corpus), tokens=width) as advance, interrupts() as interrupted:

        def after_a_batch(done: int) -> None:
            advance(done)
            if interrupted.is_set():
                print_line(
                    f"Stopped after {done} of {len(corpus)} excerpts; the same command continues "
                    "from there."
                )
                raise KeyboardInterrupt

        return sweep(subject, corpus, run, progress=after_a_batch, **settings)


def report_sweep(run: Run) -> None:
    """Print the size, speed and place of a finished sweep."""
    done = run.manifest["sweep"]
    print_line(
        f"{done['neurons']:,} neurons of {run.manifest['subject']['name']} over "
        f"{done['tokens']:,} tokens in {done['seconds']:.0f} s, "
        f"{done['tokens_per_second']:,.0f} tokens/s: {run.path}"
    )


def run_bench(
    geometry: str,
    *,
    layers: int | None,
    device: str | None,
    dtype: str | None,
    record: Path | None,
    **settings: Any,
) -> dict[str, Any]:
    """Measure a geometry, with what is being done on the terminal.

    Args:
        record: a file to write the result to, as JSON.
        settings: as for `measure`.
    """
    with messages.status(f"Making {escape(geometry)} of random numbers") as status:
        subject = random_subject(geometry, layers=layers, device=device, dtype=dtype)
        result = bench.measure(subject, report=status.update, **settings)
    if record is not None:
        try:
            record.parent.mkdir(parents=True, exist_ok=True)
            record.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
        except OSError as error:
            raise RunError(f"{record} can't be written: {error.strerror}") from error
    return result


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
