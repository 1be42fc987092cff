"""What the terminal shows: excerpts coloured by activation, and tables of explanations."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from fastexplain.cli.terminal import visible
from fastexplain.kernels import discretize
from fastexplain.records import Mean, Scores, StoredExplanation

# Backgrounds for the values 1 to 10, from pale to full, each with a text colour that stands out.
_SHADES = [
    Style(color="black", bgcolor=f"rgb({255 - 6 * value},{245 - 17 * value},{235 - 22 * value})")
    for value in range(11)
]


def excerpt_text(
    console: Console, tokens: Sequence[str], activations: np.ndarray, scale: float
) -> Text:
    """An excerpt on one line, each token's background by its activation `[tokens]`.

    Where there are no colours, as in a file, a value from 1 to 10 follows its token in brackets.

    Args:
        scale: the activation that gets the full colour.
    """
    values = discretize(
        np.nan_to_num(activations.astype(np.float32))[None], np.array([scale], np.float32)
    )[0]
    text = Text()
    for token, value in zip(tokens, values.tolist(), strict=True):
        shown = visible(token)
        if value == 0:
            text.append(shown)
        elif console.color_system is None:
            text.append(f"{shown}[{value}]")
        else:
            text.append(shown, style=_SHADES[value])
    return text


def score_text(value: float | None) -> str:
    """A score to two digits, or the word for having none."""
    return "undefined" if value is None else f"{value:.2f}"


def interval_text(value: float | None, low: float | None, high: float | None) -> str:
    """A score with the ends of its interval, where it has one."""
    if low is None or high is None:
        return score_text(value)
    return f"{score_text(value)} ({low:.2f} to {high:.2f})"


def means_table(means: Sequence[Mean]) -> Table:
    """Means over all neurons explained by lookup, with their intervals."""
    table = Table(title="Means over neurons, by lookup", title_justify="left", header_style="bold")
    table.add_column("measure", no_wrap=True)
    splits = list(dict.fromkeys(mean.split for mean in means))
    for split in splits:
        table.add_column(split.replace("_", " "), justify="right")
    found = {(mean.measure, mean.split): mean for mean in means}
    for measure in dict.fromkeys(mean.measure for mean in means):
        own = (found.get((measure, split)) for split in splits)
        table.add_row(
            measure,
            *(
                interval_text(each and each.value, each and each.low, each and each.high)
                for each in own
            ),
        )
    return table


def explanations_table(
    rows: Sequence[StoredExplanation], title: str | None = None, *, intervals: bool = False
) -> Table:
    """Neurons, explanations, scores, and how many top and random excerpts those rest on.

    Scores that rest on too few of the tokens are marked by what they rest on. With `intervals` the
    headline has the ends of its own.
    """
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("neuron", no_wrap=True)
    table.add_column("explained by", no_wrap=True)
    table.add_column("top and random", justify="right")
    table.add_column("random", justify="right")
    table.add_column("excerpts", max_width=16)
    table.add_column("explanation", ratio=1)
    for row in rows:
        scores = row.scores or Scores(None, None, None, 0, 0)
        table.add_row(
            str(row.neuron),
            Text(visible(explained_by(row))),
            interval_text(
                scores.top_and_random, *((scores.low, scores.high) if intervals else (None, None))
            ),
            score_text(scores.random_only),
            f"{scores.excerpts_top} + {scores.excerpts_random}"
            + (f", {scores.reason.partition(':')[0]}" if scores.reason else ""),
            Text(_unbroken(visible(row.text or f"failed: {row.failure}"))),
        )
    return table


def explained_by(row: StoredExplanation) -> str:
    """The explainer; the simulator where that is another; how it simulated, if not as usual."""
    how = _unusual(row.simulation) if row.method != "lookup" and row.simulation else ""
    by = "" if row.simulator in (None, row.model) else f" by {row.simulator}"
    return f"{row.model}, simulated{by}{how}" if by or how else row.model


def _unusual(simulation: str) -> str:
    """How it was simulated, in brackets, if not by the best mode and the plain readout."""
    _, *how = simulation.split()
    rare = [word for word in how if word not in ("prompt-logprobs", "expected")]
    return f" ({', '.join(rare)})" if rare else ""


def _unbroken(text: str) -> str:
    """Show the space that a quoted token begins with; a cell's line would be broken there."""
    return re.sub(r"(^|, |after )(['\"]) ", r"\1\2␣", text)
