"""The commands that have language models explain neurons: explain, ingest and cost."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fastexplain.cli.common import (
    AsJson,
    BaseUrl,
    Concurrency,
    ExplainerPrice,
    Fresh,
    Local,
    MaxCost,
    MaxMinutes,
    MaxRequests,
    PromptName,
    Readout,
    RequestsPerMinute,
    RunPath,
    Seed,
    Simulation,
    SimulatorLocal,
    SimulatorPrice,
    SimulatorUrl,
    SubjectPlace,
    Timeout,
    TokensPerMinute,
    Where,
    reject_together,
)
from fastexplain.cli.explained import print_explained
from fastexplain.cli.terminal import messages, out, print_json
from fastexplain.errors import LLMError, UsageError

# More neurons than these are explained by language models only after a confirmation.
_MANY = 1000

# What `explain` takes that has a meaning for lookup too.
_FOR_LOOKUP = {
    "run", "neurons", "explainer", "sample", "seed", "where", "fresh", "yes", "as_json",
    "entries",
}  # fmt: skip


def explain(
    context: typer.Context,
    run: RunPath,
    neurons: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NEURON",
            help="Such as 5:131, 5:* for a layer, 0-3:*, all, or @FILE with one on each line.",
        ),
    ] = None,
    explainer: Annotated[
        str,
        typer.Option(metavar="MODEL", help="lookup, which needs no model, or a language model."),
    ] = "lookup",
    simulator: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The explainer if left out.")
    ] = None,
    base_url: BaseUrl = None,
    simulator_url: SimulatorUrl = None,
    local: Local = False,
    simulator_local: SimulatorLocal = False,
    simulation: Simulation = None,
    readout: Readout = None,
    prompt: PromptName = None,
    exemplars: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The texts that the explainer sees: top, or quantiles: five more from the whole "
            "distribution of the neuron, which the subject reads.",
        ),
    ] = "top",
    meanings: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Put the texts into clusters by what the neuron reacts to in them, and have up "
            "to N meanings explained, each by itself.",
        ),
    ] = 1,
    scorers: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="correlation, simulation (or calibrated otherwise, simulation-isotonic and "
            "-percentile), corpus, ablation, mismatched and empty simulate; for detection, "
            "fuzzing and intruder the simulator answers questions. Several by commas.",
        ),
    ] = "correlation",
    candidates: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Have N explanations of each neuron written, and keep the one that predicts "
            "best: on the validation split, most of them on a few excerpts only.",
        ),
    ] = 1,
    revise: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Have each explanation tested on sentences of the explainer's own, which the "
            "subject reads, and revised by what contradicts it, in up to N rounds.",
        ),
    ] = 0,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls",
            help="Explain by as many fresh samples and by random texts too, and compare.",
        ),
    ] = False,
    subject: SubjectPlace = None,
    side: Annotated[
        str, typer.Option(help="top, or bottom: where neurons are below 0 (sweep --bottom).")
    ] = "top",
    sample: Annotated[
        int | None, typer.Option(metavar="N", help="Explain N of the neurons, drawn at random.")
    ] = None,
    seed: Seed = 0,
    where: Where = None,
    entries: Annotated[
        int | None,
        typer.Option(metavar="N", help="Entries of a lookup's text: 4, 8 (the default), 16 or 32."),
    ] = None,
    concurrency: Concurrency = 64,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    timeout: Timeout = 120.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the requests and their cost; send nothing.")
    ] = False,
    max_cost: MaxCost = None,
    max_requests: MaxRequests = None,
    max_minutes: MaxMinutes = None,
    by_need: Annotated[
        bool,
        typer.Option(
            "--by-need",
            help="Explain first where lookup fails and the neuron is active, so that a limit is "
            "spent where it gains most; leave out where nothing is expected.",
        ),
    ] = False,
    price: ExplainerPrice = None,
    simulator_price: SimulatorPrice = None,
    batch: Annotated[
        bool, typer.Option("--batch", help="Use the server's batch API: cheaper, slower.")
    ] = False,
    batch_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Only write the requests to FILE, for an offline engine; then use ingest.",
        ),
    ] = None,
    fresh: Fresh = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask before a large job.")] = False,
    as_json: AsJson = False,
) -> None:
    """Explain neurons and score the explanations on held-out text.

    Lookup explains all neurons at once and shows those that are named. Every answer of a language
    model is stored immediately: the same command, run again, continues where it stopped.
    """
    from fastexplain.run.directory import open_run
    from fastexplain.run.selection import select_neurons
    from fastexplain.run.sides import NOT_BY_LOOKUP

    opened = open_run(run)
    chosen = select_neurons(opened, neurons or [], sample=sample, seed=seed, where=where)
    if entries is not None and explainer != "lookup":
        raise UsageError("--entries is for lookup, the explainer that lists entries")
    if explainer == "lookup":
        if side != "top":
            raise UsageError(NOT_BY_LOOKUP)
        _reject_model_options(context)
        from fastexplain.cli import run_jobs

        run_jobs.explain_by_lookup(opened, fresh=fresh, entries=entries)
        print_explained(opened, chosen, ("lookup", explainer, None), as_json)
        return

    from fastexplain.cli import requests
    from fastexplain.cli.cost_table import estimate_data, estimate_table, spending_table
    from fastexplain.ledger.prices import parse_price
    from fastexplain.pipeline.estimate import rehearse
    from fastexplain.pipeline.models import Model, Settings, simulator_model
    from fastexplain.pipeline.spending import plan, speed_of

    if not chosen:
        raise UsageError(
            f"name the neurons that {explainer} shall explain, such as 5:131, 5:* or all"
        )
    reject_together({"--local": local, "--base-url": base_url})
    reject_together({"--simulator-local": simulator_local, "--simulator-url": simulator_url})
    reject_together({"--batch": batch, "--batch-file": batch_file})
    explaining = Model(explainer, base_url, local, None if price is None else parse_price(price))
    simulating = simulator_model(
        explaining,
        simulator,
        base_url=simulator_url,
        local=simulator_local,
        price=None if simulator_price is None else parse_price(simulator_price),
    )
    limits = {
        "concurrency": concurrency,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "timeout": timeout,
    }
    settings = Settings(
        explaining, simulating, simulation, readout, limits, fresh=fresh, side=side, prompt=prompt,
        max_cost=max_cost, max_requests=max_requests, max_minutes=max_minutes,
        scorers=[name.strip() for name in scorers.split(",")], candidates=candidates,
        revise=revise, controls=controls, subject=subject, exemplars=exemplars, meanings=meanings,
    )  # fmt: skip
    planned = None
    if by_need:
        planned = plan(opened, chosen, side)
        chosen = planned.neurons
    everything = "all" in (neurons or []) and sample is None and where is None
    many = everything or len(chosen) > _MANY
    if dry_run or (many and not yes):
        files = batch_file is not None
        estimate = asyncio.run(rehearse(opened, chosen, settings, batch=batch, files=files))
        spending = None
        if planned is not None:
            speed = speed_of(opened, {each.name for each in settings.models})
            spending = planned.afforded(settings, estimate.total, speed)
        if dry_run and as_json:
            print_json(estimate_data(estimate) | ({"plan": asdict(spending)} if spending else {}))
            return
        if dry_run:
            out.print(estimate_table(estimate))
            if spending is not None:
                out.print(spending_table(spending, max_minutes))
            return
        messages.print(estimate_table(estimate))
        _confirm(len(chosen))
    if batch or batch_file:
        outcome = requests.explain_in_batches(opened, chosen, settings, batch_file)
    else:
        outcome = requests.explain_by_model(opened, chosen, settings)
    if outcome.finished and outcome.stopped is None and not outcome.explained:
        raise LLMError(f"{explainer} explained none of the {len(chosen)} neurons; see above")
    if controls:
        from fastexplain.cli.comparison_table import print_comparison

        print_comparison(opened, chosen, outcome, as_json)
    else:
        print_explained(opened, chosen, list(outcome.arms.values())[-1], as_json)
    if outcome.stopped is not None:
        raise outcome.stopped


def ingest(
    run: RunPath,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The file of answers, from an offline engine.")
    ],
    price: Annotated[
        str | None, typer.Option(metavar="IN,OUT", help="US dollars a million tokens.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Store the answers to a file that explain --batch-file wrote.

    Then run that explain command again: it continues with these answers.
    """
    from fastexplain.ledger.prices import parse_price
    from fastexplain.pipeline.batches.rounds import take_answers
    from fastexplain.run.directory import open_run

    found = take_answers(open_run(run), file, None if price is None else parse_price(price))
    if as_json:
        print_json(asdict(found))
    else:
        out.print(found.line(), markup=False, soft_wrap=True)


def cost(run: RunPath, as_json: AsJson = False) -> None:
    """Show the tokens and cost of a run's requests."""
    from fastexplain.cli.cost_table import ledger_data, ledger_table
    from fastexplain.ledger.responses import Responses
    from fastexplain.run.directory import open_run

    with open_run(run).database(read_only=True) as database:
        rows = Responses(database).ledger()
    if as_json:
        print_json(ledger_data(rows))
    elif rows:
        out.print(ledger_table(rows))
    else:
        out.print("No language model was asked yet.")


def _reject_model_options(context: typer.Context) -> None:
    """Raise UsageError where an option was given that only language models use."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        given = source is not None and source.name == "COMMANDLINE"
        if given and parameter.name not in _FOR_LOOKUP:
            option = parameter.opts[0]
            raise UsageError(f"{option} is for language models; name one with --explainer MODEL")


def _confirm(neurons: int) -> None:
    """Have a large job confirmed."""
    if not sys.stdin.isatty():
        raise UsageError(f"{neurons:,} neurons are many; add --yes if that is what you want")
    if not typer.confirm(f"Explain {neurons:,} neurons?", err=True):
        raise typer.Exit(1)
