"""The command line: parses, calls the library, prints. Heavy imports wait for the command."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fastexplain.cli.common import AsJson, RunPath, print_explanations, print_json
from fastexplain.cli.explain import cost, explain, ingest
from fastexplain.cli.terminal import out
from fastexplain.errors import FastexplainError, StoppedError, UsageError
from fastexplain.version import __version__

_INTERRUPTED = 130

app = typer.Typer(
    help="Explains the MLP neurons of a language model, all of them, fast.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; errors are one line, exit code 2 for usage and 1 for failure."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    arguments = arguments or ["--help"]
    warnings.showwarning = lambda message, *_, **__: _complain(str(message))
    try:
        # Typer turns Ctrl-C into a returned 130; commands themselves return nothing.
        code = app(arguments, standalone_mode=False, prog_name="fastexplain") or 0
        sys.stdout.flush()
        if code == _INTERRUPTED:
            _complain("interrupted")
    except typer.Abort:  # Ctrl-C where something is asked
        code = _INTERRUPTED
        _complain("interrupted")
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if debug:
            raise
        code = 2 if isinstance(error, UsageError) else 1
        code = _INTERRUPTED if isinstance(error, StoppedError) else code
        if isinstance(error, FastexplainError):
            _complain(str(error))
        elif hasattr(error, "format_message"):  # of click's, which Typer may carry within itself
            code = 2
            _complain(error.format_message())
        else:
            told = f"{type(error).__name__}: {error}".splitlines()[0]
            _complain(f"{told} (unexpected; --debug shows where)")
    sys.exit(code)


def _complain(message: str) -> None:
    print(f"fastexplain: {message}", file=sys.stderr)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"fastexplain {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    """Taken out of the arguments by `main`, wherever it stands; here for the help text."""


@app.command()
def sweep(
    subject: Annotated[
        str,
        typer.Argument(metavar="SUBJECT", help="smollm2, a hub id, a directory or a GGUF file."),
    ],
    corpus: Annotated[
        list[str],
        typer.Option(
            "--corpus",
            metavar="PATH|NAME",
            help="Text: files, directories, .jsonl, .parquet, - for standard input, or stdlib. "
            "Several may follow.",
        ),
    ],
    run: Annotated[Path, typer.Option("--out", metavar="RUN", help="Directory to write.")],
    more: Annotated[list[str] | None, typer.Argument(metavar="", hidden=True)] = None,
    excerpts: Annotated[
        int | None, typer.Option(help="Excerpts of 64 tokens; all if left out.")
    ] = None,
    top_k: Annotated[int, typer.Option(help="Top exemplars a neuron.")] = 20,
    random: Annotated[int, typer.Option(help="Random exemplars, shared by all neurons.")] = 25,
    bottom: Annotated[
        bool, typer.Option("--bottom", help="Keep the most negative ones too.")
    ] = False,
    layers: Annotated[str | None, typer.Option(help="Such as 0-5,8; all if left out.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Excerpts in a forward pass; by free memory if left out.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    skip_positions: Annotated[
        int | None,
        typer.Option(
            help="Tokens at an excerpt's start that count for nothing; "
            "0 where the subject has a BOS token, else 1."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the shuffle and the random exemplars.")] = 0,
    no_tables: Annotated[
        bool, typer.Option("--no-tables", help="Keep no tables: less memory, but no lookup.")
    ] = False,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile the model's layers first: a minute at the start, faster on a GPU.",
        ),
    ] = False,
    column: Annotated[str, typer.Option(help="The text column of .jsonl and .parquet.")] = "text",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code of a hub repository.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find the text that drives every neuron of a subject, in one pass of a corpus."""
    from fastexplain.cli import jobs
    from fastexplain.run.directory import check_free
    from fastexplain.run.selection import parse_layers

    check_free(run)
    chosen = None if layers is None else parse_layers(layers)
    loaded = jobs.load(subject, device=device, dtype=dtype, revision=revision,
                   trust_remote_code=trust_remote_code)  # fmt: skip
    finished = jobs.sweep_corpus(
        loaded,
        [*corpus, *(more or [])],
        run,
        excerpts=excerpts,
        seed=seed,
        column=column,
        top_k=top_k,
        random=random,
        bottom=bottom,
        layers=chosen,
        batch_size=batch_size,
        skip=skip_positions,
        compile=compiled,
        **({"table_bytes": 0} if no_tables else {}),
    )
    jobs.report_sweep(finished)
    if as_json:
        print_json({"run": str(run), **finished.manifest["sweep"]})
    else:
        out.print(f"Next: fastexplain explain {run}", markup=False)


for command in (explain, ingest, cost):
    app.command()(command)


