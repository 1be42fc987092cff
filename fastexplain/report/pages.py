"""The pages of a report: one HTML file that needs no other, and one of Markdown, alike in content.

All texts of runs (names of models, of subjects, of measures) are escaped.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from fastexplain.counting import counted
from fastexplain.errors import RunError
from fastexplain.report.names import SPLITS, measure_name, name_of, shown, split_name
from fastexplain.report.plots import check_matplotlib, pictures
from fastexplain.report.summaries import QUANTILES

_HEADER = (
    "neurons", "undefined", "mean", "± neurons", "± excerpts", *(f"{q}%" for q in QUANTILES),
    "reliability",
)  # fmt: skip

_NOTES = (
    "A mean has two standard errors: over neurons, and over the random excerpts, which all neurons "
    "share. The second is a jackknife's where predictions are at hand, a bootstrap's where it was "
    "stored with the mean (texts by lookup, and rules), else at most as large as said, from the "
    "neurons' intervals; a dash where none is known. Top excerpts are every neuron's own, so that "
    "there the first covers them.",
    "Reliability is the split-half reliability of the neurons' scores (Spearman-Brown): its root "
    "is the most that anything can correlate with them.",
    "Another neuron's lookup is that of a neuron drawn from the same layer, on the same excerpts. "
    "What an explanation scores above it is what it says of its own neuron. Its table is whole, so "
    "that this is no less than it would be held out.",
    "Mean by position predicts from the place in the excerpt alone, by random excerpts that the "
    "neuron is not tested on. Repeated text left out: without tokens whose last four tokens stand "
    "in another excerpt too. Whole documents left out (fastexplain score --scorers documents): the "
    "tables have nothing of the documents of the random excerpts that test them.",
    "A text by lookup is scored as it stands: its entries' means, and its default for all else. "
    "By entries: one that says the same of all tokens that score it counts as 0 there.",
)

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:72em;padding:0 1em;
background:#fff;color:#222}img{max-width:100%}table{border-collapse:collapse;font-size:13px}
th,td{padding:.15em .6em;text-align:right;border-bottom:1px solid #ddd}
th:first-child,td:first-child{text-align:left}summary{cursor:pointer;padding:.2em 0}"""


