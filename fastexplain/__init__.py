"""fastexplain: automated explanations for every MLP neuron of a language model.

The names below are the library; they load on first use, so that `import fastexplain` is instant.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastexplain.version import __version__

if TYPE_CHECKING:
    from fastexplain.errors import FastexplainError
    from fastexplain.finding.results import Hit
    from fastexplain.finding.search import find
    from fastexplain.ledger.prices import Price
    from fastexplain.pipeline.ablating import Ablated, ablate, steer
    from fastexplain.pipeline.activating import Activated, activate
    from fastexplain.pipeline.api import Explained, explain, explain_async
    from fastexplain.pipeline.models import Model
    from fastexplain.pipeline.scoring import Scored, score
    from fastexplain.pipeline.weighing import weights
    from fastexplain.puzzles.api import solve_puzzles, solve_puzzles_async, tune_simulator
    from fastexplain.puzzles.solving import Solved
    from fastexplain.records import Exemplar, NeuronId, NeuronRecord, SignClass, Statistics
    from fastexplain.run.directory import Run, open_run
    from fastexplain.run.table import NeuronTable
    from fastexplain.subject.activations import Activations
    from fastexplain.subject.model import Subject, load_subject
    from fastexplain.sweeping.loop import sweep
    from fastexplain.text.corpus import Corpus

_HOMES = {
    "Ablated": "pipeline.ablating",
    "Activated": "pipeline.activating",
    "Activations": "subject.activations",
    "Corpus": "text.corpus",
    "Exemplar": "records",
    "Explained": "pipeline.api",
    "FastexplainError": "errors",
    "Hit": "finding.results",
    "Model": "pipeline.models",
    "NeuronId": "records",
    "NeuronRecord": "records",
    "NeuronTable": "run.table",
    "Price": "ledger.prices",
    "Run": "run.directory",
    "Scored": "pipeline.scoring",
    "SignClass": "records",
    "Solved": "puzzles.solving",
    "Statistics": "records",
    "Subject": "subject.model",
    "ablate": "pipeline.ablating",
    "activate": "pipeline.activating",
    "explain": "pipeline.api",
    "explain_async": "pipeline.api",
    "find": "finding.search",
    "load_subject": "subject.model",
    "open_run": "run.directory",
    "score": "pipeline.scoring",
    "solve_puzzles": "puzzles.api",
    "solve_puzzles_async": "puzzles.api",
    "steer": "pipeline.ablating",
    "sweep": "sweeping.loop",
    "tune_simulator": "puzzles.api",
    "weights": "pipeline.weighing",
}

__all__ = [
    "Ablated",
    "Activated",
    "Activations",
    "Corpus",
    "Exemplar",
    "Explained",
    "FastexplainError",
    "Hit",
    "Model",
    "NeuronId",
    "NeuronRecord",
    "NeuronTable",
    "Price",
    "Run",
    "Scored",
    "SignClass",
    "Solved",
    "Statistics",
    "Subject",
    "__version__",
    "ablate",
    "activate",
    "explain",
    "explain_async",
    "find",
    "load_subject",
    "open_run",
    "score",
    "solve_puzzles",
    "solve_puzzles_async",
    "steer",
    "sweep",
    "tune_simulator",
    "weights",
]


def _hide_kernels() -> None:
    """Keep transformers, which probes for a package named `kernels`, from importing ours.

    In the repository's root, where ours lies at the top level, it would.
    """
    spec = importlib.util.find_spec("kernels")
    ours = Path(__file__).resolve().parent.parent / "kernels" / "__init__.py"
    if spec is not None and spec.origin is not None and Path(spec.origin).resolve() == ours:
        sys.modules["kernels"] = None  # type: ignore[assignment]


_hide_kernels()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastexplain' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"fastexplain.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
