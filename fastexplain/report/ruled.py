"""What rules predict of the excerpts that score them, and where their terms hold, on demand."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import Any

import numpy as np

from fastexplain.errors import UsageError
from fastexplain.explainers.features import Features
from fastexplain.explainers.rules import METHOD, simulate_rule
from fastexplain.records import NeuronId, NeuronRecord
from fastexplain.report.entries import SEARCHED, Place, ShownEntry, kept_of, shown_at
from fastexplain.report.excerpts import four_digits
from fastexplain.results import StoredExplanation
from fastexplain.run.directory import Run


def is_rule(row: StoredExplanation) -> bool:
    """Whether an explanation is a rule that has terms and scores."""
    return row.method == row.model == row.simulator == METHOD and bool(row.data)


class RuledExcerpts:
    """Rules' simulations of a run; threads may share it.

    What rules may speak of is found in the whole corpus, once: two seconds for 2,048 excerpts.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._once = threading.Lock()

    @cached_property
    def _features(self) -> Features:
        return Features(self._run, self._run.tables.rows(self._run.excerpts))

    def simulated(self, row: StoredExplanation) -> dict[int, np.ndarray]:
        """What a rule predicts of its neuron's test excerpts; see `simulate_rule`."""
        with self._once:
            features = self._features
        return simulate_rule(self._run, features, row)

    def terms(self, record: NeuronRecord, row: StoredExplanation) -> list[ShownEntry]:
        """A rule's terms, each with the place in the exemplars where the neuron is strongest.

        Where none of them has it, the place is the first in the corpus. Raises UsageError where a
        term can't be told from others of this run.
        """
        with self._once:
            features = self._features
        kept = kept_of(record)
        acts = np.array([exemplar.activations[record.skip :] for _, exemplar in kept])
        own = np.array([exemplar.excerpt for _, exemplar in kept], np.int32)
        searched = np.arange(min(len(self._run.excerpts), SEARCHED), dtype=np.int32)

        def place(feature: int) -> Place | None:
            excerpts, at = np.nonzero(features.holds(feature, own))
            if len(excerpts):
                best = int(np.argmax(acts[excerpts, at]))
                source, exemplar = kept[excerpts[best]]
                t = int(at[best]) + record.skip
                return Place(exemplar.tokens, t, t + 1, source, float(exemplar.activations[t]))
            excerpts, at = np.nonzero(features.holds(feature, searched))
            if not len(excerpts):
                return None
            t, excerpt = int(at[0]) + record.skip, int(excerpts[0])
            tokens = self._run.token_texts(self._run.excerpt(excerpt).tolist())
            return Place(tokens, t, t + 1, f"text {excerpt}", None)

        terms = [(each["term"], each["value"], each["count"]) for each in row.data]
        return [shown_at(*each, place(features.named(each[0]))) for each in terms]

    def data(self, name: str, explanation: int) -> dict[str, Any]:
        """What a neuron's rule predicts of its test excerpts.

        Args:
            explanation: its id.

        Returns:
            `explanation`, and `values` by excerpt, one a token, null where one is not counted.

        Raises:
            UsageError: there is no such neuron, or no such rule of it, or that is by an earlier
                version, or its terms can't be told from others of this run.
            RunError: a file is missing or damaged.
        """
        neuron = self._run.check(NeuronId.parse(name))
        with self._run.database(read_only=True) as database:
            rows = [row for row in database.explanations(neuron) if row.id == explanation]
        if not rows or not rows[0].method == rows[0].model == METHOD:
            raise UsageError(f"explanation {explanation} is no rule of {neuron}")
        found = self.simulated(rows[0])
        return {
            "explanation": explanation,
            "values": {str(excerpt): four_digits(values) for excerpt, values in found.items()},
        }
