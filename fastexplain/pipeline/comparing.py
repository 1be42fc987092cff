"""Ways to explain the same neurons, side by side: what each gains and what it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastexplain.ledger.tally import Tally
from fastexplain.llm.requests import Usage
from fastexplain.records import NeuronId
from fastexplain.results import StoredExplanation
from fastexplain.run.directory import Run


@dataclass(frozen=True)
class Gain:
    """What one way to explain scores, beside the first way.

    Attributes:
        neurons: how many it is over.
        mean: of their correlations on top and random excerpts of the test split; None without any.
        gain: of the mean over that of the first way.
        error: the gain's standard error over the neurons; None with fewer than two.
        better, worse: neurons whose score rose or fell.
    """

    neurons: int
    mean: float | None
    gain: float | None
    error: float | None
    better: int
    worse: int

    @classmethod
    def of(cls, values: np.ndarray, first: np.ndarray) -> Gain:
        """From the scores by this way and by the first one, float64 `[neurons]` each."""
        gains, count = values - first, len(values)
        return cls(
            count,
            float(values.mean()) if count else None,
            float(gains.mean()) if count else None,
            float(gains.std(ddof=1) / np.sqrt(count)) if count > 1 else None,
            int((gains > 0).sum()),
            int((gains < 0).sum()),
        )


@dataclass(frozen=True)
class Compared:
    """One way to explain.

    Attributes:
        name: of the way.
        defined: over the neurons whose score is defined by every way.
        as_zero: over those too whose score is undefined by some way, with 0 in its place: a way
            that makes a score defined gains by that.
        missing: neurons that the first way has a score of, defined or not, and another has none.
        spent: what the explanations took, without the scores: a mean over the neurons of `as_zero`.
    """

    name: str
    defined: Gain
    as_zero: Gain
    missing: int
    spent: dict[str, float | None]


def compare(
    run: Run,
    neurons: Sequence[NeuronId],
    ways: Mapping[str, tuple[str, str, str]],
    simulation: str | None,
) -> list[Compared]:
    """Compare explanations that are stored.

    Args:
        ways: by name, the method, model and version of explanations; the first is compared with.
        simulation: how they were simulated; scores by other ways are passed over.
    """
    found: list[dict[str, StoredExplanation]] = []
    parents: dict[int, StoredExplanation] = {}
    first, missing = next(iter(ways)), 0
    with run.database(read_only=True) as database:
        for neuron in neurons:
            own: dict[str, StoredExplanation] = {}
            for row in database.explanations(neuron):
                parents[row.id] = row
                asked = (row.method, row.model, row.version)
                for name, way in ways.items():
                    if asked == way and row.simulation == simulation and row.scores is not None:
                        own.setdefault(name, row)
            if len(own) == len(ways):
                found.append(own)
            else:
                missing += first in own
    scores = {name: np.array([_score(own[name]) for own in found], np.float64) for name in ways}
    defined = ~np.isnan(list(scores.values())).any(axis=0)
    zeros = {name: np.nan_to_num(values) for name, values in scores.items()}
    return [
        Compared(
            name,
            Gain.of(scores[name][defined], scores[first][defined]),
            Gain.of(zeros[name], zeros[first]),
            missing,
            _means([_spent(own[name], parents) for own in found]),
        )
        for name in ways
    ]


def _score(row: StoredExplanation) -> float | None:
    return None if row.scores is None else row.scores.top_and_random


def _spent(row: StoredExplanation, parents: Mapping[int, StoredExplanation]) -> Tally:
    """What an explanation took, with that of the one that it was made from."""
    known = row.parameters.get("spent")
    if known is None:
        tokens = [row.parameters.get(f"{kind}_tokens") or 0 for kind in ("prompt", "completion")]
        own = Tally()
        own.add(Usage(*tokens), row.cost)
    else:
        own = Tally(**known)
    if row.parent is not None and row.parent in parents:
        before = _spent(parents[row.parent], parents)
        unknown = own.cost is None or before.cost is None
        own = Tally(
            own.requests + before.requests,
            own.prompt_tokens + before.prompt_tokens,
            own.completion_tokens + before.completion_tokens,
            None if unknown else (own.cost or 0.0) + (before.cost or 0.0),
        )
    return own


def _means(spent: Sequence[Tally]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name in vars(Tally()):
        values = [getattr(each, name) for each in spent]
        found[name] = None if None in values or not values else float(np.mean(values))
    return found
