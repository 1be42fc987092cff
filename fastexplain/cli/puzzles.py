"""The command `puzzles`: how well models and scorers do where the answers are known."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastexplain.cli.common import (
    AsJson,
    Concurrency,
    ExplainerPrice,
    Fresh,
    Local,
    MaxCost,
    MaxRequests,
    PromptName,
    SimulatorLocal,
    SimulatorPrice,
    SimulatorUrl,
    Timeout,
)
from fastexplain.cli.terminal import interrupts, out, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from fastexplain.pipeline.models import Settings
    from fastexplain.puzzles.solving import Solved


def puzzles(
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
        str, typer.Option(help="expected or contrast, as for explain.")
    ] = "expected",
    prompt: PromptName = None,
    scorers: Annotated[
        str, typer.Option(metavar="NAMES", help="How to score; several by commas.")
    ] = "correlation",
    half: Annotated[
        str,
        typer.Option(help="reporting, or choosing for the puzzles by which prompts are chosen."),
    ] = "reporting",
    directory: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where answers are stored.")
    ] = Path("puzzles-run"),
    concurrency: Concurrency = 64,
    timeout: Timeout = 120.0,
    max_cost: MaxCost = None,
    max_requests: MaxRequests = None,
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
    from fastexplain.cli.explain import reject_together
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
        fresh=fresh, max_cost=max_cost, max_requests=max_requests,
        scorers=[name.strip() for name in scorers.split(",")], prompt=prompt,
    )  # fmt: skip
    solved = _solve(settings, half, directory)
    if as_json:
        print_json(solved.data())
        return
    out.print(levels_table(solved))
    out.print(measures_table(solved))


def _solve(settings: Settings, half: str, directory: Path) -> Solved:
    """Solve puzzles with progress and failures on the terminal, as `requests.explain_by_model`."""
    from fastexplain.cli.live import display
    from fastexplain.cli.requests import Failures
    from fastexplain.pipeline.explaining import Progress
    from fastexplain.puzzles.solving import solve

    progress, failures = Progress(0), Failures()
    with contextlib.ExitStack() as stack:
        if not settings.local:
            progress.interrupted = stack.enter_context(interrupts())
        stack.enter_context(display(progress))
        solved = asyncio.run(
            solve(settings, half=half, out=directory, progress=progress, on_failure=failures.add)
        )
    failures.summary()
    return solved


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
