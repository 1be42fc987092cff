"""The command that ranks neurons on a text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from fastexplain.cli.common import AsJson, Device, DType, RunPath, SubjectPlace, Trust
from fastexplain.cli.terminal import out, print_json, progress, visible, working
from fastexplain.errors import UsageError

if TYPE_CHECKING:
    from fastexplain.cli.text_table import TextTable
    from fastexplain.pipeline.activating import Activated, Active
    from fastexplain.run.directory import Run

_MOST_BYTES = 2**20  # about the largest text for which a line a token is of use
_SHOWN_TOKENS = 128
_A_TOKEN = 3  # neurons shown of each

_AROUND = 24  # characters before a token that are shown with it


def activate(
    run: RunPath,
    text: Annotated[
        str | None,
        typer.Argument(metavar="TEXT", help="The text; - for standard input."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="Take the text from a file.")
    ] = None,
    neurons: Annotated[
        list[str] | None,
        typer.Option(
            "--neuron", metavar="NEURON", help="Show its value at every token; may be repeated."
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Neurons to show.")] = 10,
    subject: SubjectPlace = None,
    device: Device = None,
    dtype: DType = None,
    trust_remote_code: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Rank neurons on a text, each by its own distribution.

    The quantile is the share of the sweep's excerpts on which a neuron stays below its value here.
    The subject is loaded again and compared with the one that was swept.
    """
    from fastexplain.report.finding import activated_data
    from fastexplain.run.directory import open_run
    from fastexplain.run.selection import select_neurons

    opened = open_run(run)
    given = _text(text, file)
    named = select_neurons(opened, neurons or [])
    from fastexplain.pipeline.activating import activate as activate_on
    from fastexplain.pipeline.activating import excerpts_of
    from fastexplain.run.subjects import load_subject_of
    from fastexplain.subject.activations import token_ids

    with working("Loading the subject"):
        loaded = load_subject_of(
            opened, name=subject, device=device, dtype=dtype, trust_remote_code=trust_remote_code
        )
    ids = token_ids(loaded, given)
    with progress("Running", excerpts_of(opened, len(ids))) as advance:
        found = activate_on(opened, ids, named, top=top, subject=loaded, progress=advance)
    if as_json:
        print_json(activated_data(found))
        return
    out.print(_ranking_table(opened, found))
    if found.values:
        out.print(_values_table(found))
    elif len(found.tokens) <= _SHOWN_TOKENS:
        out.print(_tokens_table(found))
    else:
        out.print(f"The text has {len(found.tokens):,} tokens; --json has them one by one.")


def _text(text: str | None, file: Path | None) -> str:
    """The text that is meant. Raises UsageError where there is none, or it is too large."""
    if (text is None) == (file is None):
        raise UsageError("give one text: TEXT, - for standard input, or --file FILE")
    if text is not None and text != "-":
        return text
    name = "standard input" if file is None else str(file)
    try:
        if file is None:
            content = sys.stdin.buffer.read(_MOST_BYTES + 1)
        else:
            with file.open("rb") as opened:
                content = opened.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise UsageError(f"{name} has more than {_MOST_BYTES:,} bytes; sweep it as a corpus")
        return content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        why = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else None
        why = why or f"can't be read: {getattr(error, 'strerror', None) or error}"
        raise UsageError(f"{name} {why}") from error


def _ranking_table(run: Run, found: Activated) -> TextTable:
    """The neurons that stand highest over the text, each at its best token."""
    from fastexplain.cli.text_table import Column, TextTable
    from fastexplain.cli.token_text import marked, token_beside_marks, words_text
    from fastexplain.finding.search import best_explanation
    from fastexplain.report.entries import whole_words

    names = ("quantile", "activation", "of its largest")
    columns = [Column("neuron"), *(Column(name, number=True) for name in names)]
    rows = []
    with run.database(read_only=True) as database:
        for each in found.over_text:
            before = token_beside_marks(out, "".join(found.tokens[: each.place]))[-_AROUND:]
            token = marked(out, token_beside_marks(out, found.tokens[each.place]))
            explanation = best_explanation(database.explanations(each.neuron))
            said = "" if explanation is None else explanation.text or ""
            if explanation is not None:
                said = whole_words(run, [explanation]).get(explanation.id, said)
            values = (
                str(each.neuron),
                quantile_text(each),
                f"{each.activation:.3g}",
                "" if each.of_largest != each.of_largest else f"{each.of_largest:.2f}",
            )
            where = Text.assemble(before, (token, "bold"), "\n" if said else "", words_text(said))
            rows.append(([[value] for value in values], where))
    return TextTable(columns, "where, and what explains it", rows, "Over the text")


def _tokens_table(found: Activated) -> Table:
    """The neurons that stand highest at each token."""
    from fastexplain.cli.text_table import light_table

    table = light_table("By token")
    table.add_column("token")
    table.add_column("neurons, with the quantile")
    for token, own in zip(found.tokens, found.by_token, strict=True):
        neurons = "  ".join(f"{each.neuron} {quantile_text(each)}" for each in own[:_A_TOKEN])
        table.add_row(_token_text(token), neurons or Text("not counted", style="dim"))
    return table


def _values_table(found: Activated) -> Table:
    """The values of the neurons that were named, at every token."""
    from fastexplain.cli.text_table import light_table

    table = light_table("Activations")
    table.add_column("token")
    for neuron in found.values:
        table.add_column(str(neuron), justify="right")
    for place, token in enumerate(found.tokens):
        values = (own[place] for own in found.values.values())
        table.add_row(
            _token_text(token), *("" if value != value else f"{value:.3g}" for value in values)
        )
    return table


def _token_text(token: str) -> Text:
    """A token whose spaces are seen."""
    return Text(visible(token).replace(" ", "␣"))


def quantile_text(active: Active) -> str:
    """A quantile to four digits, never rounded up to 1."""
    if active.quantile >= 1:
        return "1"
    return f"{min(active.quantile, 0.9999):.4f}"
