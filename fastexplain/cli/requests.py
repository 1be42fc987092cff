"""Jobs that send requests, with progress and failures on the terminal."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from pathlib import Path

from fastexplain.cli.live import display
from fastexplain.cli.terminal import interrupts, print_line
from fastexplain.pipeline import explaining
from fastexplain.pipeline.batches import rounds
from fastexplain.pipeline.explaining import Outcome
from fastexplain.pipeline.models import Settings
from fastexplain.records import NeuronId
from fastexplain.run.directory import Run

# Failures that are printed one by one; all are stored with their reasons.
_PRINTED = 20

# What differs between failures of one kind: what is quoted, and numbers.
_VARYING = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\d+")


def explain_by_model(run: Run, neurons: list[NeuronId], settings: Settings) -> Outcome:
    """Explain, simulate and score, with progress and failures on the terminal.

    The first Ctrl-C lets requests in flight end, and is part of the outcome, unless all models run
    in this process; the second one raises KeyboardInterrupt.
    """
    progress, failures = explaining.Progress(len(neurons)), Failures()
    with contextlib.ExitStack() as stack:
        # What a server has in flight may be paid for; what waits for a model here is not.
        if not settings.local:
            progress.interrupted = stack.enter_context(interrupts())
        stack.enter_context(display(progress))
        try:
            outcome = asyncio.run(
                explaining.explain_by_model(
                    run, neurons, settings, progress=progress, on_failure=failures.add
                )
            )
        except KeyboardInterrupt:
            print_line("All answers so far are stored; the same command continues from there.")
            raise
    failures.summary()
    _tell_tuned(outcome)
    return outcome


def explain_in_batches(
    run: Run, neurons: list[NeuronId], settings: Settings, file: Path | None
) -> Outcome:
    """As `explain_by_model`, through a batch API or files; see `pipeline.batches.rounds`."""
    failures = Failures()
    try:
        outcome = asyncio.run(
            rounds.explain_in_batches(
                run, neurons, settings, file, report=print_line, on_failure=failures.add
            )
        )
    except KeyboardInterrupt:
        if file is None:
            print_line(
                "Batches that were submitted go on at the server; the same command fetches them."
            )
        raise
    failures.summary()
    _tell_tuned(outcome)
    return outcome


def _tell_tuned(outcome: Outcome) -> None:
    if outcome.tuned is not None:
        print_line(f"Simulated as tuned by puzzles: {outcome.tuned}; --readout overrides that.")


class Failures:
    """Prints the first failures as they come, and at the end how many there were of each kind."""

    def __init__(self) -> None:
        self._count = 0
        self._kinds: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, neuron: NeuronId, failure: str) -> None:
        if self._count < _PRINTED:
            print_line(f"{neuron}: {failure}")
        self._count += 1
        reason = failure.partition(": ")[2]
        kind = _VARYING.sub("", reason)
        self._kinds[kind] += 1
        self._examples.setdefault(kind, reason)

    def summary(self) -> None:
        if self._count > _PRINTED:
            often = (
                f"{count:,} times such as: {self._examples[kind]}"
                for kind, count in self._kinds.most_common(3)
            )
            print_line(
                f"{self._count:,} failures; {'; '.join(often)}. The same command asks again for "
                "what was not answered; what was, but can't be used, only --fresh asks for again.",
            )
