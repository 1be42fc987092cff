"""The command line: parses, calls the library, prints. Heavy imports wait for the command."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fastexplain import __version__
from fastexplain.errors import FastexplainError, LLMError, UsageError
from fastexplain.terminal import out

_INTERRUPTED = 130

# Neurons that language models explain without being asked whether that is meant.
_UNASKED = 1000
# Neurons that are all shown once they are explained; of more only the best.
_SHOWN = 50

app = typer.Typer(
    help="Explains the MLP neurons of a language model, all of them, fast.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="End standard output with the result as one JSON object.")
]


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
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if debug:
            raise
        code = 2 if isinstance(error, UsageError) else 1
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
    from fastexplain import jobs
    from fastexplain.run import check_free
    from fastexplain.selection import parse_layers

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
        _print_json({"run": str(run), **finished.manifest["sweep"]})
    else:
        out.print(f"Next: fastexplain explain {run}", markup=False)


@app.command()
def explain(
    run: RunPath,
    neurons: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NEURON...",
            help="Such as 5:131, 5:* for a layer, 0-3:*, all, or @file with one a line.",
        ),
    ] = None,
    explainer: Annotated[
        str,
        typer.Option(metavar="MODEL", help="lookup, which needs no model, or a language model."),
    ] = "lookup",
    simulator: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The explainer if left out.")
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="An OpenAI-compatible server with these models; OpenAI's own if left out. "
            "Its key is read from OPENAI_API_KEY.",
        ),
    ] = None,
    simulator_url: Annotated[
        str | None, typer.Option(metavar="URL", help="The simulator's server, if another.")
    ] = None,
    local: Annotated[
        bool,
        typer.Option("--local", help="Load the models here: smollm2, a hub id or a directory."),
    ] = False,
    simulator_local: Annotated[
        bool, typer.Option("--simulator-local", help="Load only the simulator here.")
    ] = False,
    simulation: Annotated[
        str | None,
        typer.Option(
            metavar="MODE",
            help="prompt-logprobs, generated-logprobs, json or one-at-a-time; the first of these "
            "that the simulator can do if left out.",
        ),
    ] = None,
    readout: Annotated[
        str, typer.Option(help="expected, or contrast with an empty explanation.")
    ] = "expected",
    sample: Annotated[
        int | None, typer.Option(metavar="N", help="Only N of the neurons, drawn at random.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    where: Annotated[
        str | None,
        typer.Option(metavar="CONDITION", help="Only neurons such as 'lookup_score < 0.3'."),
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, help="Requests in flight at a server at once.")
    ] = 64,
    requests_per_minute: Annotated[
        int | None, typer.Option(metavar="N", help="A server's limit on requests.")
    ] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(metavar="N", help="A server's limit on tokens.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that a request may take.")] = 120.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be asked and cost; send nothing.")
    ] = False,
    max_cost: Annotated[
        float | None, typer.Option(metavar="USD", help="Stop before it costs more.")
    ] = None,
    max_requests: Annotated[
        int | None, typer.Option(metavar="N", help="Stop before more are sent.")
    ] = None,
    price: Annotated[
        str | None,
        typer.Option(metavar="IN,OUT", help="US dollars a million tokens, of the explainer."),
    ] = None,
    simulator_price: Annotated[
        str | None,
        typer.Option(metavar="IN,OUT", help="Of the simulator; the same if that is the same."),
    ] = None,
    batch: Annotated[
        bool, typer.Option("--batch", help="Through the server's batch API: cheaper, slower.")
    ] = False,
    batch_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Only write the requests, for an offline engine; then ingest."
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ask again for what is stored.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask before a large job.")] = False,
    as_json: AsJson = False,
) -> None:
    """Explain neurons and score the explanations on excerpts held out from them.

    By lookup all neurons are explained at once, whichever are named; those named are shown.
    What is answered is stored at once: the same command, run again, goes on where it stopped.
    """
    from fastexplain.run import open_run
    from fastexplain.selection import select_neurons

    opened = open_run(run)
    chosen = select_neurons(opened, neurons or [], sample=sample, seed=seed, where=where)
    outcome = None
    if explainer == "lookup":
        given = {
            "--simulator": simulator, "--base-url": base_url, "--local": local,
            "--simulator-url": simulator_url, "--simulator-local": simulator_local,
            "--simulation": simulation, "--dry-run": dry_run, "--max-cost": max_cost,
            "--max-requests": max_requests, "--price": price, "--batch": batch,
            "--batch-file": batch_file,
        }  # fmt: skip
        for name, value in given.items():
            if value:
                raise UsageError(f"{name} is for language models; name one with --explainer MODEL")
        from fastexplain import jobs

        jobs.explain_by_lookup(opened, fresh=fresh)
    else:
        from fastexplain import asking
        from fastexplain.llm.prices import parse_price

        if not chosen:
            raise UsageError(
                f"name the neurons that {explainer} shall explain, such as 5:131, 5:* or all"
            )
        _exclude({"--local": local, "--base-url": base_url})
        _exclude({"--simulator-local": simulator_local, "--simulator-url": simulator_url})
        _exclude({"--batch": batch, "--batch-file": batch_file, "--dry-run": dry_run})
        explaining = asking.Model(
            explainer, base_url, local, None if price is None else parse_price(price)
        )
        simulating = asking.simulator_model(
            explaining,
            simulator,
            base_url=simulator_url,
            local=simulator_local,
            price=None if simulator_price is None else parse_price(simulator_price),
        )
        settings = asking.Settings(
            explaining,
            simulating,
            simulation,
            readout,
            {
                "concurrency": concurrency,
                "requests_per_minute": requests_per_minute,
                "tokens_per_minute": tokens_per_minute,
                "timeout": timeout,
            },
            fresh=fresh,
            max_cost=max_cost,
            max_requests=max_requests,
        )
        if dry_run:
            _print_estimate(asking.rehearse(opened, chosen, settings), as_json)
            return
        everything = "all" in (neurons or []) and sample is None and where is None
        if not yes and (everything or len(chosen) > _UNASKED):
            _confirm(asking.rehearse(opened, chosen, settings), len(chosen))
        if batch or batch_file:
            from fastexplain.asking_batches import explain_in_batches

            outcome = explain_in_batches(opened, chosen, settings, batch_file)
        else:
            outcome = asking.explain_by_model(opened, chosen, settings)
        if outcome.finished and not outcome.explained:
            raise LLMError(f"{explainer} explained none of the {len(chosen)} neurons; see above")
    method = "lookup" if explainer == "lookup" else "llm"
    with opened.database() as database:
        best = not chosen or (len(chosen) > _SHOWN and not as_json)
        if best:
            rows = database.best(10, method, model=explainer)
        else:
            rows = [
                row
                for neuron in chosen
                for row in database.explanations(neuron)
                if row.method == method and row.model == explainer
            ]
    if as_json:
        _print_explanations(rows)
    elif rows:
        from fastexplain.display import explanations_table

        out.print(explanations_table(rows, "The best of them" if best else None))
    if outcome is not None and outcome.stopped is not None:
        raise outcome.stopped


@app.command()
def ingest(
    run: RunPath,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="What an offline engine wrote of a batch file.")
    ],
    price: Annotated[
        str | None, typer.Option(metavar="IN,OUT", help="US dollars a million tokens.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take the answers to a file that `explain --batch-file` wrote; then run that again."""
    from fastexplain.asking_batches import take_answers
    from fastexplain.llm.prices import parse_price
    from fastexplain.run import open_run

    found = take_answers(open_run(run), file, None if price is None else parse_price(price))
    if as_json:
        _print_json(found._asdict())
    else:
        out.print(found.line(), markup=False, soft_wrap=True)


