"""The command line: parses, calls the library, prints. Heavy imports wait for the command."""

from __future__ import annotations

import os
import re
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from fastexplain.cli.ablate import ablate, steer
from fastexplain.cli.activate import activate
from fastexplain.cli.check import check
from fastexplain.cli.common import (
    AsJson,
    Device,
    DType,
    Limit,
    RunPath,
    Trust,
    print_rows,
    size_of,
)
from fastexplain.cli.doctor import doctor
from fastexplain.cli.explain import cost, explain, ingest
from fastexplain.cli.export import export
from fastexplain.cli.find import find, search
from fastexplain.cli.puzzles import puzzles
from fastexplain.cli.rate import rate
from fastexplain.cli.ratings import ratings
from fastexplain.cli.report import report
from fastexplain.cli.score import score
from fastexplain.cli.terminal import accept_all_text, out, print_json, print_line, terminations
from fastexplain.cli.view import serve_until_ended, view
from fastexplain.cli.weights import weights
from fastexplain.errors import FastexplainError, LLMError, StoppedError, UnusableError, UsageError
from fastexplain.models.memory import keep_freed_memory
from fastexplain.version import __version__

# 128 and the number of the signal, as a shell counts.
_INTERRUPTED = 130
_TERMINATED = 143

_LONGEST = 2000  # characters of an error that are shown

