"""What requests cost, and would cost, as tables and as data for `--json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fastexplain.ledger.budget import Estimate, Share
from fastexplain.ledger.prices import dollars, users_file
from fastexplain.ledger.responses import LedgerRow


def estimate_table(estimate: Estimate) -> Table:
    """What a command would ask: a row a purpose, and their sum."""
    total = estimate.total
    of = f", going by {estimate.sample:,} of the neurons" if estimate.sample else ""
    table = _table(f"At the most{of}", total.unpriced)
    table.add_column("for", no_wrap=True)
    table.add_column("requests", justify="right")
    _add_amounts(table)
    for purpose, share in estimate.purposes.items():
        table.add_row(f"{purpose}s", f"{share.requests:,}", *_share_cells(share))
    table.add_section()
    table.add_row("in all", f"{total.requests:,}", *_share_cells(total))
    return table


def estimate_data(estimate: Estimate) -> dict[str, Any]:
    """An estimate as `--json` gives it; a cost is null where some of it is not known."""
    return {
        **_share_data(estimate.total),
        "purposes": {name: _share_data(share) for name, share in estimate.purposes.items()},
    }


def ledger_table(rows: Sequence[LedgerRow]) -> Table:
    """The requests of a run: a row for each command, model and purpose, and their sum."""
    total = _total(rows)
    table = _table(None, total.unpriced)
    table.add_column("command of (UTC)", no_wrap=True)
    table.add_column("model")
    table.add_column("for", no_wrap=True)
    table.add_column("answered", justify="right")
    table.add_column("failed", justify="right")
    _add_amounts(table)
    previous = None
    for row in rows:
        command = "" if row.command == previous else row.command[:19].replace("T", " ")
        previous = row.command
        table.add_row(escape(command), escape(row.model), f"{row.purpose}s", *_ledger_cells(row))
    table.add_section()
    table.add_row("in all", "", "", *_ledger_cells(total))
    return table


def ledger_data(rows: Sequence[LedgerRow]) -> dict[str, Any]:
    """The ledger as `--json` gives it; a cost is null where some of it is not known."""
    return {"total": _ledger_row_data(_total(rows)), "rows": [_ledger_row_data(r) for r in rows]}


def _table(title: str | None, unpriced: int) -> Table:
    caption = None
    if unpriced:
        advice = (
            f"The price of {unpriced:,} of the requests is not known; set it with --price, or in"
        )
        # A path that is broken over lines can't be copied.
        caption = Text(f"{advice}\n{users_file()}", no_wrap=True, overflow="ignore")
    return Table(title=title, title_justify="left", header_style="bold",
                 caption=caption, caption_justify="left")  # fmt: skip


def _add_amounts(table: Table) -> None:
    table.add_column("prompt tokens", justify="right")
    table.add_column("answer tokens", justify="right")
    table.add_column("cost", justify="right", no_wrap=True)


def _share_cells(share: Share) -> tuple[str, ...]:
    cost = _cost_text(share.cost, share.requests, share.unpriced)
    return f"{share.prompt_tokens:,}", f"{share.completion_tokens:,}", cost


def _ledger_cells(row: LedgerRow) -> tuple[str, ...]:
    return (
        f"{row.answered:,}",
        f"{row.failed:,}",
        f"{row.prompt_tokens:,}",
        f"{row.completion_tokens:,}",
        _cost_text(row.cost, row.answered, row.unpriced),
    )


def _cost_text(cost: float, requests: int, unpriced: int) -> str:
    if unpriced and unpriced >= requests:
        return "unknown"
    return f"{dollars(cost)} + unknown" if unpriced else dollars(cost)


def _share_data(share: Share) -> dict[str, Any]:
    return {
        "requests": share.requests,
        "prompt_tokens": share.prompt_tokens,
        "completion_tokens": share.completion_tokens,
        "cost": None if share.unpriced else share.cost,
        "known_cost": share.cost,
        "unpriced": share.unpriced,
    }


def _total(rows: Sequence[LedgerRow]) -> LedgerRow:
    sums = [sum(column) for column in zip(*(row[3:] for row in rows), strict=True)]
    return LedgerRow("", "", "", *(sums or [0] * (len(LedgerRow._fields) - 3)))


def _ledger_row_data(row: LedgerRow) -> dict[str, Any]:
    data = {name: value for name, value in row._asdict().items() if value != ""}
    return {**data, "cost": None if row.unpriced else row.cost, "known_cost": row.cost}
