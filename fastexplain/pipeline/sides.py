"""What explaining a neuron's bottom needs beside the record seen from there (`run/sides.py`).

Explanations of that side are stored by a method of their own, so that no score of one side is taken
for one of the other.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from fastexplain.errors import LLMError, UsageError
from fastexplain.explainers.evidence import RAISED, RunSource, Source
from fastexplain.pipeline.protocols import Explainer
from fastexplain.records import NeuronRecord
from fastexplain.results import BOTTOM, DOCUMENTS, TOP, Explanation, method_of, side_of
from fastexplain.run.directory import Run
from fastexplain.run.sides import check_side

if TYPE_CHECKING:
    from fastexplain.pipeline.models import Settings

ONE_SIDED = ("corpus", "ablation", "mismatched", DOCUMENTS)
"""Scorers that go by what a run has of the top alone: strata, means, tables, other explanations."""


class FromBelow:
    """An explainer that is given records of the bottom.

    Args:
        inner: explains.

    Attributes:
        method, model, version: see `pipeline.protocols.Explainer`.
    """

    def __init__(self, inner: Explainer) -> None:
        self.method = method_of(inner.method, BOTTOM)
        self.model, self.version = inner.model, inner.version
        self._inner = inner

    def explain(self, record: NeuronRecord) -> Explanation | Awaitable[Explanation]:
        """See `Explainer`. Raises LLMError where the neuron is never below 0."""
        if not any((each.activations[record.skip :] > 0).any() for each in record.top):
            raise LLMError("the neuron is below 0 on none of its bottom exemplars: nothing to say")
        return self._inner.explain(record)


class BottomSource(RunSource):
    """A run's weights from below; the tables know nothing of that side."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.has_entries = False

    def entries(self, record: NeuronRecord) -> list[dict[str, Any]]:
        return []

    def raised(self, record: NeuronRecord) -> list[str]:
        """What a neuron's output makes likelier where it is below 0: the ends change places."""
        found = self._run.weights(record.id)
        return [] if found is None else [token.token for token in found.output.least[:RAISED]]


def source_of(run: Run, side: str) -> Source:
    """What a prompt shows of this side's tables and weights."""
    return RunSource(run) if side == TOP else BottomSource(run)


def explainer_for(explainer: Any, side: str) -> Any:
    """The explainer of this side."""
    return explainer if side == TOP else FromBelow(explainer)


def check_settings(run: Run, settings: Settings) -> None:
    """Raise UsageError for what can't be done on this side."""
    if side_of(str(getattr(settings.explainer, "method", ""))) == BOTTOM:
        raise UsageError("methods that end in '_bottom' are of that `side`; name it otherwise")
    check_side(run, settings.side)
    if settings.side == TOP:
        return
    for option, given in (("revise", settings.revise), ("exemplars", settings.exemplars != TOP)):
        if given:
            raise UsageError(f"`{option}` is for the top; leave it out, or `side`")
    scorers = settings.scorers
    names = (each if isinstance(each, str) else getattr(each, "name", "") for each in scorers)
    for name in names:
        if name in ONE_SIDED:
            raise UsageError(f"the scorer '{name}' is for the top; leave it out, or `side`")
