"""fastexplain: automated explanations for every MLP neuron of a language model.

The names below are the library; they load on first use, so that `import fastexplain` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastexplain.corpus import Corpus
    from fastexplain.errors import FastexplainError
    from fastexplain.records import Exemplar, NeuronId, NeuronRecord, Statistics
    from fastexplain.run import Run, open_run
    from fastexplain.subject import Subject, load_subject
    from fastexplain.sweep import sweep

__version__ = "0.1.0"

_HOMES = {
    "Corpus": "corpus",
    "Exemplar": "records",
    "FastexplainError": "errors",
    "NeuronId": "records",
    "NeuronRecord": "records",
    "Run": "run",
    "Statistics": "records",
    "Subject": "subject",
    "load_subject": "subject",
    "open_run": "run",
    "sweep": "sweep",
}

__all__ = [
    "Corpus",
    "Exemplar",
    "FastexplainError",
    "NeuronId",
    "NeuronRecord",
    "Run",
    "Statistics",
    "Subject",
    "load_subject",
    "open_run",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastexplain' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"fastexplain.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
