"""The commands that run the subject with neurons replaced: ablate and steer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from fastexplain.cli.common import Anew, AsJson, Device, RunPath, Seed, SubjectPlace, Trust, Where
from fastexplain.cli.terminal import out, print_json, print_line, progress, visible

if TYPE_CHECKING:
    from fastexplain.pipeline.ablating import Ablated
    from fastexplain.progress import Report
    from fastexplain.records import NeuronId
    from fastexplain.results import Steering

# Of more neurons than these only what they have in common is shown.
_SHOWN = 20
_STEERED_TOKENS = 5

Neurons = Annotated[
    list[str] | None,
    typer.Argument(metavar="NEURON", help="Such as 5:131, 5:* for a layer, all, or @FILE."),
]
Sample = Annotated[
    int | None, typer.Option(metavar="N", help="Take N of the neurons, drawn at random.")
]
Precision = Annotated[
    str, typer.Option(help="float32, or a coarser one that tells fewer changes from rounding.")
]


def ablate(
    run: RunPath,
    neurons: Neurons = None,
    explainer: Annotated[
        str, typer.Option(metavar="MODEL", help="Whose explanations: lookup, or a model's name.")
    ] = "lookup",
    sample: Sample = None,
    seed: Seed = 0,
    where: Where = None,
    subject: SubjectPlace = None,
    device: Device = None,
    dtype: Precision = "float32",
    fresh: Anew = False,
    trust_remote_code: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Score explanations by their effect on the subject.

    A neuron's activations are replaced by the simulated ones. 1 is for a simulation that leaves the
    subject's predictions as they are, 0 for one that does what the neuron's mean does in its place.
    Explanations by a model need simulations of the calibration split too: explain with --scorers
    correlation,ablation.
    """
    from fastexplain.cli import run_jobs
    from fastexplain.pipeline import ablating
    from fastexplain.run.directory import open_run
    from fastexplain.run.selection import select_neurons

    opened = open_run(run)
    chosen = select_neurons(opened, neurons or [], sample=sample, seed=seed, where=where)
    if explainer == "lookup" and chosen:
        run_jobs.explain_by_lookup(opened)
    with _stored(chosen, "Ablating") as report:
        found = ablating.ablate(
            opened, chosen, explainer=explainer, subject=subject, device=device, dtype=dtype,
            fresh=fresh, trust_remote_code=trust_remote_code, progress=report,
        )  # fmt: skip
    if found.lacking:
        print_line(
            f"{len(found.lacking):,} of {len(chosen):,} neurons have no explanation by {explainer} "
            f"that was simulated, such as {found.lacking[0]}"
        )
    if as_json:
        print_json(_ablated_data(found))
        return
    if len(found.rows) <= _SHOWN:
        out.print(_scores_table(found))
    out.print(_comparison_table(found))
    out.print("Bills et al. 2023, of mean ablation at a correlation of 0.9: 0.6, random only 0.3.")


def steer(
    run: RunPath,
    neurons: Neurons = None,
    sample: Sample = None,
    seed: Seed = 0,
    where: Where = None,
    subject: SubjectPlace = None,
    device: Device = None,
    dtype: Precision = "float32",
    fresh: Anew = False,
    trust_remote_code: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Show the tokens that become likelier when neurons are raised.

    Each is raised to tenths of its largest activation on random excerpts. What is found is stored
    and in show --json too.
    """
    from fastexplain.pipeline import ablating
    from fastexplain.report.neuron import steering_data
    from fastexplain.run.directory import open_run
    from fastexplain.run.selection import select_neurons

    opened = open_run(run)
    chosen = select_neurons(opened, neurons or [], sample=sample, seed=seed, where=where)
    with _stored(chosen, "Steering") as report:
        found = ablating.steer(
            opened, chosen, subject=subject, device=device, dtype=dtype, fresh=fresh,
            trust_remote_code=trust_remote_code, progress=report,
        )  # fmt: skip
    if as_json:
        print_json({"steering": {str(n): steering_data(steps) for n, steps in found.items()}})
    else:
        out.print(_steering_table(found))


@contextlib.contextmanager
def _stored(neurons: list[NeuronId], title: str) -> Iterator[Report]:
    """Show progress, and say at Ctrl-C that nothing is lost."""
    with progress(title, len(neurons)) as advance:
        try:
            yield advance
        except KeyboardInterrupt:
            print_line("What is done so far is stored; the same command continues from there.")
            raise


def _ablated_data(found: Ablated) -> dict[str, Any]:
    return {
        "explainer": found.explainer,
        "neurons": [
            {
                "neuron": str(row.explanation.neuron),
                "id": row.explanation.id,
                "correlation": row.correlation,
                "scores": [measured._asdict() for measured in row.measured],
            }
            for row in found.rows
        ],
        "lacking": [str(neuron) for neuron in found.lacking],
        "comparison": found.comparison(),
        "paper": {"correlation": 0.9, "top_and_random": 0.6, "random_only": 0.3},
    }


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


def _scores_table(found: Ablated) -> Table:
    table = Table(header_style="bold")
    for name in ("neuron", "correlation", "ablation", "95%", "random only", "resampling"):
        table.add_column(name, justify="left" if name == "neuron" else "right")
    for row in found.rows:
        [main] = [m for m in row.measured if (m.split, m.measure) == ("top_and_random", "ablation")]
        interval = "" if main.low is None else f"{main.low:.2f} to {main.high:.2f}"
        table.add_row(
            str(row.explanation.neuron),
            _number(row.correlation),
            _number(main.value),
            interval,
            _number(row.value("random_only")),
            _number(row.value("top_and_random", "resampling")),
        )
    return table


def _comparison_table(found: Ablated) -> Table:
    table = Table(title="Ablation scores and correlations", title_justify="left")
    names = {
        "neurons": "neurons", "mean": "mean ablation score", "median": "median",
        "pearson": "correlates with correlation", "spearman": "by ranks",
        "near_0.9": "neurons near a correlation of 0.9", "mean_near_0.9": "their mean",
    }  # fmt: skip
    for name in ("over", *names.values()):
        table.add_column(name, justify="left" if name == "over" else "right")
    for split, own in found.comparison().items():
        shown = [
            f"{own[n]:,}" if isinstance(own[n], int) else _number(own[n]) for n in names
        ]  # fmt: skip
        table.add_row(split.replace("_", " "), *shown)
    return table


def _steering_table(found: dict[NeuronId, list[Steering]]) -> Table:
    table = Table(header_style="bold")
    for name in ("neuron", "raised to", "divergence", "tokens that rise most"):
        table.add_column(name, justify="left" if name in ("neuron", "tokens that rise most")
                         else "right")  # fmt: skip
    for neuron, steps in found.items():
        if not steps:
            table.add_row(str(neuron), "", "", "never above 0")
        for step in steps:
            tokens = ", ".join(
                f"{each.token!r} +{each.rise:.1%}" for each in step.tokens[:_STEERED_TOKENS]
            )
            table.add_row(
                str(neuron), f"{step.activation:.3g}", f"{step.divergence:.2g}",
                Text(visible(tokens)),
            )  # fmt: skip
    return table
