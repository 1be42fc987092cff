"""The command that scores what is stored."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from fastexplain.cli.common import AsJson, Device, RunPath, SubjectPlace, Trust
from fastexplain.cli.terminal import out, print_json, progress
from fastexplain.counting import counted


def score(
    run: RunPath,
    neurons: Annotated[
        list[str] | None,
        typer.Argument(metavar="NEURON", help="As for explain; all of the run if left out."),
    ] = None,
    scorers: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="By which scorers, several by commas: correlation, simulation, corpus; "
            "simulation-isotonic, -percentile and -none calibrate otherwise; documents leaves "
            "whole documents out of lookup's tables. corpus and documents run the subject.",
        ),
    ] = "correlation,simulation",
    subject: SubjectPlace = None,
    device: Device = None,
    trust_remote_code: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Score stored explanations by every measure that is free.

    It goes by lookup and by stored simulations, and asks no language model.
    """
    from fastexplain.pipeline.scoring import score as score_stored
    from fastexplain.run.directory import open_run

    opened = open_run(run)
    with progress("Scoring", len(opened.layers)) as advance:
        found = score_stored(
            opened,
            neurons or ["all"],
            scorers=[name.strip() for name in scorers.split(",")],
            subject=subject,
            device=device,
            trust_remote_code=trust_remote_code,
            progress=advance,
        )
    if as_json:
        named = {
            name: [mean._asdict() for mean in getattr(found, name)]
            for name in ("means", "text_means", "document_means")
        }
        print_json(asdict(found) | named)
        return
    lines = [f"{counted(found.scored, 'explanation')} scored."]
    if found.lacking:
        lines.append(
            f"Without simulations: {found.lacking:,}; explain their neurons with a simulator."
        )
    out.print(" ".join(lines), markup=False)
    from fastexplain.cli.tables import means_table

    for means, of in (
        (found.text_means, "its texts"),
        (found.means, "its whole tables"),
        (found.document_means, "its tables, whole documents left out"),
    ):
        if whole := [mean for mean in means if not mean.site]:
            out.print(means_table(whole, of))
