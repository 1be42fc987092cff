"""Solving puzzles from Python: one call that waits, and the same as a coroutine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastexplain.errors import UsageError
from fastexplain.pipeline.api import waiting
from fastexplain.pipeline.models import Model, Settings
from fastexplain.pipeline.protocols import Explainer, Scorer, Simulator
from fastexplain.progress import Report, reported
from fastexplain.puzzles.oracle import DESCRIPTIONS, Given
from fastexplain.puzzles.solving import Solved, explainer_of, simulator_of, solve
from fastexplain.puzzles.texts import load
from fastexplain.puzzles.tuning import Tuned, tune
from fastexplain.results import CORRELATION
from fastexplain.run.directory import Run


async def solve_puzzles_async(
    *,
    explainer: Model | Explainer | str = "lookup",
    simulator: Model | Simulator | str | None = None,
    scorers: Sequence[Scorer | str] = (CORRELATION,),
    half: str = "reporting",
    out: str | Path = "puzzles-run",
    simulation: str | None = None,
    readout: str | None = None,
    prompt: str | None = None,
    max_cost: float | None = None,
    max_requests: int | None = None,
    max_minutes: float | None = None,
    concurrency: int = 64,
    timeout: float = 120.0,
    fresh: bool = False,
    progress: bool | Report = False,
) -> Solved:
    """Measure explainer, simulator and scorers on neurons whose true description is known.

    Args:
        explainer: a language model; an object that explains; "lookup", which lists words; or
            "oracle", which knows the answers.
        simulator: a language model, an object that simulates, "lookup" or "oracle"; the explainer
            if None. The oracle reads no explanations but the puzzles' own.
        scorers: names, or objects that score; see `pipeline.protocols`.
        half: "reporting", or "choosing" for the half by which models and prompts are chosen.
        out: a directory in which answers are stored; the same call again asks nothing.
        simulation, readout, prompt: as in `explain`.
        max_cost, max_requests, max_minutes, concurrency, timeout, fresh: as in `explain`.
        progress: True shows a bar. A function is called with the number of descriptions done.

    Raises:
        UsageError: an argument makes no sense.
        RunError: `out` can't be written.
        LLMError: a model can't be reached or lacks what is needed, or nothing could be scored.
        BudgetError: a limit was reached; the same call with a higher one goes on from there.
    """
    puzzles = load(half)
    explaining = explainer_of(explainer, puzzles)
    if simulator is None:
        simulator = explainer if isinstance(explainer, Model | str) else None
    if simulator is None:
        raise UsageError("the explainer is no language model; name a simulator too")
    settings = Settings(
        explaining, simulator_of(simulator, puzzles), simulation, readout,
        {"concurrency": concurrency, "timeout": timeout},
        fresh=fresh, max_cost=max_cost, max_requests=max_requests, max_minutes=max_minutes,
        scorers=scorers, prompt=prompt,
    )  # fmt: skip
    total = len(puzzles) * (len(DESCRIPTIONS) + 1)
    with reported(progress, "Solving puzzles", total, "descriptions") as report:
        return await solve(settings, half=half, out=Path(out), report=report)


solve_puzzles = waiting(solve_puzzles_async, "solve_puzzles")


async def tune_simulator_async(
    run: Run,
    simulator: Model,
    *,
    out: str | Path = "puzzles-run",
    simulation: str | None = None,
    max_cost: float | None = None,
    max_requests: int | None = None,
    max_minutes: float | None = None,
    concurrency: int = 64,
    timeout: float = 120.0,
    progress: bool | Report = False,
) -> Tuned:
    """Choose by puzzles how a simulator is asked and read; `explain` on this run goes by it then.

    Args:
        run: from `sweep` or `open_run`; the choice is kept in its database.
        simulator: a language model.
        out: a directory in which answers are stored; the same call again asks nothing.
        simulation: the only mode to try; the best that the simulator can do if None.
        max_cost, max_requests, max_minutes, concurrency, timeout: as in `explain`.
        progress: True shows a bar. A function is called with the number of descriptions done.

    Raises:
        UsageError: an argument makes no sense.
        RunError: `out` or the run can't be written.
        LLMError: the model can't be reached or can't simulate, or nothing could be scored.
        BudgetError: a limit was reached; the same call with a higher one goes on from there.
    """
    settings = Settings(
        Given([]), simulator, simulation, None, {"concurrency": concurrency, "timeout": timeout},
        max_cost=max_cost, max_requests=max_requests, max_minutes=max_minutes,
    )  # fmt: skip
    with reported(progress, "Tuning a simulator", None, "descriptions") as report:
        return await tune(run, settings, out=Path(out), report=report)


tune_simulator = waiting(tune_simulator_async, "tune_simulator")
