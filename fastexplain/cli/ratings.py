"""The command that shows what people's judgements say of explainers and of automatic scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from fastexplain.cli.common import AsJson, RunPath
from fastexplain.cli.terminal import out, print_json, print_line, visible
from fastexplain.counting import counted


def ratings(
    run: RunPath,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write all ratings here too.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what people said of explanations.

    Whether raters agree with each other, which explainers they prefer, and which automatic scores
    say the same as they do.
    """
    from fastexplain.rating.summary import ratings_data, write_csv
    from fastexplain.run.directory import open_run

    opened = open_run(run)
    data = ratings_data(opened)
    if csv is not None:
        count = write_csv(opened, csv)
        print_line(f"Wrote {counted(count, 'rating')} to {csv}")
    if as_json:
        print_json(data)
    elif not data["raters"]:
        out.print(
            f"Nothing is rated yet; run: fastexplain rate {run} --rater NAME",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    else:
        _print(data)


def _print(data: dict[str, Any]) -> None:
    out.print(_raters_table(data["raters"]))
    for what, of, unit in (
        ("order", "which of two explanations is better", "comparison"),
        ("grades", "grades", "explanation"),
    ):
        found = data["between_raters"][what]
        if found["units"]:
            out.print(
                f"\nKrippendorff's alpha of {of}: {_with_ends(found, 'alpha')}, from "
                f"{counted(found['units'], unit)} of {counted(found['neurons'], 'neuron')} by two "
                "raters or more"
            )
    if not any(found["units"] for found in data["between_raters"].values()):
        out.print("\nNo two raters judged the same neuron: whether they agree is not known.")
    if data["explainers"]:
        out.print()
        out.print(_explainers_table(data["explainers"]))
    if data["scores"]:
        out.print()
        out.print(_scores_table(data["scores"]))
    if data["missing"]:
        out.print(
            f"\n{data['missing']:,} of the explanations that were judged are no longer in the run: "
            "their automatic scores are not known."
        )


def _table(title: str, *columns: str, caption: str | None = None) -> Table:
    """A table whose first column is of names, and whose others are of numbers."""
    table = Table(
        title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD,
        show_edge=False, padding=(0, 1, 0, 0), caption=caption, caption_justify="left",
    )  # fmt: skip
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def _raters_table(rows: Sequence[dict[str, Any]]) -> Table:
    table = _table("Ratings", "rater", "rankings", "grades", "skipped", "withdrawn", "last")
    for row in rows:
        counts = (f"{row[name]:,}" for name in ("rankings", "grades", "skipped", "withdrawn"))
        table.add_row(Text(visible(row["rater"])), *counts, row["last"][:16].replace("T", " "))
    return table


def _explainers_table(rows: Sequence[dict[str, Any]]) -> Table:
    groups = len({row["group"] for row in rows})
    caption = "A difference in strength of 1 is a preference in 73% of cases."
    if groups > 1:
        caption += (
            f" These are {groups} groups that were never compared with each other; strengths "
            "compare within a group alone."
        )
    table = _table(
        "Explainers by people's preference", "explainer", *(["group"] if groups > 1 else []),
        "strength", "preferred", "wins", "ties", "losses", "neurons", caption=caption,
    )  # fmt: skip
    names = [(row["method"], row["model"]) for row in rows]
    for row, name in zip(rows, names, strict=True):
        shown = name[1] if name[0] in ("model", name[1]) else f"{name[1]}, {name[0]}"
        if names.count(name) > 1:
            shown += f" ({row['version']})"
        table.add_row(
            Text(visible(shown)),
            *([str(row["group"] + 1)] if groups > 1 else []),
            _with_ends(row, "strength"),
            f"{row['preferred']:.0%}",
            *(f"{row[column]:,}" for column in ("wins", "ties", "losses", "neurons")),
        )
    return table


def _scores_table(rows: Sequence[dict[str, Any]]) -> Table:
    from fastexplain.rating.scores import ITSELF

    table = _table(
        "Automatic scores beside people", "score", "ordered alike", "tau", "pairs", "neurons",
        caption="Ordered alike: where a person preferred one of two explanations, how often its "
        "score is higher; 50% by chance.",
    )  # fmt: skip
    kinds = [(row["scorer"], row["judge"], row["split"], row["measure"]) for row in rows]
    for row, kind in zip(rows, kinds, strict=True):
        scorer, judge, split, measure = kind
        name = measure if measure == scorer else f"{measure} ({scorer})"
        by = "without a simulator" if judge == ITSELF else f"by {judge}"
        name = f"{name}, {split}, {by}".replace("_", " ")
        if kinds.count(kind) > 1:
            name += f" ({row['version']})"
        table.add_row(
            Text(visible(name)),
            _with_ends(row, "alike"),
            "undefined" if row["tau"] is None else f"{row['tau']:.2f}",
            f"{row['pairs']:,}",
            f"{row['neurons']:,}",
        )
    return table


def _with_ends(row: dict[str, Any], name: str) -> str:
    from fastexplain.cli.tables import interval_text

    return interval_text(row[name], row[f"{name}_low"], row[f"{name}_high"])
