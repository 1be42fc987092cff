"""What tuning a simulator would ask and cost, found by doing it all but sending anything."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path

from fastexplain.ledger.budget import Estimate
from fastexplain.ledger.responses import Responses
from fastexplain.llm import Connection
from fastexplain.pipeline.estimate import rehearsal_of
from fastexplain.pipeline.models import Settings, simulator_of
from fastexplain.pipeline.neurons import explain_neurons
from fastexplain.puzzles.oracle import DESCRIPTIONS, Given
from fastexplain.puzzles.solving import answers_file
from fastexplain.puzzles.texts import load
from fastexplain.puzzles.tuning import CHOOSING, REPORTING, check_tuning
from fastexplain.run.database import Database
from fastexplain.run.directory import Run
from fastexplain.simulators.tuning import Tuning, ways


async def rehearse_tuning(run: Run, settings: Settings, *, out: Path) -> Estimate:
    """What `tuning.tune` would ask and cost at the most, without sending anything.

    Which way is best is not known beforehand: the one that takes most requests stands for it,
    unless all are answered already, and the run has the best one recorded. What
    the model can do is taken from the record of a former probe in `out`; where there is none, that
    it can do what its kind mostly can.

    Args:
        run, settings, out: as for `tune`.

    Raises:
        UsageError, UnusableError: as `tune` does.
        RunError: what is in `out` can't be read.
    """
    model = check_tuning(run, settings)
    total = Estimate()
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        scratch = stack.enter_context(Database(Path(directory) / "scratch.sqlite"))
        stored, path = scratch, answers_file(out)
        if path.exists():
            stored = stack.enter_context(Database(path, read_only=True))
        asked = rehearsal_of(model, "simulation", Responses(stored), total)
        can = await asked.probe()
        first, examples = ways(can, settings.mode)

        async def count(way: Tuning, half: str) -> None:
            puzzles = load(half)
            for which in DESCRIPTIONS:
                async for _ in explain_neurons(
                    [puzzle.record() for puzzle in puzzles],
                    scratch,
                    explainer=Given(puzzles, which),
                    simulator=simulator_of(asked, replace(settings, tuning=way), None, can),
                ):
                    pass

        for way in first:
            await count(way, CHOOSING)
        best = None if total.purposes else _recorded(run, asked)
        usual = Tuning(first[0].mode)
        likeliest = first[-1] if best is None else replace(best, examples=usual.examples)
        others = [replace(likeliest, examples=name) for name in examples]
        for way in others:
            await count(way, CHOOSING)
        for way in (best or [*first, *others][-1], usual):
            await count(way, REPORTING)
    return total


def _recorded(run: Run, connection: Connection) -> Tuning | None:
    """What a former tuning of a run has found for a model; None where there was none."""
    with run.database(read_only=True) as database:
        stored = Responses(database).tuning(connection.model, connection.address)
    return None if stored is None else Tuning.of(stored)