app = typer.Typer(
    help="Explains the MLP neurons of a language model, all of them, fast.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; errors are one line, exit code 2 for usage and 1 for failure.

    SIGTERM is handled as Ctrl-C is; the exit code is 130 after Ctrl-C and 143 after SIGTERM, but
    that of the viewer, which either of them ends in good order, is 0.
    """
    with terminations() as terminated:
        code = _run()
    if code == _INTERRUPTED and terminated.is_set():
        code = _TERMINATED
    sys.exit(code)


def _run() -> int:
    """Run the command that the arguments name; returns the exit code."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    arguments = arguments or ["--help"]
    accept_all_text()
    keep_freed_memory()
    warnings.showwarning = lambda message, *_, **__: _print_error(str(message))
    try:
        # Typer turns Ctrl-C into a returned 130; commands themselves return nothing.
        code = app(arguments, standalone_mode=False, prog_name="fastexplain") or 0
        sys.stdout.flush()
        if code == _INTERRUPTED:
            _print_error("interrupted")
    except typer.Abort:  # Ctrl-C at a question
        code = _INTERRUPTED
        _print_error("interrupted")
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if debug:
            raise
        code = 2 if isinstance(error, UsageError) else 1
        code = _INTERRUPTED if isinstance(error, StoppedError) else code
        if isinstance(error, FastexplainError):
            # What a server says of its own arguments is left as it is.
            own = not isinstance(error, LLMError) or isinstance(error, UnusableError)
            _print_error(_with_options(str(error)) if own else str(error))
        elif isinstance(error, MemoryError):
            _print_error(f"there is not enough memory: {error or 'nothing is left'}")
        elif hasattr(error, "format_message"):  # of click's, which Typer may carry within itself
            code = 2
            _print_error(error.format_message())
        else:
            [first, *_] = str(error).splitlines() or [""]
            _print_error(f"{type(error).__name__}: {first} (unexpected; --debug shows where)")
    return code


def _with_options(message: str) -> str:
    """A message of the library with options in place of Python's arguments."""
    group: Any = typer.main.get_command(app)
    options = {
        parameter.name: next((each for each in parameter.opts if each.startswith("--")), None)
        for command in group.commands.values()
        for parameter in command.params
    }
    options |= {"skip": "--skip-positions", "compile": "--compile", "table_bytes": "--table-memory"}

    def option(argument: re.Match[str]) -> str:
        name, value = argument.groups()
        found = options.get(name)
        if found is None:
            return argument[0]
        if (name, value) == ("table_bytes", "0"):
            return "--no-tables"
        return found if value is None else f"{found} {value}"

    return re.sub(r"`(\w+)(?:='?([^`']*)'?)?`", option, message)


def _print_error(message: str) -> None:
    if len(message) > _LONGEST:  # it quotes what was given
        message = f"{message[: _LONGEST // 2]} [...] {message[-_LONGEST // 2 :]}"
    print_line(f"fastexplain: {message}")


def _show_version(wanted: bool) -> None:
    if wanted:
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
    """Options for the help text; `_run` takes --debug out of the arguments wherever it stands."""


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
            metavar="SOURCE",
            help="Text: a file, a directory, .jsonl, .json, .parquet, hf:NAME for a Hugging Face "
            "data set, - for standard input, or stdlib. Several may follow.",
        ),
    ],
    run: Annotated[Path, typer.Option("--out", metavar="RUN", help="Directory to write.")],
    more: Annotated[list[str] | None, typer.Argument(metavar="SOURCE", hidden=True)] = None,
    excerpts: Annotated[
        int | None, typer.Option(help="Excerpts of 64 tokens; all if left out.")
    ] = None,
    top_k: Annotated[int, typer.Option(help="Top exemplars kept for each neuron.")] = 20,
    random: Annotated[int, typer.Option(help="Random exemplars, shared by all neurons.")] = 25,
    bottom: Annotated[
        bool, typer.Option("--bottom", help="Keep the most negative exemplars too.")
    ] = False,
    signs: Annotated[
        bool,
        typer.Option(
            "--signs",
            help="Keep of gated MLPs, f(gate) times up, what neurons do by the signs of the two.",
        ),
    ] = False,
    layers: Annotated[str | None, typer.Option(help="Such as 0-5,8; all if left out.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Excerpts in a forward pass; by free memory if left out.")
    ] = None,
    device: Device = None,
    dtype: DType = None,
    skip_positions: Annotated[
        int | None,
        typer.Option(
            help="Tokens at an excerpt's start that are not counted; if left out, 0 where the "
            "subject's tokenizer puts a token before a text, else 1."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the shuffle and of the random exemplars.")] = 0,
    table_memory: Annotated[
        str,
        typer.Option(
            metavar="SIZE", help="Memory for the tables of all layers, such as 4GB or 500MB."
        ),
    ] = "1GB",
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
    column: Annotated[
        str, typer.Option(help="The text column of .jsonl, .parquet and data sets.")
    ] = "text",
    verbose: Annotated[
        bool, typer.Option("--verbose", help="List the corpus's files that are passed over.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    trust_remote_code: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Find the text that drives each neuron, in one pass of a corpus.

    SUBJECT is the model whose neurons are examined. A sweep that was stopped with Ctrl-C or SIGTERM
    is continued by the same command.
    """
    from fastexplain.cli import jobs
    from fastexplain.run.selection import parse_layers
    from fastexplain.run.writing import check_free

    table_bytes = 0 if no_tables else size_of(table_memory)
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
        verbose=verbose,
        top_k=top_k,
        random=random,
        bottom=bottom,
        signs=signs,
        layers=chosen,
        batch_size=batch_size,
        skip=skip_positions,
        compile=compiled,
        table_bytes=table_bytes,
    )
    jobs.report_sweep(finished)
    if as_json:
        print_json({"run": str(run), **finished.manifest["sweep"]})
    else:
        out.print(f"Next: fastexplain explain {run}", markup=False)


for command in (explain, score, ingest, cost, ablate, steer, weights, check, report, view, export):
    app.command()(command)


@app.command()
def show(
    run: RunPath,
    neuron: Annotated[str, typer.Argument(metavar="NEURON", help="Such as 5:131.")],
    count: Annotated[int, typer.Option(min=1, help="Exemplars of each kind.")] = 5,
    signs: Annotated[
        bool, typer.Option("--signs", help="Exemplars of the sign classes too (sweep --signs).")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show a neuron: explanations, exemplars and simulations."""
    from fastexplain.cli.neuron import print_neuron
    from fastexplain.report.neuron import neuron_data
    from fastexplain.run.directory import open_run

    opened = open_run(run)
    record = opened.neuron(neuron)
    if as_json:
        print_json(neuron_data(opened, record, count))
    else:
        print_neuron(out, opened, record, count, signs=signs)


@app.command()
def top(
    run: RunPath,
    limit: Limit = 20,
    layer: Annotated[int | None, typer.Option(help="Only neurons of this layer.")] = None,
    method: Annotated[
        str | None,
        typer.Option(help="Such as lookup, or model for language models; all if left out."),
    ] = None,
    by: Annotated[
        str, typer.Option(help="The score: top_and_random, random_only or top_only.")
    ] = "top_and_random",
    as_json: AsJson = False,
) -> None:
    """Show the neurons with the best-scored explanations."""
    from fastexplain.run.directory import open_run

    opened = open_run(run)
    if layer is not None:
        opened.width(layer)  # raises an error that lists the layers there are
    with opened.database(read_only=True) as database:
        methods = database.methods()
        if method is not None and method not in methods:
            there = f"there are {', '.join(methods)}" if methods else "nothing is explained yet"
            raise UsageError(f"nothing is explained by '{method}'; {there}")
        rows = database.best(limit, method, by, layer, one_each=method is None)
    nothing = f"Nothing is explained yet; run: fastexplain explain {run}"
    print_rows(rows, as_json, otherwise=nothing, words=opened)


app.command()(find)
app.command(hidden=True)(search)
for function in (activate, rate, ratings, doctor, puzzles):
    app.command()(function)


@app.command()
def bench(
    geometry: Annotated[
        str, typer.Option(help="The shape of a well-known model, such as gpt2-xl or llama-8b.")
    ] = "smollm2",
    layers: Annotated[
        int | None, typer.Option(metavar="N", help="Its lowest N layers; all if left out.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Excerpts in a forward pass.")] = None,
    batches: Annotated[int, typer.Option(help="Batches to measure of each method.")] = 16,
    seconds: Annotated[float, typer.Option(help="Time after which no new batch starts.")] = 120.0,
    no_compile: Annotated[
        bool, typer.Option("--no-compile", help="Leave out the methods that need compiling.")
    ] = False,
    device: Device = None,
    dtype: DType = None,
    record: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the result here, as JSON.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the speed of a sweep on this machine.

    It is compared with the model alone and with common ways to collect activations; the weights are
    random.
    """
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
        typer.Option(min=0, help="Neurons that the language model explains."),
    ] = 5,
    as_json: AsJson = False,
) -> None:
    """Try the whole method: sweep SmolLM2 and explain its neurons.

    Every neuron is explained by lookup, and a few by SmolLM2 itself. A demo that was stopped, or
    finished before, continues with what RUN holds. On a terminal it ends by serving the viewer.
    """
    from fastexplain.cli.demo import run_demo
    from fastexplain.run.directory import open_run

    result = run_demo(run, excerpts=excerpts, neurons=neurons, show=not as_json)
    if as_json:
        print_json(result)
    elif out.is_terminal:
        serve_until_ended(open_run(run))
