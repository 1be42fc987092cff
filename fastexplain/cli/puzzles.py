"""The command `puzzles`: how well models and scorers do where the answers are known."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from fastexplain.cli.common import (
    AsJson,
    Concurrency,
    ExplainerPrice,
    Fresh,
    Local,
    MaxCost,
    MaxMinutes,
    MaxRequests,
    PromptName,
    SimulatorLocal,
    SimulatorPrice,
    SimulatorUrl,
    Timeout,
    reject_together,
)
from fastexplain.cli.terminal import interrupts, out, print_json
from fastexplain.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from fastexplain.pipeline.models import Settings
    from fastexplain.puzzles.solving import Solved
    from fastexplain.puzzles.tuning import Tuned
    from fastexplain.run.directory import Run

_T = TypeVar("_T")


def puzzles(
    context: typer.Context,
    explainer: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="A language model; lookup, which lists words; or oracle, which knows the answers.",
        ),
    ] = "lookup",
    simulator: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The same, for simulating; the explainer if left out."),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="An OpenAI-compatible server with these models."),
    ] = None,
    simulator_url: SimulatorUrl = None,
    local: Local = False,
    simulator_local: SimulatorLocal = False,
    simulation: Annotated[
        str | None, typer.Option(metavar="MODE", help="How to simulate, as for explain.")
    ] = None,
    readout: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="expected, contrast or contrast-others, as for explain."),
    ] = None,
    prompt: PromptName = None,
    scorers: Annotated[
        str, typer.Option(metavar="NAMES", help="How to score; several by commas.")
    ] = "correlation",
    half: Annotated[
        str,
        typer.Option(help="reporting, or choosing for the puzzles by which prompts are chosen."),
    ] = "reporting",
    tune: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Choose by puzzles how the simulator is best asked and read, for explain on RUN.",
        ),
    ] = None,
    directory: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where answers are stored.")
    ] = Path("puzzles-run"),
    concurrency: Concurrency = 64,
    timeout: Timeout = 120.0,
    max_cost: MaxCost = None,
    max_requests: MaxRequests = None,
    max_minutes: MaxMinutes = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show what --tune would ask and cost; send nothing."),
    ] = False,
    price: ExplainerPrice = None,
    simulator_price: SimulatorPrice = None,
    fresh: Fresh = False,
    as_json: AsJson = False,
) -> None:
    """Try models and scorers on puzzles with known answers.

    They are invented neurons with a true and two false descriptions. With a good simulator the true
    one scores highest; a good explainer writes one that scores above the false ones. Every answer
    is stored: the same command continues where it stopped.
    """
    from fastexplain.ledger.prices import parse_price
    from fastexplain.pipeline.models import Model, Settings, simulator_model
    from fastexplain.pipeline.protocols import Explainer, Simulator
    from fastexplain.puzzles.solving import WITHOUT_MODELS, explainer_of, simulator_of
    from fastexplain.puzzles.texts import load

    reject_together({"--local": local, "--base-url": base_url})
    reject_together({"--simulator-local": simulator_local, "--simulator-url": simulator_url})
    chosen = load(half)
    named = Model(explainer, base_url, local, None if price is None else parse_price(price))
    explaining: Model | Explainer = named
    if explainer in WITHOUT_MODELS:
        explaining = explainer_of(explainer, chosen)
    simulating: Model | Simulator
    if (simulator or explainer) in WITHOUT_MODELS:
        simulating = simulator_of(simulator or explainer, chosen)
    else:
        simulating = simulator_model(
            named,
            simulator,
            base_url=simulator_url,
            local=simulator_local,
            price=None if simulator_price is None else parse_price(simulator_price),
        )
    settings = Settings(
        explaining, simulating, simulation, readout,
        {"concurrency": concurrency, "timeout": timeout},
        fresh=fresh, max_cost=max_cost, max_requests=max_requests, max_minutes=max_minutes,
        scorers=[name.strip() for name in scorers.split(",")], prompt=prompt,
    )  # fmt: skip
    if dry_run and tune is None:
        raise UsageError("--dry-run is for --tune RUN; leave it out, or name the run")
    if tune is not None:
        _reject_choices(context)
        from fastexplain.run.directory import open_run

        opened = open_run(tune)
        if dry_run:
            _print_rehearsed(opened, settings, directory, as_json)
            return
        tuned = _tune(opened, settings, directory)
        if as_json:
            print_json(tuned.data())
        else:
            out.print(tuning_table(tuned))
        return
    solved = _solve(settings, half, directory)
    if as_json:
        print_json(solved.data())
        return
    out.print(levels_table(solved))
    out.print(measures_table(solved))


def _reject_choices(context: typer.Context) -> None:
    """Raise UsageError where an option was given that tuning chooses or does not go by."""
    for name in ("half", "readout", "scorers", "prompt"):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"--tune and --{name} exclude each other")


def _solve(settings: Settings, half: str, directory: Path) -> Solved:
    from fastexplain.puzzles.solving import solve

    return _shown(settings, lambda **shown: solve(settings, half=half, out=directory, **shown))


def _tune(run: Run, settings: Settings, directory: Path) -> Tuned:
    from fastexplain.puzzles.tuning import tune

    return _shown(settings, lambda **shown: tune(run, settings, out=directory, **shown))


def _print_rehearsed(run: Run, settings: Settings, directory: Path, as_json: bool) -> None:
    """Print what tuning would ask and cost."""
    from fastexplain.cli.cost_table import estimate_data, estimate_table
    from fastexplain.puzzles.rehearsal import rehearse_tuning

    estimate = asyncio.run(rehearse_tuning(run, settings, out=directory))
    if as_json:
        print_json(estimate_data(estimate))
    else:
        out.print(estimate_table(estimate))


def _shown(settings: Settings, work: Callable[..., Coroutine[Any, Any, _T]]) -> _T:
    """Do work with progress and failures on the terminal, as `requests.explain_by_model`."""
    from fastexplain.cli.live import display
    from fastexplain.cli.requests import Failures
    from fastexplain.pipeline.explaining import Progress

    progress, failures = Progress(0), Failures()
    with contextlib.ExitStack() as stack:
        if not settings.local:
            progress.interrupted = stack.enter_context(interrupts())
        stack.enter_context(display(progress))
        result = asyncio.run(work(progress=progress, on_failure=failures.add))
    failures.summary()
    return result


def tuning_table(tuned: Tuned) -> Table:
    """The ways that were tried, best first, and what the best and the usual one are worth."""
    from rich.table import Table

    from fastexplain.cli.tables import score_text
    from fastexplain.cli.terminal import visible

    table = Table(
        title=f"Ways to simulate by {visible(tuned.simulator)}; the first is recorded for this run",
        title_justify="left",
        header_style="bold",
    )
    # All on one line takes 109 columns; in 80, what does not fit goes below.
    between, hyphen = (" ", "-") if out.width >= 109 else ("\n", "-\n")
    for heading in ("puzzles", "readout", "filler", "examples"):
        table.add_column(heading, no_wrap=True)
    for heading in ("AUC", f"true{between}first", f"true,{between}false"):
        table.add_column(heading, justify="right", no_wrap=True)
    rows = [("choosing", *each) for each in tuned.tried]
    rows += [
        ("reporting", tuned.best, tuned.reported),
        (f"reporting,{between}usual", tuned.usual, tuned.usual_reported),
    ]
    for number, (half, way, found) in enumerate(rows, start=1):
        table.add_row(
            half,
            way.readout.replace("-", hyphen),
            way.filler or "",
            way.examples,
            f"{found.auc:.2f}{between}± {found.auc_error:.2f}",
            f"{found.first:.0%}{between}± {found.first_error:.0%}",
            f"{score_text(found.true)},{between}{score_text(found.false)}",
            end_section=number == len(tuned.tried),
        )
    return table


def levels_table(solved: Solved) -> Table:
    """How often true and written descriptions outscore the false ones, by level."""
    from rich.table import Table

    from fastexplain.cli.tables import score_text
    from fastexplain.cli.terminal import visible
    from fastexplain.puzzles.solving import TRUE, WRITTEN
    from fastexplain.puzzles.texts import LEVELS

    simulator, explainer = visible(solved.simulator), visible(solved.explainer)
    table = Table(
        title=f"Puzzles for {solved.half}: simulated by {simulator}, written by {explainer}",
        title_justify="left",
        header_style="bold",
    )
    table.add_column("level")
    headings = ("puzzles", "true first", "written first", "true", "false", "written")
    for heading in headings:
        table.add_column(heading, justify="right")
    for level in (*LEVELS, None):
        true, written = (solved.ranking(None, which, level) for which in (TRUE, WRITTEN))
        error = "" if level else " ± {:.0%}"
        table.add_row(
            "all" if level is None else str(level),
            str(true.puzzles),
            f"{true.first:.0%}{error.format(true.first_error)}",
            f"{written.first:.0%}{error.format(written.first_error)}",
            *(score_text(mean) for mean in (true.true, true.false, written.true)),
            end_section=level == LEVELS[-1],
        )
    return table


def measures_table(solved: Solved) -> Table:
    """How well each measure tells true from false."""
    from rich.table import Table

    from fastexplain.cli.terminal import visible

    table = Table(
        title="What tells true from false (by chance: 33% first, AUC 0.50)",
        title_justify="left",
        header_style="bold",
    )
    for heading in ("measure", "over"):
        table.add_column(heading, no_wrap=True)
    for heading in ("defined", "true first", "AUC"):
        table.add_column(heading, justify="right")
    for name in solved.measures:
        found = solved.ranking(name)
        own = name.measure if name.measure == name.scorer else f"{name.scorer}: {name.measure}"
        table.add_row(
            visible(own),
            visible(name.split.replace("_", " ")),
            f"{found.defined} of {found.puzzles}",
            f"{found.first:.0%} ± {found.first_error:.0%}",
            f"{found.auc:.2f} ± {found.auc_error:.2f}",
        )
    return table
