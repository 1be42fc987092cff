"""What an exported site has of a run: the data behind the same paths as the viewer's server has."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fastexplain.errors import UsageError
from fastexplain.finding.search import best_explanation, headline
from fastexplain.records import NeuronId
from fastexplain.report.baselines import whole_columns
from fastexplain.report.columns import score_columns, statistic_columns
from fastexplain.report.maps import baseline_maps, is_statistic, maps_data, packed, score_map
from fastexplain.report.overview import overview_data
from fastexplain.report.page import page_data
from fastexplain.report.ruled import RuledExcerpts
from fastexplain.report.run import run_data
from fastexplain.run.database import Database
from fastexplain.run.directory import Run


def is_whole(run: Run, neurons: Sequence[NeuronId]) -> bool:
    """Whether distinct neurons are all that a run has."""
    return len(neurons) == sum(site.units for site in run.sites.values())


def run_parts(run: Run, *, whole: bool) -> Iterator[tuple[str, Any]]:
    """Paths and data of what is one for the run.

    Args:
        whole: all neurons are exported; only then the overview has nothing that leads nowhere.
    """
    yield "run", run_data(run)
    if not whole:
        return
    statistics = statistic_columns(run)
    with run.database(read_only=True) as database:
        scores = score_columns(run, database)
        overview = overview_data(run, database, statistics, scores)
    yield "overview", overview
    # Those that no neuron has are left out: an empty picture takes as much room as a full one.
    shown = {each["key"] for each in overview["distributions"]}
    found = maps_data()
    maps = [each for each in found["maps"] if each["key"] in shown]
    yield "maps", found | {"maps": maps + baseline_maps(run)}
    for key in sorted(shown):
        column = statistics[key] if is_statistic(key) else score_map(scores, key)
        yield f"map/{key}", base64.b64encode(packed(column)).decode()
    for key, column in whole_columns(run).items():
        yield f"map/{key}", base64.b64encode(packed(column)).decode()


class Neighbours(NamedTuple):
    """The neurons beside one among those that are exported; None at the ends."""

    before: NeuronId | None = None
    after: NeuronId | None = None


ALONE = Neighbours()


def neuron_part(
    run: Run,
    neuron: NeuronId,
    rules: RuledExcerpts,
    baselines: Mapping[str, Any],
    beside: Neighbours = ALONE,
    database: Database | None = None,
) -> tuple[str, Any]:
    """The path and the data of one neuron's page, with what a server makes when it is asked for.

    Args:
        rules: of the run.
        baselines: the neuron's, as in `report.baselines.baselines_data`.
        beside: the neurons that its page leads to.
        database: the run's, where it is open already.

    Raises:
        UsageError: the run has no such neuron.
        RunError: the run can't be read.
    """
    data = page_data(run, neuron, database)
    for each in data["simulations"]:
        # Of a rule whose terms can't be told from others there is none.
        with contextlib.suppress(UsageError):
            each["values"] = each["values"] or {
                excerpt: values
                for excerpt, values in rules.data(str(neuron), each["explanation"])[
                    "values"
                ].items()
                if excerpt in data["excerpts"]
            }
    names = {"previous": beside.before, "next": beside.after}
    given = {name: own and str(own) for name, own in names.items()}
    return f"neuron/{neuron}", data | given | {"baselines": baselines}


def texts_part(run: Run, neurons: Sequence[NeuronId]) -> list[list[Any] | None]:
    """Method, model, text and headline score of neurons' best explanations; None without one.

    Raises RunError if the run's database is damaged.
    """
    found: list[list[Any] | None] = []
    with run.database(read_only=True) as database:
        for neuron in neurons:
            row = best_explanation(database.explanations(neuron))
            found.append(None if row is None else [row.method, row.model, row.text, headline(row)])
    return found
