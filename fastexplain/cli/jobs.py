"""Sweeps and benchmarks of the command line: the library's calls with progress shown."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.markup import escape

from fastexplain.bench import turns as bench
from fastexplain.bench.geometries import random_subject
from fastexplain.cli.terminal import interrupts, messages, print_line, progress, working
from fastexplain.counting import counted
from fastexplain.errors import RunError
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
        compiled_beside(
            subject,
            tables=settings.get("table_bytes") != 0,
            signs=bool(settings.get("signs")),
        ),
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
        f"{counted(done['neurons'], 'neuron')} of {run.manifest['subject']['name']} over "
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
        if record is not None:
            with _writing(record):  # before the minutes of measuring
                record.parent.mkdir(parents=True, exist_ok=True)
        result = bench.measure(subject, report=status.update, **settings)
    if record is not None:
        with _writing(record):
            record.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    return result


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raise RunError, with the path, where a file can't be written."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{path} can't be written: {error.strerror}") from error
