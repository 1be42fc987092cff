"""All neurons of a run as columns: their statistics, and the best score by each method."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastexplain.errors import UsageError
from fastexplain.run.signs import named_columns

if TYPE_CHECKING:
    from fastexplain.run.directory import Run

_METHODS = ("lookup", "model")  # have their columns in every table
_MEASURES = ("top_and_random", "random_only", "top_only")


@dataclass(frozen=True, eq=False, repr=False)
class NeuronTable:
    """One row a neuron, by site and index: of MLP neurons, by layer and index.

    Attributes:
        columns: by name, each `[neurons]`. `site` is text, `layer` and `index` are int32. The
            numbers of `Statistics` are float64. So are `METHOD_top_and_random`,
            `METHOD_random_only` and `METHOD_top_only` for each method of explanation, as in
            `lookup_top_and_random` and `model_top_and_random`: the scores that `Scores` describes,
            NaN where there is none or it is undefined. Where a neuron has several explanations by
            a method, or several simulators, they are those with the best `top_and_random`, and of
            equals the latest. Where the sweep kept sign classes, their `share`, `mean`, `mass` and
            `extreme` are columns too: see `run.signs.COLUMNS`.
    """

    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.columns["layer"])

    def __getitem__(self, name: str) -> np.ndarray:
        """A column. Raises UsageError for one that there is not."""
        if name not in self.columns:
            raise UsageError(f"there is no column '{name}'; there are: {', '.join(self.columns)}")
        return self.columns[name]

    def __repr__(self) -> str:
        return f"NeuronTable({len(self):,} neurons: {', '.join(self.columns)})"

    def to_pandas(self) -> Any:
        """A pandas DataFrame. Raises UsageError if pandas is not installed."""
        return _package("pandas").DataFrame(self.columns)

    def to_polars(self) -> Any:
        """A Polars DataFrame. Raises UsageError if Polars is not installed."""
        return _package("polars").DataFrame(self.columns)


def neuron_table(run: Run) -> NeuronTable:
    """The table of all neurons of a run; see `Run.table`."""
    sites = list(run.sites.values())
    units = [site.units for site in sites]
    columns = {
        "site": np.repeat([site.name for site in sites], units),
        "layer": np.repeat(np.array([site.layer for site in sites], np.int32), units),
        "index": np.concatenate([np.arange(count, dtype=np.int32) for count in units]),
    }
    statistics = [run.statistics(site.name) for site in sites]
    if run.has_signs:
        for site, own in zip(sites, statistics, strict=True):
            own |= named_columns(run, site.name)
    columns |= {name: np.concatenate([own[name] for own in statistics]) for name in statistics[0]}
    return NeuronTable(columns | _scores(run))


def _scores(run: Run) -> dict[str, np.ndarray]:
    """The columns of scores."""
    with run.database(read_only=True) as database:
        rows = database.correlations()
        with database.understood():
            return _columns(run, rows)


def _columns(run: Run, rows: list[Any]) -> dict[str, np.ndarray]:
    """The same, from `Database.correlations`; raises LookupError for a neuron of no run's site."""
    places_of, total = {}, 0
    for name, site in run.sites.items():
        places_of[name] = (total, site.units)
        total += site.units
    columns = {}
    for method in dict.fromkeys([*_METHODS, *sorted({row[0] for row in rows})]):
        own = [row[1:] for row in rows if row[0] == method]
        # Of a neuron's rows the last counts, which is the best.
        places = np.array([_place(*places_of[site], index) for site, index, *_ in own], np.int64)
        for number, name in enumerate(_MEASURES, start=2):
            column = np.full(total, np.nan)
            column[places] = np.array([row[number] for row in own], np.float64)  # None: NaN
            columns[f"{method}_{name}"] = column
    return columns


def _place(start: int, units: int, index: int) -> int:
    if not 0 <= index < units:
        raise IndexError(f"neuron {index} of {units}")
    return start + index


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"{name} is not installed; pip install 'fastexplain[{name}]'") from error
