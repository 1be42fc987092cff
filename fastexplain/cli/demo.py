"""The demo: the whole method on the embedded subject and the built-in corpus."""

from __future__ import annotations

from math import hypot, isnan
from pathlib import Path
from statistics import fmean
from typing import Any

from fastexplain.cli import jobs, requests, run_jobs
from fastexplain.cli.tables import explanations_table, score_text
from fastexplain.cli.terminal import out, print_line
from fastexplain.errors import RunError, UsageError
from fastexplain.explainers.baselines import SPLITS, neuron_baselines
from fastexplain.pipeline.models import Model, Settings
from fastexplain.report.entries import whole_words
from fastexplain.report.names import name_of
from fastexplain.report.neuron import explanation_data
from fastexplain.report.plots import check_matplotlib
from fastexplain.results import CORRELATION, LIST, StoredExplanation
from fastexplain.run.directory import Run, open_run
from fastexplain.run.writing import check_free, is_run

_SHOWN = ("mismatched", "token", "position")  # of the baselines, beside the headline


def run_demo(run: Path, *, excerpts: int, neurons: int, show: bool) -> dict[str, Any]:
    """Sweep SmolLM2, explain all neurons by lookup and a few by SmolLM2; returns the results.

    Args:
        run: directory; a finished run in it is continued.
        excerpts: of the built-in corpus.
        neurons: how many the language model explains.
        show: print a table.
    """
    if is_run(run):
        opened = open_run(run)
        name, swept = opened.manifest["subject"]["name"], opened.manifest["sweep"]["excerpts"]
        if (name, swept) != ("smollm2", excerpts):
            raise RunError(
                f"{run} holds a run of {name} over {swept} excerpts, not this demo's; "
                "choose another directory with --out"
            )
        print_line(f"Continuing with the run in {run}.")
    else:
        check_free(run)
        opened = jobs.sweep_corpus(jobs.load("smollm2"), ["stdlib"], run, excerpts=excerpts)
    jobs.report_sweep(opened)
    run_jobs.explain_by_lookup(opened)
    with opened.database() as database:
        means = database.layer_means("lookup")
        some = min(neurons, len(means))  # of the layers, spread evenly
        layers = [means[place * len(means) // some].layer for place in range(some)]
        chosen = [row for layer in layers for row in database.best(1, "lookup", layer=layer)]
    if chosen:
        print_line(
            f"Now a language model explains {len(chosen)} of them: SmolLM2 itself, which also "
            "simulates."
        )
        names = [row.neuron for row in chosen]
        smollm2 = Model("smollm2", local=True)
        settings = Settings(smollm2, smollm2, scorers=[CORRELATION, "mismatched"])
        requests.explain_by_model(opened, names, settings)
    with opened.database() as database:
        texts = {mean.split: mean.value for mean in database.means(LIST) if not mean.site}
        rows = [
            row
            for best in chosen
            for row in database.explanations(best.neuron)
            if row.model in ("lookup", "rule", "smollm2")
        ]
    beside = _beside(opened, rows)
    figures = _report(opened)
    mean_score = _mean([mean.top_and_random for mean in means])
    mean_random = _mean([mean.random_only for mean in means])
    if show:
        title = "The best neuron by lookup in each of some layers"
        out.print(explanations_table(rows, title, beside, texts=whole_words(opened, rows)))
        example = chosen[-1].neuron if chosen else "5:131"
        lines = (
            f"All {sum(mean.scored for mean in means):,} neurons have a lookup explanation; mean "
            f"held-out correlation {score_text(mean_score)} on top and random excerpts, "
            f"{score_text(mean_random)} on random ones; of their texts alone "
            f"{score_text(texts.get('top_and_random'))} and "
            f"{score_text(texts.get('random_only'))}.",
            "smollm2, with 135 million parameters, is a weak explainer and a weaker simulator: its "
            "scores show that the path works, not what it can do. A larger model, on any "
            "OpenAI-compatible server:",
        )
        for line in (*_beside_means(figures), *lines):
            out.print(line, markup=False)
        for line in (
            f"explain {run} {example} --explainer MODEL --base-url http://localhost:8000/v1",
            f"show {run} {example}",
            f"top {run}",
            f"view {run}",
        ):
            out.print(f"  fastexplain {line}", markup=False, soft_wrap=True)
    return {
        "run": str(run),
        "sweep": opened.manifest["sweep"],
        "lookup_mean_top_and_random": mean_score,
        "lookup_mean_random_only": mean_random,
        "text_mean_top_and_random": texts.get("top_and_random"),
        "text_mean_random_only": texts.get("random_only"),
        "layers": [mean._asdict() for mean in means],
        "explanations": [explanation_data(row) | {"baselines": beside[row.id]} for row in rows],
    }


def _beside(run: Run, rows: list[StoredExplanation]) -> dict[int, dict[str, float | None]]:
    """Baselines over top and random excerpts, by the id of the explanation and by name.

    By a language model the mismatched explanation is another one's by that model.
    """
    place = SPLITS.index("top_and_random")
    found: dict[int, dict[str, float | None]] = {}
    for neuron in dict.fromkeys(row.neuron for row in rows):
        own = neuron_baselines(run, neuron)
        values = {name: float(own[name].values[place, 0]) for name in _SHOWN if name in own}
        for row in rows:
            if row.neuron == neuron:
                found[row.id] = {n: None if isnan(v) else v for n, v in values.items()}
    with run.database(read_only=True) as database:
        for row in rows:
            for score in database.scores(row.id):
                if (score.scorer, score.measured.split) == ("mismatched", "top_and_random"):
                    found[row.id]["mismatched"] = score.measured.value
    return found


def _report(run: Run) -> dict[str, Any] | None:
    """Write the run's report into it; None, with a line that says so, without matplotlib."""
    try:
        check_matplotlib()
    except UsageError as error:
        print_line(f"No report is written: {error}.")
        return None
    figures, [page, *_] = run_jobs.write_report(run, run.path / "report")
    print_line(f"All scores beside their baselines, by layer: {page}")
    return figures


def _beside_means(figures: dict[str, Any] | None) -> list[str]:
    """A line of what the baselines' means are, with their errors."""
    if figures is None:
        return []
    means = [
        f"{name_of(each)} {each['all']['mean']:.2f} ± {error:.2f}"
        for each in figures["measures"]
        if each["method"] in ("lookup", "baseline")
        and each["judge"] != LIST  # whose means stand below
        and (each["split"], each["measure"]) == ("top_and_random", CORRELATION)
        and each["all"]["mean"] is not None
        for error in [hypot(each["all"]["error_neurons"] or 0, each["all"]["error_excerpts"] or 0)]
    ]
    return [f"Means over all neurons, on top and random excerpts: {'; '.join(means)}."]


def _mean(values: list[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return fmean(defined) if defined else None
