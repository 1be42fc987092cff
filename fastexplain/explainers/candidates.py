"""The best of several explanations of a neuron, found by successive halving.

1. The candidates: the plain explanation, at temperature 0, and samples at temperature 1, of which
   the seeds are recorded. Those with the same text are one.
2. All are scored on a few excerpts of the validation split. The better half is scored on twice as
   many, and so on, until two are left or all excerpts are used; the last ones are scored on all.
3. The best one is the explanation. The test split was not looked at.

Source: Jamieson and Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter
Optimization", algorithm 1; here in place of the full comparison of Bills et al. 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from fastexplain.errors import LLMError
from fastexplain.explainers.validation import Predict, Validation, rank, settled
from fastexplain.ledger.tally import tallied
from fastexplain.llm.requests import Chat
from fastexplain.records import NeuronRecord
from fastexplain.results import Explanation

TEMPERATURE = 1.0

# Excerpts on which all candidates are scored: a top and a random one. More were measured to buy
# little (`benches/NOTES.md`).
FIRST = 2


class Sampling(Protocol):
    """Explains, and does so differently by temperature and seed; see `ModelExplainer`."""

    method: str
    model: str
    version: str

    async def request(self, record: NeuronRecord) -> Chat: ...

    def parse(self, answer: str) -> str: ...

    async def explain(
        self, record: NeuronRecord, *, temperature: float = 0.0, seed: int = 0
    ) -> Explanation: ...


@dataclass
class _Candidate:
    explanation: Explanation
    seed: int
    scores: dict[int, float | None]  # by how many excerpts they are over


class BestOf:
    """Explains by the best of several candidates.

    Args:
        inner: writes them.
        predict: simulates.
        simulator: a name for what simulates, and how; part of the version, since another one may
            choose another candidate.
        candidates: how many, from 2 on.
        first: excerpts on which all are scored; all of the split: none is dropped before.
        hopeful: takes the last of those whose score is undefined, to find out what it may cost.

    Attributes:
        method, model, version: see `pipeline.protocols.Explainer`.
        inner: as given.
    """

    def __init__(
        self,
        inner: Sampling,
        predict: Predict,
        simulator: str,
        candidates: int,
        first: int | None = FIRST,
        *,
        hopeful: bool = False,
    ) -> None:
        self.method, self.model = inner.method, inner.model
        whole = "" if first == FIRST else f", first {first or 'all'}"
        self.version = f"{inner.version} best of {candidates} by {simulator}{whole}"
        self.inner, self._predict = inner, predict
        self._candidates, self._first, self._hopeful = candidates, first, hopeful

    async def request(self, record: NeuronRecord) -> Chat:
        """What asks for the plain explanation. Raises LLMError where there is none to ask for."""
        return await self.inner.request(record)

    def parse(self, answer: str) -> str:
        """The explanation in an answer to that. Raises LLMError where there is none."""
        return self.inner.parse(answer)

    async def explain(self, record: NeuronRecord) -> Explanation:
        """The best candidate.

        Its data are the candidates with their scores, as `[excerpts, score]`; its parameters have
        how many there were, and as "spent" what it took to find it.

        Raises:
            LLMError: no candidate could be had.
        """
        with tallied() as spent:
            written = await settled(
                self.inner.explain(record, temperature=TEMPERATURE if seed else 0.0, seed=seed)
                for seed in range(self._candidates)
            )
            found: dict[str, _Candidate] = {}
            for seed, each in enumerate(written):
                if isinstance(each, Explanation):
                    found.setdefault(each.text, _Candidate(each, seed, {}))
            if not found:
                raise next(each for each in written if isinstance(each, LLMError))
            best = await self._best(list(found.values()), Validation(record, self._predict))
        parameters = {"candidates": self._candidates, "spent": spent.data()}
        return Explanation(
            best.explanation.text,
            data={**_data(best.explanation), "candidates": [_told(c) for c in found.values()]},
            parameters=best.explanation.parameters | parameters,
        )

    async def _best(self, left: list[_Candidate], validation: Validation) -> _Candidate:
        if len(left) == 1:
            return left[0]
        for count, excerpts in rungs(len(left), self._first, len(validation.excerpts)):
            left = left[:count]
            scores = await settled(
                validation.score(each.explanation.text, excerpts) for each in left
            )
            for each, score in zip(left, scores, strict=True):
                each.scores[excerpts] = None if isinstance(score, LLMError) else score
            # Of equals the one with the lower seed stays first, so the plain one before all.
            if self._hopeful:
                left.sort(key=lambda each: -each.seed)
            left.sort(key=lambda each: -rank(each.scores[excerpts], hopeful=self._hopeful))
        return left[0]


def rungs(candidates: int, first: int | None, excerpts: int) -> list[tuple[int, int]]:
    """How many candidates are left at each step, and over how many excerpts these are scored.

    Args:
        candidates: to begin with.
        first: excerpts of the first step; None: all.
        excerpts: that there are.
    """
    steps = []
    seen = excerpts if first is None else min(first, excerpts)
    while candidates > 2 and seen < excerpts:
        steps.append((candidates, seen))
        candidates, seen = (candidates + 1) // 2, min(2 * seen, excerpts)
    return [*steps, (candidates, excerpts)]


def most_simulations(candidates: int, first: int | None, excerpts: int) -> int:
    """How many excerpts are simulated at the most."""
    if candidates == 1:
        return 0
    done = total = 0
    for left, seen in rungs(candidates, first, excerpts):
        total += left * (seen - done)
        done = seen
    return total


def _data(explanation: Explanation) -> dict[str, Any]:
    return explanation.data if isinstance(explanation.data, dict) else {}


def _told(candidate: _Candidate) -> dict[str, Any]:
    return {
        "text": candidate.explanation.text,
        "seed": candidate.seed,
        "validation": [list(score) for score in candidate.scores.items()],
    }
