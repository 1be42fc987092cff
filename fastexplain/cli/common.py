"""What several commands have in common: arguments, and results as JSON."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastexplain.cli.terminal import out, print_json
from fastexplain.errors import UsageError

if TYPE_CHECKING:
    from fastexplain.results import StoredExplanation
    from fastexplain.run.directory import Run

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="End standard output with the result as one JSON object.")
]


Device = Annotated[str | None, typer.Option(help="cpu, cuda or mps.")]
DType = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
Limit = Annotated[int, typer.Option(min=1, help="Explanations to show.")]

# Of commands that ask language models.
BaseUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="An OpenAI-compatible server with these models; OpenAI's own if left out. "
        "Its key is read from OPENAI_API_KEY.",
    ),
]
Simulation = Annotated[
    str | None,
    typer.Option(
        metavar="MODE",
        help="prompt-logprobs, generated-logprobs, json or one-at-a-time; if left out, the "
        "first of these that the simulator can do.",
    ),
]
Readout = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="expected; contrast with an empty explanation, or contrast-others with those of "
        "other neurons. If left out, as puzzles --tune has found for this run, else expected.",
    ),
]
RequestsPerMinute = Annotated[
    int | None, typer.Option(metavar="N", help="The server's limit on requests.")
]
TokensPerMinute = Annotated[
    int | None, typer.Option(metavar="N", help="The server's limit on tokens.")
]
SimulatorUrl = Annotated[
    str | None, typer.Option(metavar="URL", help="The simulator's server, if another.")
]
Local = Annotated[
    bool,
    typer.Option(
        "--local", help="Run the models in this process: smollm2, a hub id or a directory."
    ),
]
SimulatorLocal = Annotated[
    bool, typer.Option("--simulator-local", help="Run only the simulator in this process.")
]
PromptName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="How to ask the explainer: exemplars, full (with the tables' tokens, contrasts and "
        "output tokens), "
        "thinking, short (for small models) or list (the tables' tokens alone, cheap); if left "
        "out, thinking for models that think, else exemplars.",
    ),
]
Concurrency = Annotated[int, typer.Option(min=1, help="Requests in flight at a server at once.")]
Timeout = Annotated[float, typer.Option(help="Seconds that a request may take.")]
MaxCost = Annotated[
    float | None, typer.Option(metavar="USD", help="Stop before the cost exceeds this.")
]
MaxRequests = Annotated[
    int | None, typer.Option(metavar="N", help="Stop before more than N are sent.")
]
MaxMinutes = Annotated[
    float | None, typer.Option(metavar="N", help="Send nothing more after N minutes.")
]
ExplainerPrice = Annotated[
    str | None,
    typer.Option(metavar="IN,OUT", help="The explainer's US dollars a million tokens."),
]
SimulatorPrice = Annotated[
    str | None,
    typer.Option(metavar="IN,OUT", help="The simulator's; the explainer's if it is that."),
]
SubjectPlace = Annotated[
    str | None,
    typer.Option(
        metavar="SUBJECT", help="Where the subject is now, if not where it was swept from."
    ),
]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the subject's code from the hub.")
]
Seed = Annotated[int, typer.Option(help="Seed of the sample.")]
Where = Annotated[
    str | None,
    typer.Option(metavar="CONDITION", help="Only neurons that meet this, as 'lookup_score < 0.3'."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Ask again for what is already stored.")]
# Of commands that compute.
Anew = Annotated[bool, typer.Option("--fresh", help="Do again what is already stored.")]


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def size_of(text: str) -> int:
    """Bytes of a size such as 4GB, 1.5gb or 500 MB; a GB has 2**30.

    Raises UsageError for what is none.
    """
    found = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,12})?) ?([KMGT]?)B?", text.strip().upper())
    if found is None:
        raise UsageError(f"'{text}' is no size; give bytes, or a size such as 4GB or 500MB")
    return int(float(found[1]) * _UNITS[found[2]])


def reject_together(options: dict[str, object]) -> None:
    """Raise UsageError where more than one of these options was given."""
    given = [name for name, value in options.items() if value]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other")


def print_rows(
    rows: list[StoredExplanation],
    as_json: bool,
    *,
    title: str | None = None,
    otherwise: str | None = None,
    run: Run | None = None,
    words: Run | None = None,
) -> None:
    """Print explanations as JSON or as a table; `otherwise` is what is said if there are none.

    With the run that they are of, JSON has all of their scores, and judges' are printed too. With
    `words`, the same run, pieces of words are printed in their words.
    """
    from fastexplain.cli.tables import explanations_table, judges_table
    from fastexplain.report.entries import whole_words
    from fastexplain.report.neuron import explanation_data, explanations_data

    if as_json and run is not None:
        print_json({"explanations": explanations_data(run, rows)})
    elif as_json:
        texts = {} if words is None else whole_words(words, rows)
        print_json({"explanations": [explanation_data(row, texts.get(row.id)) for row in rows]})
    elif rows:
        texts = {} if words is None else whole_words(words, rows)
        out.print(explanations_table(rows, title, texts=texts))
        if run is not None and (table := judges_table(run, rows)):
            out.print(table)
    elif otherwise is not None:
        out.print(otherwise, markup=False)