@app.command()
def show(
    run: RunPath,
    neuron: Annotated[str, typer.Argument(metavar="NEURON", help="Such as 5:131.")],
    count: Annotated[int, typer.Option(min=1, help="Exemplars of each kind.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Show a neuron: its explanations, its excerpts, and the true beside the simulated."""
    from fastexplain.cli.neuron import print_neuron
    from fastexplain.report.neuron import neuron_data
    from fastexplain.run.directory import open_run

    opened = open_run(run)
    record = opened.neuron(neuron)
    if as_json:
        print_json(neuron_data(opened, record, count))
    else:
        print_neuron(out, opened, record, count)


@app.command()
def top(
    run: RunPath,
    limit: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    layer: Annotated[int | None, typer.Option(help="Of this layer alone.")] = None,
    method: Annotated[
        str | None, typer.Option(help="Such as lookup, or model: the language models.")
    ] = None,
    by: Annotated[str, typer.Option(help="top_and_random, random_only or top_only.")] = (
        "top_and_random"
    ),
    as_json: AsJson = False,
) -> None:
    """Show the neurons with the best-scored explanations."""
    from fastexplain.cli.tables import explanations_table
    from fastexplain.run.directory import open_run

    opened = open_run(run)
    if layer is not None:
        opened.width(layer)  # says which there are
    with opened.database(read_only=True) as database:
        methods = database.methods()
        if method is not None and method not in methods:
            there = f"there are {', '.join(methods)}" if methods else "nothing is explained yet"
            raise UsageError(f"nothing is explained by '{method}'; {there}")
        rows = database.best(limit, method, by, layer)
    if as_json:
        print_explanations(rows)
    elif rows:
        out.print(explanations_table(rows))
    else:
        out.print(f"Nothing is explained yet; run: fastexplain explain {run}", markup=False)


@app.command()
def search(
    run: RunPath,
    words: Annotated[list[str], typer.Argument(metavar="WORD...", help="All have to occur.")],
    limit: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Find explanations by their words, or by other forms of these."""
    from fastexplain.cli.tables import explanations_table
    from fastexplain.run.directory import open_run

    with open_run(run).database(read_only=True) as database:
        rows = database.search(" ".join(words), limit)
    if as_json:
        print_explanations(rows)
    elif rows:
        out.print(explanations_table(rows))
    else:
        out.print(f"No explanation has: {' '.join(words)}", markup=False)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show what this machine has, and which path will be used on it."""
    from fastexplain.cli.doctor import examine

    facts = examine()
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        if name != "advice":
            out.print(f"[bold]{name:>15}[/]  {escape(str(value) if value is not None else 'none')}")
    for line in facts["advice"]:
        out.print(f"{'advice':>15}  {line}", markup=False)


@app.command()
def bench(
    geometry: Annotated[
        str, typer.Option(help="The shape of a well-known model, such as gpt2-xl or llama-8b.")
    ] = "smollm2",
    layers: Annotated[
        int | None, typer.Option(metavar="N", help="Its lowest N layers; all if left out.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Excerpts in a forward pass.")] = None,
    batches: Annotated[int, typer.Option(help="Batches of each way.")] = 16,
    seconds: Annotated[float, typer.Option(help="After which no further batch begins.")] = 120.0,
    no_compile: Annotated[
        bool, typer.Option("--no-compile", help="Leave out what has to be compiled first.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    record: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the result here, as JSON.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how fast a sweep is here, beside the bare model; weights are random."""
    from fastexplain.cli import jobs
    from fastexplain.cli.bench_table import bench_table

    result = jobs.run_bench(
        geometry,
        layers=layers,
        device=device,
        dtype=dtype,
        record=record,
        batch_size=batch_size,
        batches=batches,
        seconds=seconds,
        compile="off" if no_compile else "layers",
    )
    out.print(bench_table(result))
    if as_json:
        print_json(result)


@app.command()
def demo(
    run: Annotated[Path, typer.Option("--out", metavar="RUN", help="Directory to write.")] = Path(
        "demo-run"
    ),
    excerpts: Annotated[int, typer.Option(min=1, help="Excerpts of 64 tokens.")] = 2048,
    neurons: Annotated[
        int,
        typer.Option(min=0, help="Neurons for the language model to explain, 0 for none."),
    ] = 5,
    as_json: AsJson = False,
) -> None:
    """Do it all once: SmolLM2 swept, every neuron explained by lookup, a few by itself.

    What is in RUN from an earlier demo is kept and gone on from.
    """
    from fastexplain.cli.demo import run_demo

    result = run_demo(run, excerpts=excerpts, neurons=neurons, show=not as_json)
    if as_json:
        print_json(result)