@app.command()
def cost(run: RunPath, as_json: AsJson = False) -> None:
    """Show what a run's requests came to: tokens and cost, by command and model."""
    from fastexplain.cost_table import ledger_data, ledger_table
    from fastexplain.responses import Responses
    from fastexplain.run import open_run

    with open_run(run).database(read_only=True) as database:
        rows = Responses(database).ledger()
    if as_json:
        _print_json(ledger_data(rows))
    elif rows:
        out.print(ledger_table(rows))
    else:
        out.print("No language model was asked yet.")


@app.command()
def show(
    run: RunPath,
    neuron: Annotated[str, typer.Argument(metavar="NEURON", help="Such as 5:131.")],
    count: Annotated[int, typer.Option(min=1, help="Exemplars of each kind.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Show a neuron: its explanations, its excerpts, and the true beside the simulated."""
    from fastexplain.run import open_run
    from fastexplain.show import neuron_data, print_neuron

    opened = open_run(run)
    record = opened.neuron(neuron)
    if as_json:
        _print_json(neuron_data(opened, record, count))
    else:
        print_neuron(out, opened, record, count)


@app.command()
def top(
    run: RunPath,
    limit: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    layer: Annotated[int | None, typer.Option(help="Of this layer alone.")] = None,
    method: Annotated[
        str | None, typer.Option(help="lookup or llm, the language models; both if left out.")
    ] = None,
    by: Annotated[str, typer.Option(help="top_and_random, random_only or top_only.")] = (
        "top_and_random"
    ),
    as_json: AsJson = False,
) -> None:
    """Show the neurons with the best-scored explanations."""
    from fastexplain.display import explanations_table
    from fastexplain.run import open_run

    if method not in (None, "lookup", "llm"):
        raise UsageError(f"there is no method '{method}'; choose lookup or llm")
    opened = open_run(run)
    if layer is not None:
        opened.width(layer)  # says which there are
    with opened.database(read_only=True) as database:
        rows = database.best(limit, method, by, layer)
    if as_json:
        _print_explanations(rows)
    elif rows:
        out.print(explanations_table(rows))
    else:
        out.print(f"Nothing is explained yet; run: fastexplain explain {run}", markup=False)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show what this machine has, and which path will be used on it."""
    from fastexplain.doctor import examine

    facts = examine()
    if as_json:
        _print_json(facts)
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
    from fastexplain import jobs
    from fastexplain.bench_table import bench_table

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
        _print_json(result)


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
    from fastexplain.demo import run_demo

    result = run_demo(run, excerpts=excerpts, neurons=neurons, show=not as_json)
    if as_json:
        _print_json(result)


def _exclude(options: dict[str, object]) -> None:
    """Raise UsageError where more than one of these options was given."""
    given = [name for name, value in options.items() if value]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other")


def _print_estimate(estimate: Any, as_json: bool) -> None:
    from fastexplain.cost_table import estimate_data, estimate_table

    if as_json:
        _print_json(estimate_data(estimate))
    else:
        out.print(estimate_table(estimate))


def _confirm(estimate: Any, neurons: int) -> None:
    """Have a large job confirmed, with what it will ask and cost."""
    from fastexplain.cost_table import estimate_table
    from fastexplain.terminal import messages

    messages.print(estimate_table(estimate))
    if not sys.stdin.isatty():
        raise UsageError(f"{neurons:,} neurons are many; add --yes if that is what you want")
    if not typer.confirm(f"Explain {neurons:,} neurons?", err=True):
        raise typer.Exit(1)


def _print_explanations(rows: list[Any]) -> None:
    from fastexplain.display import explanation_data

    _print_json({"explanations": [explanation_data(row) for row in rows]})


def _print_json(data: dict[str, Any]) -> None:
    print(json.dumps(data, allow_nan=False))
