"""The scorers by their names, as in `--scorers correlation,detection`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from fastexplain.errors import UsageError
from fastexplain.llm import Connection
from fastexplain.results import DOCUMENTS
from fastexplain.run.directory import Run

# Each names a module whose `make(run, connect)` makes the scorer, or `MODULE:FUNCTION`.
_MODULES = {
    "correlation": "fastexplain.scorers.correlation",
    "simulation": "fastexplain.scorers.simulation",
    "simulation-none": "fastexplain.scorers.simulation:make_uncalibrated",
    "simulation-isotonic": "fastexplain.scorers.simulation:make_isotonic",
    "simulation-percentile": "fastexplain.scorers.simulation:make_percentile",
    "corpus": "fastexplain.scorers.corpus",
    "ablation": "fastexplain.scorers.ablation",
    "mismatched": "fastexplain.scorers.mismatched",
    "empty": "fastexplain.scorers.empty",
    "detection": "fastexplain.scorers.detection",
    "fuzzing": "fastexplain.scorers.fuzzing",
    "intruder": "fastexplain.scorers.intruder",
}

# Those that ask a model about excerpts.
JUDGES = ("detection", "fuzzing", "intruder")

Connect = Callable[[str], Connection]
"""Gives a connection to the model that judges, of a purpose as the ledger names it.

Raises UsageError where the simulator is no language model.
"""


def make(names: Sequence[object], run: Run, connect: Connect) -> list[Any]:
    """The scorers of these names, each once; what is no name is a scorer of the caller's own.

    Args:
        run: whose explanations are scored.
        connect: to the model that judges, for those that ask one.

    Raises:
        UsageError: there is no scorer of that name, or it lacks the model that it asks.
    """
    made: list[Any] = []
    for name in dict.fromkeys(names):
        if not isinstance(name, str):
            made.append(name)
        else:
            check_names([name], run)
            module, _, function = _MODULES[name].partition(":")
            make_one = getattr(importlib.import_module(module), function or "make")
            made.append(make_one(run, connect))
    return made


def check_names(names: Sequence[object], run: Run) -> None:
    """Raise UsageError where there is no scorer of one of these names, or it is lookup's alone."""
    for name in names:
        if name == DOCUMENTS:
            raise UsageError(
                f"the scorer '{name}' is for lookup, by its tables; "
                f"run: fastexplain score --scorers {name} {run.path}"
            )
        if isinstance(name, str) and name not in _MODULES:
            known = ", ".join([*_MODULES, DOCUMENTS])
            raise UsageError(f"there is no scorer '{name}'; choose from {known}")
