"""What the terminal shows: excerpts coloured by activation, and tables of explanations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from fastexplain.cli.terminal import visible
from fastexplain.kernels import discretize
from fastexplain.records import Mean, Measured, Scores, StoredExplanation
from fastexplain.run.directory import Run
from fastexplain.scorers.registry import JUDGES

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
    rows: Sequence[StoredExplanation],
    title: str | None = None,
    beside: Mapping[int, Mapping[str, float | None]] | None = None,
    *,
    intervals: bool = False,
) -> Table:
    """Neurons, explanations, scores, and how many top and random excerpts those rest on.

    Scores that rest on too few of the tokens are marked by what they rest on. With `intervals` the
    headline has the ends of its own.

    Args:
        beside: by the rows' ids, baselines over top and random excerpts by their names.
    """
    names = list(dict.fromkeys(name for own in (beside or {}).values() for name in own))
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("neuron", no_wrap=True)
    table.add_column("explained by", no_wrap=True)
    table.add_column("top and random", justify="right")
    for name in names:
        table.add_column(name, justify="right", style="dim")
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
            *(score_text((beside or {})[row.id].get(name)) for name in names),
            score_text(scores.random_only),
            f"{scores.excerpts_top} + {scores.excerpts_random}"
            + (f", {scores.reason.partition(':')[0]}" if scores.reason else ""),
            Text(_unbroken(visible(row.text or f"failed: {row.failure}"))),
        )
    return table


def judges_table(run: Run, explanations: Sequence[StoredExplanation]) -> Table | None:
    """The scores that judges gave, a row for each scorer; None if there are none."""
    rows: dict[tuple[str, ...], list[Measured]] = {}
    with run.database(read_only=True) as database:
        models = {row.id: row for row in explanations if row.method != "lookup"}.values()
        scored = [(row, score) for row in models for score in database.scores(row.id)]
    for row, score in scored:
        if score.scorer in JUDGES:
            by = score.scorer if score.judge == row.model else f"{score.scorer} by {score.judge}"
            key = (str(row.neuron), row.model, by, score.version)
            rows.setdefault(key, []).append(score.measured)
    if not rows:
        return None
    table = Table(header_style="bold")
    table.add_column("neuron", no_wrap=True)
    table.add_column("explained by", no_wrap=True)
    table.add_column("scorer")
    table.add_column("scores, with 95% intervals", ratio=1)
    for (*names, _), measured in rows.items():
        table.add_row(*(Text(visible(name)) for name in names), Text(_measured_text(measured)))
    return table


def _measured_text(measured: Sequence[Measured]) -> str:
    """A scorer's numbers in words; those of one measure by parts, as quantiles, one after another.

    They are over all held-out excerpts where nothing else is said.
    """
    parts: dict[str, list[str]] = {}
    for each in measured:
        part, numbered, number = each.split.rpartition("_")
        if not number.isdigit():
            part, numbered = each.split, ""
        what = each.measure if part == "held_out" else f"{each.measure} by {part}"
        value = score_text(each.value)
        if not numbered and each.low is not None and each.high is not None:
            value += f" ({each.low:.2f} to {each.high:.2f})"
        parts.setdefault(what.replace("_", " "), []).append(value)
    most = max(each.excerpts for each in measured)
    text = ", ".join(" ".join([what, *values]) for what, values in parts.items())
    reasons = dict.fromkeys(each.reason for each in measured if each.reason)
    return visible("; ".join([text, f"excerpts {most}", *reasons]))


def explained_by(row: StoredExplanation) -> str:
    """The explainer; the simulator where that is another; how they did it, if not as usual."""
    name = row.model
    if row.method in ("revised", "control"):
        name += ", revised" if row.method == "revised" else ", revised by random texts"
    elif isinstance(row.parameters, dict) and "candidates" in row.parameters:
        name += f", best of {row.parameters['candidates']}"
    how = _unusual(row.simulation) if row.method != "lookup" and row.simulation else ""
    by = "" if row.simulator in (None, row.model) else f" by {row.simulator}"
    return f"{name}, simulated{by}{how}" if by or how else name


def _unusual(simulation: str) -> str:
    """How it was simulated, in brackets, if not by the best mode and the plain readout."""
    _, *how = simulation.split()
    rare = [word for word in how if word not in ("prompt-logprobs", "expected")]
    return f" ({', '.join(rare)})" if rare else ""


def _unbroken(text: str) -> str:
    """Show the space that a quoted token begins with; a cell's line would be broken there."""
    return re.sub(r"(^|, |after )(['\"]) ", r"\1\2␣", text)
