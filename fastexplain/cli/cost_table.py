"""What requests cost, and would cost, as tables and as data for `--json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fastexplain.cli.terminal import visible
from fastexplain.counting import counted
from fastexplain.ledger.budget import Estimate, Share
from fastexplain.ledger.prices import dollars, users_file
from fastexplain.ledger.responses import LedgerRow
from fastexplain.pipeline.spending import Spending

# What an estimate's share and a ledger's row both have.
Amounts = Share | LedgerRow

_AMOUNTS = ("prompt tokens", "answer tokens", "cost")


def estimate_table(estimate: Estimate) -> Table:
    """What a command would ask: a row a purpose, and their sum."""
    total = estimate.total
    title = "At the most"
    if estimate.sample:
        title = f"About, going by {estimate.sample:,} of the neurons"
    table = _table(title, ("for",), ("requests", *_AMOUNTS), total.unpriced)
    for purpose, share in estimate.purposes.items():
        table.add_row(_plural(purpose), f"{share.requests:,}", *_amounts(share, share.requests))
    table.add_section()
    table.add_row("in all", f"{total.requests:,}", *_amounts(total, total.requests))
    return table


def estimate_data(estimate: Estimate) -> dict[str, Any]:
    """An estimate as `--json` gives it; a cost is null where some of it is not known."""
    purposes = {name: _data(share) for name, share in estimate.purposes.items()}
    return {**_data(estimate.total), "purposes": purposes}


def spending_table(spending: Spending, max_minutes: float | None = None) -> Table:
    """Which neurons the limits allow for, and what is left out.

    Args:
        max_minutes: the limit on time, if there is one.
    """
    learned = f"going by {counted(spending.learned, 'neuron')} explained before"
    if not spending.learned:
        known = "no explanation by a language model has a score yet"
        if spending.known:
            known = f"too few scores of one to go by ({counted(spending.known, 'neuron')})"
        learned = f"{known}, so that all may gain up to a score of 1"
    size = "how much they vary" + " and what that adds to the logits" * spending.by_output
    notes = [
        f"Left out: {counted(spending.without, 'neuron')} of which nothing is expected.",
        f"How much neurons matter is told by {size}.",
    ]
    if max_minutes is not None and spending.a_minute is None:
        notes.append(
            f"How many can be explained in {max_minutes:g} minutes is not known: this run has no "
            "former requests to these models."
        )
    elif max_minutes is not None:
        notes.append(f"Minutes are counted at {spending.a_minute:,.0f} requests a minute.")
    table = Table(
        title=f"By need; {learned}", title_justify="left", header_style="bold",
        caption="\n".join(notes), caption_justify="left",
    )  # fmt: skip
    table.add_column("")  # in 80 columns it takes two lines, and the numbers are whole
    names = ("neurons", "lookup's\nscore", "gain,\nfrom", "to", "in\nall", "requests", "cost")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for name, part in (("within the limits", spending.explained), ("beyond", spending.left)):
        numbers = (part.lookup, part.most, part.least)
        table.add_row(
            name,
            f"{part.neurons:,}",
            *("" if number is None else f"{number:.2f}" for number in numbers),
            f"{part.gain:,.1f}",
            f"{part.requests:,}",
            "unknown" if part.cost is None else dollars(part.cost),
        )
    return table


def ledger_table(rows: Sequence[LedgerRow]) -> Table:
    """The requests of a run: a row for each command, model and purpose, and their sum."""
    total = _total(rows)
    names = ("command of (UTC)", "model", "for")
    table = _table(None, names, ("answered", "failed", *_AMOUNTS), total.unpriced)
    previous = None
    for row in rows:
        command = "" if row.command == previous else row.command[:19].replace("T", " ")
        previous = row.command
        names = (command, row.model, _plural(row.purpose))
        table.add_row(*(escape(visible(name)) for name in names), *_ledger_cells(row))
    table.add_section()
    table.add_row("in all", "", "", *_ledger_cells(total))
    return table


def ledger_data(rows: Sequence[LedgerRow]) -> dict[str, Any]:
    """The ledger as `--json` gives it; a cost is null where some of it is not known."""
    return {"total": _data(_total(rows)), "rows": [_data(row) for row in rows]}


def _table(title: str | None, names: Sequence[str], numbers: Sequence[str], unpriced: int) -> Table:
    caption = None
    if unpriced:
        advice = (
            f"The price of {unpriced:,} of the requests is not known; set it with --price, or in"
        )
        # A path that is broken over lines can't be copied.
        caption = Text(f"{advice}\n{users_file()}", no_wrap=True, overflow="ignore")
    table = Table(title=title, title_justify="left", header_style="bold",
                  caption=caption, caption_justify="left")  # fmt: skip
    for name in names:
        table.add_column(name, no_wrap=name != "model")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=name == "cost")
    return table


def _plural(purpose: str) -> str:
    """What the requests are for; a scorer's by its name."""
    return f"{purpose}s" if purpose in ("explanation", "simulation") else purpose


def _ledger_cells(row: LedgerRow) -> tuple[str, ...]:
    return f"{row.answered:,}", f"{row.failed:,}", *_amounts(row, row.answered)


def _amounts(row: Amounts, requests: int) -> tuple[str, ...]:
    cost = dollars(row.cost)
    if row.unpriced:
        cost = "unknown" if row.unpriced >= requests else f"{cost} + unknown"
    return f"{row.prompt_tokens:,}", f"{row.completion_tokens:,}", cost


def _total(rows: Sequence[LedgerRow]) -> LedgerRow:
    sums = [sum(column) for column in zip(*(row[3:] for row in rows), strict=True)]
    return LedgerRow("", "", "", *(sums or [0] * (len(LedgerRow._fields) - 3)))


def _data(row: Amounts) -> dict[str, Any]:
    data = {name: value for name, value in row._asdict().items() if value != ""}
    return {**data, "cost": None if row.unpriced else row.cost, "known_cost": row.cost}
