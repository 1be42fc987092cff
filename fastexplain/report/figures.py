"""A run's scores in figures: every measure that is stored, and the baselines, by layer.

The baselines are computed for the report, not stored: for 46,080 neurons they would be three
quarters of a million rows beside the 138,240 of their scores, and are made in seconds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastexplain.errors import RunError
from fastexplain.explainers.baselines import SPLITS, Baseline, layer_baselines
from fastexplain.progress import Report
from fastexplain.report.curve import curve_figures
from fastexplain.report.summaries import WIDTH, baseline_summary, summary
from fastexplain.results import CORRELATION, LIST
from fastexplain.run.database import Database
from fastexplain.run.directory import Run

PUBLISHED = {
    "subject": "GPT-2 XL",
    "source": "Bills et al. 2023, digitised from its plots",
    "of": 48,
    "layers": [0, 1, 5, 10, 20, 30, 40, 47],
    "top_and_random": {
        "token lookup table": [0.90, 0.91, 0.78, 0.64, 0.46, 0.48, 0.39, 0.41],
        "GPT-4": [0.38, 0.42, 0.26, 0.16, 0.13, 0.12, 0.09, 0.065],
    },
    "random_only": {
        "token lookup table": [0.87, 0.80, 0.63, 0.45, 0.35, 0.36, 0.31, 0.38],
        "GPT-4": [0.09, 0.05, 0.04, 0.04, 0.04, 0.04, 0.03, 0.02],
    },
}
"""Published correlations of another subject, by some of its layers, to stand beside."""


class Key(NamedTuple):
    """What a column of scores is: who explained, who scored, and what was measured.

    Attributes:
        method, model, version: of the explanations.
        scorer, judge, judge_version, split, measure: as in `records.Score`.
    """

    method: str
    model: str
    version: str
    scorer: str
    judge: str
    judge_version: str
    split: str
    measure: str


def steps(run: Run) -> int:
    """How many steps `run_figures` takes: each layer's baselines and, with tables, its curves."""
    return len(run.layers) * (2 if len(run.tables.tokens) else 1)


def run_figures(run: Run, progress: Report = lambda done: None) -> dict[str, Any]:
    """The figures of a report, as `--json` gives them.

    Args:
        progress: called with the number of steps done, of `steps(run)`.

    Returns:
        `run`, `subject`, `neurons`, `tokens`, `excerpts`, `published`, and `measures`: a list, each
        with the parts of `Key`, `stored` (or else it is a baseline), `all` (a summary over all
        neurons, see `summaries.summary`) and `layers` (the same with `layer`, of each that has
        any); and `lists`, see `curve.curve_figures`.

    Raises:
        RunError: there are neither scores nor tables, or a file is damaged.
    """
    stored: dict[Key, dict[int, np.ndarray]] = {}
    with run.database(read_only=True) as database:
        for site in run.sites.values():
            rows = database.site_values(site.name)
            with database.understood():
                for key, own in _columns(rows, site.units).items():
                    of_layer = stored.setdefault(key, {})
                    before = of_layer.get(site.layer)
                    of_layer[site.layer] = own if before is None else np.hstack([before, own])
        errors = {key: _stored_errors(database, key) for key in stored}
    if not stored and not len(run.tables.tokens):
        raise RunError(
            f"{run.path} has nothing to report: no explanation is scored, and there are no tables; "
            f"run: fastexplain explain {run.path}"
        )
    baselines: dict[str, dict[int, Baseline]] = {}
    for done, (layer, found) in enumerate(layer_baselines(run), start=1):
        for name, baseline in found.items():
            baselines.setdefault(name, {})[layer] = baseline
        progress(done)
    lookups = baselines.get("lookup", {})
    if any(key.method == "lookup" for key in stored):  # then it is among them
        baselines.pop("lookup", None)
    measures = [
        _stored(key, columns, lookups, errors[key]) for key, columns in sorted(stored.items())
    ]
    measures += [
        _baseline(name, split, found) for name, found in baselines.items() for split in SPLITS
    ]
    sweep = run.manifest["sweep"]
    return {
        "run": str(run.path),
        "subject": run.manifest["subject"]["name"],
        "neurons": sweep["neurons"],
        "tokens": sweep["tokens"],
        "excerpts": sweep["excerpts"],
        "depth": max((site.layer for site in run.sites.values()), default=0) + 1,
        "published": PUBLISHED,
        "measures": measures,
        "lists": curve_figures(run, lambda done: progress(len(run.layers) + done)),
    }


