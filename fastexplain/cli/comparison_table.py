"""A revision beside its controls, on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.table import Table

from fastexplain.cli.tables import score_text
from fastexplain.cli.terminal import out, print_json
from fastexplain.counting import counted
from fastexplain.ledger.prices import dollars
from fastexplain.pipeline.comparing import Compared, compare

if TYPE_CHECKING:
    from fastexplain.pipeline.explaining import Outcome
    from fastexplain.records import NeuronId
    from fastexplain.run.directory import Run


def print_comparison(run: Run, neurons: list[NeuronId], outcome: Outcome, as_json: bool) -> None:
    """Print how the ways of explaining that a call went through compare."""
    found = compare(run, neurons, outcome.arms, outcome.simulation)
    if as_json:
        print_json({"comparison": [asdict(each) for each in found]})
    else:
        out.print(comparison_table(found))


def comparison_table(found: Sequence[Compared]) -> Table:
    """A row for each way, with its gain over the first and what it takes of a neuron."""
    count = found[0].neurons
    table = Table(
        title=f"Correlation on top and random test excerpts, means over {counted(count, 'neuron')}",
        title_justify="left",
        header_style="bold",
    )
    table.add_column("explanation", no_wrap=True)
    for name in ("mean", "gain", "better,\nworse", "requests", "tokens", "cost a\nneuron"):
        # In 80 columns the gain's error goes below it, and all else is whole.
        table.add_column(name, justify="right", no_wrap=name != "gain")
    for place, each in enumerate(found):
        gain = "" if each.gain is None or not place else f"{each.gain:+.3f}"
        if gain and each.error is not None:
            gain += f" ± {each.error:.3f}"
        cost = each.spent["cost"]
        tokens = [each.spent[f"{kind}_tokens"] for kind in ("prompt", "completion")]
        table.add_row(
            each.name,
            score_text(each.mean),
            gain,
            f"{each.better}, {each.worse}" if place else "",
            f"{each.spent['requests'] or 0:.1f}",
            f"{sum(value or 0 for value in tokens):,.0f}",
            "unknown" if cost is None else dollars(cost),
        )
    return table
