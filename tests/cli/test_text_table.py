"""A table with texts: whole at any width, and the texts beside the numbers where there is room."""

from __future__ import annotations

import io
import re
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from fastexplain.cli.text_table import READABLE, Column, TextTable

NAMES = st.text("abcdef-/.0123 语", min_size=1, max_size=60).map(lambda name: f"m{name}m")
WORDS = st.lists(st.text("ghijk'é语", min_size=1, max_size=50), min_size=1, max_size=20)
ROWS = st.lists(st.tuples(NAMES, NAMES, WORDS.map(" ".join)), min_size=1, max_size=4)


def shown(rows: list[tuple[str, str, str]], width: int) -> list[str]:
    """The lines of a table with two lines in each row's cells."""
    columns = [
        Column("neuron"),
        Column("explained by", "by"),
        Column("top and random", number=True),
    ]
    cells = [
        ([["5:131"], [first, last], ["0.25", "-0.75"]], Text(text)) for first, last, text in rows
    ]
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(TextTable(columns, "explanation", cells, "Title"))
    return console.file.getvalue().splitlines()


def letters(text: str) -> Counter[str]:
    return Counter(re.sub(r"\s", "", text))


@given(ROWS, st.integers(30, 200))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_it_fits_and_nothing_is_cut(rows: list[tuple[str, str, str]], width: int) -> None:
    lines = shown(rows, width)
    assert max(map(cell_len, lines)) <= width
    wanted = sum((letters(f"5:131 0.25 -0.75 {' '.join(row)}") for row in rows), Counter())
    assert not wanted - letters("\n".join(lines))


def test_texts_go_below_when_they_would_not_be_readable() -> None:
    rows = [("model one", "model two", " ".join(["word"] * 40))]
    for width in range(30, 120):
        lines = shown(rows, width)
        first = next(line for line in lines if "word" in line)
        indent = first.index("word")
        assert width - indent > min(READABLE, width - len("5:131  ") - 1)
        beside = "─" in "".join(lines)
        assert ("0.25" in first) == beside
        if not beside:
            assert "by model one; top and random 0.25" in " ".join(" ".join(lines).split())


def test_the_second_lines_of_cells_stand_together() -> None:
    rows = [("first", "second", "text")]
    wide, narrow = (shown(rows, width) for width in (100, 40))
    assert any(re.search(r"second +-0\.75", line) for line in wide)
    assert "       by second; top and random -0.75" in [line.rstrip() for line in narrow]
