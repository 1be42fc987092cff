"""Excerpts on the screen, each a line or a block, with their tokens coloured by activation."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastexplain.cli import terminal
from fastexplain.cli.terminal import visible
from fastexplain.cli.token_text import excerpt_text
from fastexplain.records import Exemplar

LABEL = 8
"""Columns of what stands before an excerpt: a value, or who simulated."""


def print_exemplars(
    console: Console, title: str, exemplars: list[Exemplar], scale: float, skip: int
) -> None:
    """Print exemplars, each after its largest counted activation; `scale` gets the full colour."""
    console.print(f"\n[bold]{title}[/]")
    for exemplar in exemplars:
        strongest = float(exemplar.activations[skip:].max())
        label = f"{strongest:.2f}"
        print_line_of(console, label, exemplar.tokens, exemplar.activations, scale, skip)


def print_line_of(
    console: Console,
    label: str,
    tokens: list[str],
    activations: np.ndarray,
    scale: float,
    skip: int,
    width: int = LABEL,
) -> None:
    """Print an excerpt: a line in a file, else beside its label; the label's width is given."""
    counted = activations.copy()
    counted[:skip] = 0  # what counts for nothing gets no colour
    text = excerpt_text(console, tokens, counted, scale)
    label = visible(label)
    if not (console.is_terminal or terminal.LAID_OUT):
        console.print(Text.assemble(f"{label:>{width}}  ", text), soft_wrap=True)
        return
    line = Table.grid(padding=(0, 2, 0, 0), expand=True)
    line.add_column(width=width, justify="right", style="dim", overflow="fold")
    line.add_column(ratio=1, overflow="fold")
    line.add_row(Text(label), text)
    console.print(line)
