"""The command that finds neurons: by words, by a condition, and by ready-made searches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from fastexplain.cli.common import AsJson, Limit, RunPath, print_rows
from fastexplain.cli.terminal import out, print_json, progress, visible
from fastexplain.errors import UsageError

if TYPE_CHECKING:
    from fastexplain.cli.text_table import TextTable
    from fastexplain.finding.results import Evidence, Hit
    from fastexplain.run.directory import Run

_BEFORE, _AFTER = 32, 12  # characters of an exemplar around its peak

# Beyond this no explanation is looked at when words and a condition are asked for together.
_MOST = 100_000

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="WORD", help="Words that must all occur in an explanation."),
]


def find(
    run: RunPath,
    words: Words = None,
    kind: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A ready-made search; --kinds lists them."),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(metavar="CONDITION", help="Only neurons that meet this, as for explain."),
    ] = None,
    kinds: Annotated[
        bool,
        typer.Option(
            "--kinds",
            help="List the ready-made searches.",
            is_eager=True,
            callback=lambda wanted: _print_kinds(wanted),
        ),
    ] = False,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """Find neurons by words, conditions and ready-made searches.

    Words are those of explanations, in other forms too. The searches are for what the method's
    authors found by eye: neurons of pattern breaks, repetition, single tokens and others.
    """
    from fastexplain.run.directory import open_run

    opened = open_run(run)
    if kind is not None and words:
        raise UsageError("--kind and words exclude each other; --where goes with both")
    if kind is not None:
        _print_hits(opened, kind, where, limit, as_json)
    elif words:
        _print_explanations(opened, words, where, limit, as_json)
    elif where is not None:
        _print_fulfilling(opened, where, limit, as_json)
    else:
        raise UsageError("say what to find: words, --where CONDITION or --kind NAME")


def search(run: RunPath, words: Words = None, limit: Limit = 20, as_json: AsJson = False) -> None:
    """Find explanations by their words: the same as `find RUN WORD...`."""
    from fastexplain.run.directory import open_run

    _print_explanations(open_run(run), words or [], None, limit, as_json)


def _print_kinds(wanted: bool) -> None:
    if not wanted:
        return
    from fastexplain.cli.text_table import light_table
    from fastexplain.finding.kinds import KINDS

    table = light_table()
    for column in ("kind", "neurons that", "found where"):
        table.add_column(column, no_wrap=column == "kind", overflow="fold")
    for name, kind in KINDS.items():
        table.add_row(name, kind.finds, kind.criterion)
    out.print(table)
    raise typer.Exit


def _print_explanations(
    run: Run, words: list[str], where: str | None, limit: int, as_json: bool
) -> None:
    from fastexplain.report.columns import score_columns
    from fastexplain.report.search import explanations_with
    from fastexplain.run.selection import select_neurons

    chosen = None if where is None else set(select_neurons(run, [], where=where))
    with run.database(read_only=True) as database:
        headlines = score_columns(run, database).headlines
        most = limit if chosen is None else _MOST
        rows = explanations_with(database, headlines, " ".join(words), most)
    if chosen is not None:
        rows = [row for row in rows if row.neuron in chosen][:limit]
    print_rows(rows, as_json, otherwise=f"No explanation has: {' '.join(words)}", words=run)


def _print_fulfilling(run: Run, where: str, limit: int, as_json: bool) -> None:
    """Print neurons that meet a condition, in their order, with what they are and say."""
    from fastexplain.finding.search import described
    from fastexplain.run.selection import select_neurons

    chosen = select_neurons(run, [], where=where)
    _print_found(run, described(run, chosen[:limit]), as_json)
    if len(chosen) > limit and not as_json:
        out.print(f"{len(chosen):,} neurons meet it; --limit shows more than {limit}.")


def _print_hits(run: Run, kind: str, where: str | None, limit: int, as_json: bool) -> None:
    from fastexplain.finding.kinds import kind_of
    from fastexplain.finding.search import find as find_kind

    kind_of(kind)  # raises an error that lists the kinds there are
    with progress(f"Searching for {kind}", len(run.layers)) as advance:
        hits = find_kind(run, kind, where=where, limit=limit, progress=advance)
    _print_found(run, hits, as_json, otherwise=f"No neuron is of the kind {kind}; see find --kinds")


def _print_found(run: Run, hits: list[Hit], as_json: bool, otherwise: str = "") -> None:
    from fastexplain.report.finding import hit_data, in_whole_words

    hits = in_whole_words(run, hits)
    if as_json:
        print_json({"found": [hit_data(hit) for hit in hits]})
    elif hits:
        out.print(_hits_table(hits))
    else:
        out.print(otherwise, markup=False)


def _hits_table(hits: list[Hit]) -> TextTable:
    from fastexplain.cli.text_table import Column, TextTable
    from fastexplain.cli.token_text import words_text

    details = [
        {name: _shown(value) for name, value in hit.details.items()}
        | ({} if hit.value is None else {"value": f"{hit.value:.2f}"})
        for hit in hits
    ]
    scores = ["" if hit.score is None else f"{hit.score:.2f}" for hit in hits]
    # The search beyond lookup has it among its details, as the best of the others.
    known = all(own.get("other") == score for own, score in zip(details, scores, strict=True))
    names = [*(["value"] if "value" in details[0] else []), *hits[0].details]
    columns = [Column("neuron"), *(Column(name, number=True) for name in names)]
    rows = []
    for hit, own, score in zip(hits, details, scores, strict=True):
        explained = [words_text(hit.explanation)] if hit.explanation else []
        lines = Text("\n").join([*explained, *map(_evidence_text, hit.evidence)])
        cells = [[str(hit.neuron)], *([own[name]] for name in names), *([] if known else [[score]])]
        rows.append((cells, lines))
    columns += [] if known else [Column("score", number=True)]
    return TextTable(columns, "explanation, and where it is strongest", rows)


def _shown(value: float | int | str) -> str:
    text = f"{value:.2f}" if isinstance(value, float) else str(value)
    return visible(text if text.strip() else text.replace(" ", "␣"))


def _evidence_text(found: Evidence) -> Text:
    """The tokens around the peak, which is marked and bold."""
    from fastexplain.cli.token_text import marked, token_beside_marks

    before, after = (
        token_beside_marks(out, "".join(found.tokens[part]))
        for part in (slice(0, found.place), slice(found.place + 1, None))
    )
    return Text.assemble(
        "· ",
        before[-_BEFORE:],
        (marked(out, token_beside_marks(out, found.tokens[found.place])), "bold"),
        after[:_AFTER],
    )
