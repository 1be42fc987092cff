"""A revision beside its controls, on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from fastexplain.cli.tables import score_text
from fastexplain.cli.terminal import out, print_json
from fastexplain.counting import counted
from fastexplain.ledger.prices import dollars
from fastexplain.pipeline.comparing import Compared, Gain, compare

if TYPE_CHECKING:
    from fastexplain.pipeline.explaining import Outcome
    from fastexplain.records import NeuronId
    from fastexplain.run.directory import Run


def print_comparison(run: Run, neurons: list[NeuronId], outcome: Outcome, as_json: bool) -> None:
    """Print how the ways of explaining that a call went through compare."""
    found = compare(run, neurons, outcome.arms, outcome.simulation)
    if as_json:
        print_json({"comparison": [_data(each) for each in found]})
    else:
        out.print(comparison_table(found))


def _data(each: Compared) -> dict[str, Any]:
    """One way as `--json` gives it: the figures over defined scores beside its name."""
    others = {"as_zero": asdict(each.as_zero), "missing": each.missing, "spent": each.spent}
    return {"name": each.name, **asdict(each.defined), **others}


def comparison_table(found: Sequence[Compared]) -> Table:
    """A row for each way, with its gain over the first and what it takes of a neuron.

    Where scores are undefined, a second row has them as 0.
    """
    count, every = found[0].defined.neurons, found[0].as_zero.neurons
    left_out = []
    if every > count:
        left_out.append(
            f"{every - count:,} more neurons have a score that is undefined; the rows below are "
            f"over all {every:,}, with 0 in its place."
        )
    if found[0].missing:
        left_out.append(f"{found[0].missing:,} neurons lack one of the explanations or its score.")
    table = Table(
        title=f"Correlation on top and random test excerpts, means over {counted(count, 'neuron')}",
        title_justify="left",
        header_style="bold",
        caption="\n".join(left_out) or None,
        caption_justify="left",
    )
    table.add_column("explanation", no_wrap=True)
    for name in ("mean", "gain", "better,\nworse", "requests", "tokens", "cost a\nneuron"):
        # In 80 columns the gain's error goes below it, and all else is whole.
        table.add_column(name, justify="right", no_wrap=name != "gain")
    for place, each in enumerate(found):
        cost = each.spent["cost"]
        tokens = [each.spent[f"{kind}_tokens"] for kind in ("prompt", "completion")]
        table.add_row(
            each.name,
            *_gain_cells(each.defined, first=not place),
            f"{each.spent['requests'] or 0:.1f}",
            f"{sum(value or 0 for value in tokens):,.0f}",
            "unknown" if cost is None else dollars(cost),
        )
        if every > count:
            table.add_row("  undefined as 0", *_gain_cells(each.as_zero, first=not place))
    return table


def _gain_cells(gain: Gain, *, first: bool) -> tuple[str, str, str]:
    """Mean, gain with its error, and how many are better and worse; the first has only a mean."""
    if first or gain.gain is None:
        return score_text(gain.mean), "", ""
    error = "" if gain.error is None else f" ± {gain.error:.3f}"
    return score_text(gain.mean), f"{gain.gain:+.3f}{error}", f"{gain.better}, {gain.worse}"