class Table(NamedTuple):
    """A title, the columns' names, and the rows."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


def write_report(figures: dict[str, Any], directory: Path) -> list[Path]:
    """Write a report's pages and pictures; returns the files, `index.html` first.

    Files of an earlier report in that directory are replaced; others are left alone.

    Args:
        figures: from `figures.run_figures`.

    Raises:
        UsageError: matplotlib is not installed.
        RunError: the directory can't be written.
    """
    check_matplotlib()
    try:
        directory.mkdir(parents=True, exist_ok=True)  # before the seconds of drawing
        drawn = pictures(figures)
        svgs = {name: svg for name, (svg, _) in drawn.items()}
        files: dict[str, bytes] = {
            "index.html": html_page(figures, svgs).encode(),
            "report.md": markdown_page(figures, list(drawn)).encode(),
        }
        for name, (svg, png) in drawn.items():
            files |= {f"{name}.svg": svg, f"{name}.png": png}
        for name, content in files.items():
            (directory / name).write_bytes(content)
    except OSError as error:
        raise RunError(f"{directory} can't be written: {error.strerror or error}") from error
    return [directory / name for name in files]


def html_page(figures: dict[str, Any], svgs: dict[str, bytes]) -> str:
    """The report as one HTML file, the pictures within it."""
    title = escape(_title(figures))
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1>",
        f"<p>{escape(_what(figures))}</p>",
    ]
    for name, svg in svgs.items():
        data = base64.b64encode(svg).decode()
        parts.append(f"<p><img alt='{escape(name)}' src='data:image/svg+xml;base64,{data}'></p>")
    parts += [f"<p>{escape(note)}</p>" for note in (_published(figures), *_NOTES)]
    overview, *tables = _tables(figures)
    parts.append(f"<h2>{escape(overview.title)}</h2>{_html_table(overview)}<h2>By layer</h2>")
    parts += [
        f"<details><summary>{escape(table.title)}</summary>{_html_table(table)}</details>"
        for table in tables
    ]
    return "\n".join([*parts, "</body></html>\n"])


def markdown_page(figures: dict[str, Any], names: list[str]) -> str:
    """The report as Markdown, beside the PNG pictures of these names."""
    parts = [f"# {_markdown(_title(figures))}", _markdown(_what(figures))]
    parts += [f"![{name}]({name}.png)" for name in names]
    parts += [_markdown(note) for note in (_published(figures), *_NOTES)]
    for table in _tables(figures):
        lines = [table.header, ("---", *("---:" for _ in table.header[1:])), *table.rows]
        cells = ["| " + " | ".join(map(_markdown, line)) + " |" for line in lines]
        parts.append(f"## {_markdown(table.title)}\n\n" + "\n".join(cells))
    return "\n\n".join(parts) + "\n"


def number(value: float | None) -> str:
    """A score or an error as the pages show it."""
    return "-" if value is None else f"{value:.3f}"


def _title(figures: dict[str, Any]) -> str:
    return f"{shown(figures['subject'])}: what its explanations are worth"


def _what(figures: dict[str, Any]) -> str:
    return (
        f"{counted(figures['neurons'], 'neuron')} over {figures['tokens']:,} tokens in "
        f"{counted(figures['excerpts'], 'excerpt')}."
    )


def _published(figures: dict[str, Any]) -> str:
    own = figures["published"]
    return (
        f"Grey lines: published correlations of {own['subject']}, another subject on another "
        f"corpus ({own['source']}), its {own['of']} layers drawn over this subject's depth."
    )


def _tables(figures: dict[str, Any]) -> Iterator[Table]:
    """All layers together, a row a measure; then a table for each measure, a row a layer."""
    rows = [(_row_title(each), *_cells(each["all"])) for each in figures["measures"]]
    yield Table("All layers", ("scores", *_HEADER), rows)
    for each in figures["measures"]:
        layers = [(str(layer["layer"]), *_cells(layer)) for layer in each["layers"]]
        yield Table(_row_title(each), ("layer", *_HEADER), layers)
    if figures["lists"] is not None:
        yield _entries_table(figures["lists"])


def _entries_table(lists: dict[str, Any]) -> Table:
    """Mean correlations of lookup's texts by their entries, a row a layer."""
    names = [*(str(length) for length in lists["lengths"]), "table"]
    splits = SPLITS[:2]
    rows = [
        (title, *(number(value) for split in splits for value in each[split]))
        for title, each in (
            ("all", lists["all"]),
            *((str(each["layer"]), each) for each in lists["layers"]),
        )
    ]
    header = [f"{split_name(split).lower()}: {name}" for split in splits for name in names]
    return Table("Texts by lookup: mean correlation by entries", ("layer", *header), rows)


def _row_title(row: dict[str, Any]) -> str:
    title = f"{name_of(row)}: {measure_name(row)}, {split_name(row['split']).lower()}"
    versions = [shown(text) for text in (row["version"], row["judge_version"]) if text]
    return f"{title} ({', '.join(dict.fromkeys(versions))})" if versions else title


def _cells(found: dict[str, Any]) -> tuple[str, ...]:
    names = ("mean", "error_neurons", "error_excerpts")
    return (
        f"{found['neurons']:,}",
        f"{found['undefined']:,}",
        *(number(found[name]) for name in names),
        *map(number, found["quantiles"] or [None] * len(QUANTILES)),
        number(found["reliability"]),
    )


def _html_table(table: Table) -> str:
    def line(cells: tuple[str, ...], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

    rows = "\n".join(line(row, "td") for row in table.rows)
    return f"<table><thead>{line(table.header, 'th')}</thead><tbody>{rows}</tbody></table>"


def _markdown(text: str) -> str:
    """A text of which Markdown shows every character as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|!&$~])", r"\\\1", text) if not set(text) <= set("-:") else text