def _stored_errors(database: Database, key: Key) -> dict[tuple[str, int], float]:
    """The errors over excerpts of stored means of a measure, by site and how many these are over.

    There are some of lookups, their texts and rules, under the name of what predicts.
    """
    if key.model != key.method or key.judge not in (key.method, LIST):
        return {}
    return {
        (mean.site, mean.neurons): (mean.high - mean.low) / WIDTH
        for mean in database.means(key.judge, key.scorer)
        if (mean.split, mean.measure) == (key.split, key.measure)
        if mean.low is not None and mean.high is not None
    }


def _columns(rows: list[Any], units: int) -> dict[Key, np.ndarray]:
    """Rows of `Reading.site_values` by key: value and width of the interval, float64 `[2, N]`.

    N is the number of units that have such a row; of a unit's rows the last one counts.
    """
    found: dict[Key, dict[int, tuple[float, float]]] = {}
    for unit, value, low, high, *key in rows:
        if not 0 <= unit < units:
            raise IndexError(f"neuron {unit} of {units}")
        width = np.nan if low is None or high is None else float(high) - float(low)
        own = found.setdefault(Key(*key), {})
        own[unit] = (np.nan if value is None else float(value), width)
    return {key: np.array([own[unit] for unit in sorted(own)]).T for key, own in found.items()}


def _stored(
    key: Key,
    columns: dict[int, np.ndarray],
    lookups: dict[int, Baseline],
    errors: dict[tuple[str, int], float],
) -> dict[str, Any]:
    """A stored measure; the lookup's own correlations have the errors of its predictions.

    Others have those of their means, where such means are stored.
    """
    is_table = ("lookup", "lookup", CORRELATION, CORRELATION)
    is_lookup = (key.method, key.judge, key.scorer, key.measure) == is_table
    known = lookups if is_lookup and key.split in SPLITS else {}

    def of(own: np.ndarray, baseline: Baseline | None) -> dict[str, Any]:
        found = summary(*own)
        if baseline is not None and baseline.values.shape[1] == own.shape[1]:
            more = baseline_summary(baseline, SPLITS.index(key.split))
            found |= {name: more[name] for name in ("error_excerpts", "reliability")}
        return found

    layers = [{"layer": n} | of(own, known.get(n)) for n, own in sorted(columns.items())]
    every = of(np.hstack([columns[n] for n in sorted(columns)]), _joined(known))
    for site, found in (("", every), *((str(each["layer"]), each) for each in layers)):
        # One over another number of neurons is of an earlier state of the run.
        if not known and (site, found["neurons"]) in errors:
            found["error_excerpts"] = errors[site, found["neurons"]]
    return key._asdict() | {"stored": True, "all": every, "layers": layers}


def _baseline(name: str, split: str, found: dict[int, Baseline]) -> dict[str, Any]:
    place = SPLITS.index(split)
    key = Key("baseline", name, "", CORRELATION, name, "", split, CORRELATION)
    every = _joined(found)
    assert every is not None  # a run has a layer
    return key._asdict() | {
        "stored": False,
        "all": baseline_summary(every, place),
        "layers": [{"layer": n} | baseline_summary(own, place) for n, own in found.items()],
    }


def _joined(found: dict[int, Baseline]) -> Baseline | None:
    """The baselines of several layers, which share the random excerpts, as one."""
    if not found:
        return None
    parts = list(found.values())
    values, without, halves = (
        np.concatenate([getattr(part, name) for part in parts], axis=-1)
        for name in ("values", "without", "halves")
    )
    return Baseline(values, without, halves, np.any([part.used for part in parts], axis=0))
