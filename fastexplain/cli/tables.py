"""Tables of explanations and their scores, as the terminal shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from fastexplain.cli.terminal import visible
from fastexplain.cli.text_table import Column, TextTable, light_table
from fastexplain.cli.token_text import words_text
from fastexplain.explainers.lists import mean_text
from fastexplain.report.entries import ShownEntry
from fastexplain.report.names import unusual_prompt
from fastexplain.results import LIST, TOP, Mean, Measured, Scores, StoredExplanation
from fastexplain.run.directory import Run
from fastexplain.scorers.registry import JUDGES


def score_text(value: float | None) -> str:
    """A score to two digits, or the word for having none."""
    return "undefined" if value is None else f"{value:.2f}"


def interval_text(value: float | None, low: float | None, high: float | None) -> str:
    """A score with the ends of its interval, where it has one."""
    if low is None or high is None:
        return score_text(value)
    return f"{score_text(value)} ({low:.2f} to {high:.2f})"


def means_table(means: Sequence[Mean], of: str) -> Table:
    """Means over all neurons explained by lookup, with their intervals; `of` says what of it."""
    title = f"Means over neurons, by lookup: {of}"
    table = light_table(title)
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
    texts: Mapping[int, str] | None = None,
) -> TextTable:
    """Neurons, explanations, scores, and how many top and random excerpts those rest on.

    A lookup explanation has two lines of scores: what its text predicts as it stands, and what its
    whole table does. Scores that rest on too few of the tokens are marked by what they rest on.
    With `intervals` the headline has the ends of its own.

    Args:
        beside: by the rows' ids, baselines over top and random excerpts by their names.
        texts: by the rows' ids, what to show in place of an explanation's own text.
    """
    names = list(dict.fromkeys(name for own in (beside or {}).values() for name in own))
    resting = {_resting(scores) for row in rows for _, scores in _scored(row)}
    [same] = resting if len(resting) == 1 else [None]
    columns = [
        Column("neuron"),
        Column("explained by", "by"),
        Column("top and random", number=True),
        *(Column(name, number=True, style="dim") for name in names),
        Column("random", number=True),
        *([] if same else [Column("excerpts")]),
    ]
    shown = []
    for row in rows:
        lines = _scored(row)
        headlines = [
            interval_text(s.top_and_random, *((s.low, s.high) if intervals else (None, None)))
            for _, s in lines
        ]
        text = (texts or {}).get(row.id) or row.text or f"failed: {row.failure}"
        cells = [
            [str(row.neuron)],
            [visible(name) for name, _ in lines],
            headlines,
            *([score_text((beside or {})[row.id].get(name))] for name in names),
            [score_text(scores.random_only) for _, scores in lines],
            *([] if same else [[_resting(scores) for _, scores in lines]]),
        ]
        shown.append((cells, words_text(text)))
    caption = same and f"Scores rest on {same} excerpts, top + random."
    return TextTable(columns, "explanation", shown, title, caption)


def best_table(rows: Sequence[StoredExplanation], title: str, texts: Mapping[int, str]) -> Table:
    """One line for each explanation: both headline scores, and as much of the text as fits."""
    table = light_table(title, expand=True)
    table.add_column("neuron", no_wrap=True)
    table.add_column("text", justify="right")
    tables = any(row.text_scores is not None for row in rows)
    if tables:
        table.add_column("table", justify="right")
    table.add_column("explanation", ratio=1, no_wrap=True, overflow="ellipsis")
    for row in rows:
        scores = [score_text(scores.top_and_random) for _, scores in _scored(row)]
        if tables and len(scores) == 1:  # a table of an earlier version, or a rule
            scores = [score_text(None), *scores] if row.method == "lookup" else [*scores, ""]
        text = texts.get(row.id) or row.text or ""
        table.add_row(str(row.neuron), *scores, words_text(text))
    return table


_BASELINES = {
    "mismatched": "another neuron's table",
    "token": "the token alone",
    "position": "the place in the excerpt",
}


def baselines_table(baselines: Mapping[str, Mapping[str, float | None]]) -> Table:
    """What predicts a neuron without an explanation of it; see `report.baselines.SHOWN`."""
    table = light_table("Without an explanation of it")
    table.add_column("", no_wrap=True)
    splits = ("top_and_random", "random_only")
    for split in splits:
        table.add_column(split.removesuffix("_only").replace("_", " "), justify="right")
    for name, values in baselines.items():
        table.add_row(_BASELINES[name], *(score_text(values[split]) for split in splits))
    return table


def entries_table(entries: Sequence[ShownEntry], default: float, *, rule: bool = False) -> Table:
    """A list's entries, or a rule's terms, each with the tokens that it rests on and a place."""
    table = light_table("What the rule says" if rule else "What the text of lookup says")
    table.add_column("term" if rule else "entry", max_width=30, overflow="fold")
    table.add_column("adds" if rule else "mean", justify="right")
    table.add_column("count", justify="right")
    table.add_column("where it stands", ratio=1, overflow="fold")
    table.add_column("from", no_wrap=True)
    for entry in entries:
        table.add_row(
            words_text(entry.text),
            mean_text(entry.mean),
            f"{entry.count:,}",
            Text.assemble(
                *(visible(part) for part in (entry.before, "«")),
                (visible(entry.own), "bold"),
                *(visible(part) for part in ("»", entry.after)),
            )
            if entry.source
            else "",
            entry.source,
        )
    table.add_row("everywhere" if rule else "anything else", mean_text(default), "", "", "")
    return table


def _scored(row: StoredExplanation) -> list[tuple[str, Scores]]:
    """Who explained and what was scored of it, with the scores: first those of the text."""
    scores = row.scores or Scores(None, None, None, 0, 0)
    if row.text_scores is None:
        return [(explained_by(row), scores)]
    by = explained_by(row)
    return [(f"{by}, text", row.text_scores), (f"{by}, table", scores)]


def _resting(scores: Scores) -> str:
    """How many top and random excerpts scores rest on, and of how much of them if not of all."""
    lacking = f", {scores.reason.partition(':')[0]}" if scores.reason else ""
    return f"{scores.excerpts_top} + {scores.excerpts_random}{lacking}"


def judges_table(run: Run, explanations: Sequence[StoredExplanation]) -> TextTable | None:
    """The scores that judges gave, a row for each scorer; None if there are none."""
    rows: dict[tuple[str, ...], list[Measured]] = {}
    with run.database(read_only=True) as database:
        models = {row.id: row for row in explanations if row.method != "lookup"}.values()
        scored = [(row, score) for row in models for score in database.scores(row.id)]
    for row, score in scored:
        if score.scorer in JUDGES:
            by = score.scorer if score.judge == row.model else f"{score.scorer} by {score.judge}"
            explainer = row.model if row.side == TOP else f"{row.model}, {row.side}"
            key = (str(row.neuron), explainer, by, score.version)
            rows.setdefault(key, []).append(score.measured)
    if not rows:
        return None
    columns = [Column("neuron"), Column("explained by", "by"), Column("scorer")]
    shown = (
        ([[visible(name)] for name in names], Text(_measured_text(measured)))
        for (*names, _), measured in rows.items()
    )
    return TextTable(columns, "scores, with 95% intervals", shown, "What judges say")


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
    if row.method == "lookup":
        return f"{row.model}, text" if row.simulator == LIST else row.model
    name = row.model if row.side == TOP else f"{row.model}, {row.side}"
    if (prompt := unusual_prompt(row)) is not None:
        name += f", {prompt}"
    if row.method in ("revised", "control"):
        name += ", revised" if row.method == "revised" else ", revised by random texts"
    elif isinstance(row.parameters, dict) and "candidates" in row.parameters:
        name += f", best of {row.parameters['candidates']}"
    if isinstance(row.parameters, dict):
        if "chosen" in row.parameters:
            name += f", by {row.parameters['chosen']}"
        if "meanings" in row.parameters:
            name += f", up to {row.parameters['meanings']} meanings"
    how = _unusual(row.simulation) if row.simulation else ""
    by = "" if row.simulator in (None, row.model) else f" by {row.simulator}"
    return f"{name}, simulated{by}{how}" if by or how else name


def _unusual(simulation: str) -> str:
    """How it was simulated, in brackets, if not by the best mode and the plain readout."""
    _, *how = simulation.split()
    rare = [word for word in how if word not in ("prompt-logprobs", "expected")]
    return f" ({', '.join(rare)})" if rare else ""
