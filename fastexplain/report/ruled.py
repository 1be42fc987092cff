"""What rules predict of the excerpts that score them, made when it is asked for."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import Any

from fastexplain.errors import UsageError
from fastexplain.explainers.features import Features
from fastexplain.explainers.rules import METHOD, simulate_rule
from fastexplain.records import NeuronId
from fastexplain.report.excerpts import four_digits
from fastexplain.run.directory import Run


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
        with self._once:
            features = self._features
        found = simulate_rule(self._run, features, rows[0])
        return {
            "explanation": explanation,
            "values": {str(excerpt): four_digits(values) for excerpt, values in found.items()},
        }
