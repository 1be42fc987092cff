"""A table whose rows end in texts: beside the numbers where there is room, else below them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

READABLE = 35
"""Columns that a text has beside the numbers at least; with fewer it goes below them."""

_GAP = 2  # columns that a `light_table` leaves behind each of its own; behind the last one, 1


def light_table(title: str | None = None, **options: Any) -> Table:
    """A table with a line below its header and no others, which leaves the width to its texts."""
    return Table(
        title=title, title_justify="left", title_style="bold italic", header_style="bold",
        box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), **options,
    )  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A column before the texts.

    Attributes:
        name: its header.
        below: what stands before its values where texts are below them; the name if None.
        number: its values stand at its right end.
        style: of its values.
    """

    name: str
    below: str | None = None
    number: bool = False
    style: str = ""


class TextTable:
    """Rows of a neuron, what is known of it, and a text.

    Args:
        columns: the first is of names, which stand alone on the left in both layouts.
        text: header of the last column.
        rows: the columns' cells, each of lines, and the text. A cell of one line stands for the
            row; else each line of a cell belongs to the same line of the others.
        title, caption: above and below the table.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        text: str,
        rows: Iterable[tuple[Sequence[Sequence[str]], Text]],
        title: str | None = None,
        caption: str | None = None,
    ) -> None:
        self._columns, self._text, self._rows = columns, text, list(rows)
        self._title, self._caption = title, caption

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for folded in (False, True):
            widths = [self._width(place, folded) for place in range(len(self._columns))]
            if options.max_width - sum(width + _GAP for width in widths) >= READABLE + 1:
                yield self._beside(widths)
                return
        yield self._below()

    def _width(self, place: int, folded: bool) -> int:
        """Terminal columns that a column needs: of its cells, and its header, folded or not."""
        name = self._columns[place].name
        parts = name.split() if folded else [name]
        return max(map(cell_len, [*parts, *(line for row, _ in self._rows for line in row[place])]))

    def _beside(self, widths: Sequence[int]) -> Table:
        table = light_table(self._title, caption=self._caption, caption_justify="left")
        for column, width in zip(self._columns, widths, strict=True):
            table.add_column(
                column.name,
                justify="right" if column.number else "left",
                style=column.style,
                width=width,
            )
        table.add_column(self._text, ratio=1, overflow="fold")
        for cells, own in self._rows:
            table.add_row(*(Text("\n".join(lines), no_wrap=True) for lines in cells), own)
        return table

    def _below(self) -> Table:
        table = light_table(self._title, show_header=False, caption=self._caption,
                            caption_justify="left")  # fmt: skip
        table.add_column(no_wrap=True, style="bold")
        table.add_column(ratio=1, overflow="fold")
        for (name, *cells), own in self._rows:
            table.add_row(
                Text("\n".join(name)),
                Text("\n").join([*self._lines(cells), *([own] if own else [])]),
            )
        return table

    def _lines(self, cells: Sequence[Sequence[str]]) -> list[Text]:
        """What stands in the columns, line by line, with their names."""
        count = max(map(len, cells), default=0)
        lines = []
        for place in range(count):
            parts = []
            for column, own in zip(self._columns[1:], cells, strict=True):
                if place < len(own) and own[place].strip():
                    name = column.name if column.below is None else column.below
                    parts.append(Text(f"{name} {own[place]}".strip(), column.style))
            lines.append(Text("; ").join(parts))
        return lines
