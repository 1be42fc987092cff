"""The whole path for many neurons: explain, simulate the test excerpts, score.

What comes of a neuron goes into the database at once, in one transaction, when its last request is
answered or has failed. Answers of language models are stored before that, each as it comes (see
`ledger/stored.py`), so an interrupted call loses only what is in flight.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from fastexplain.errors import BudgetError, Deferred, LLMError, UnusableError, UsageError
from fastexplain.pipeline.protocols import Explainer, OtherText, Scorer, Simulator
from fastexplain.pipeline.simulating import awaited, simulate
from fastexplain.records import NeuronId, NeuronRecord
from fastexplain.results import Explanation, ExplanationRow, Measured, Sample
from fastexplain.run.database import Database
from fastexplain.scorers.correlation import Correlation


@dataclass(frozen=True)
class NeuronResult:
    """What `explain_neurons` has for one neuron.

    Attributes:
        neuron: which one.
        text: the explanation; None if it failed, or waits in a batch.
        scores: what the scorers gave it, by the scorer's name; None without an explanation.
        failures: a line for each request that failed.
        waiting: whether some of its requests were noted for a batch, so that it goes on later.
        complete: whether all was there already, so that nothing was asked.
    """

    neuron: NeuronId
    text: str | None
    scores: dict[str, list[Measured]] | None
    failures: list[str] = field(default_factory=list)
    waiting: bool = False
    complete: bool = False


async def explain_neurons(
    records: Iterable[NeuronRecord],
    database: Database,
    *,
    explainer: Explainer,
    simulator: Simulator | None,
    scorers: Sequence[Scorer] = (Correlation(),),
    concurrency: int = 1,
    fresh: bool = False,
) -> AsyncIterator[NeuronResult]:
    """Explain, simulate and score neurons; yields a result for each as soon as it is complete.

    Args:
        records: the neurons; taken one by one, as there is room for more requests.
        database: where answers are stored, and found again by explainer, simulator and the
            versions of their prompts. Failures are stored too, and asked for anew.
        explainer: writes the explanations.
        simulator: predicts from them the excerpts that the scorers want; may be None where all
            of these ask a model themselves.
        scorers: score the explanations, by these predictions or by asking a model.
        concurrency: neurons that are worked on at a time. Each has at least one request in flight.
        fresh: explain and simulate everything again, and replace what the database has.

    Raises:
        UnusableError: explainer or simulator can't serve any request.
        BudgetError: the next request might pass the limit.
            What was in flight is complete by then. A failure that concerns one neuron or excerpt
            is part of the result instead.
    """
    work = _Work(database, explainer, simulator, scorers, fresh)
    source = iter(records)
    running: list[asyncio.Task[NeuronResult]] = []
    done: list[asyncio.Task[NeuronResult]] = []
    ended: BudgetError | UnusableError | None = None
    try:
        while True:
            # What is in flight when it ends may have been paid for: those neurons are completed.
            wanted = concurrency - len(running) if ended is None else 0
            running += [asyncio.create_task(work.on(r)) for r in itertools.islice(source, wanted)]
            if not running:
                break
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            done = [task for task in running if task.done()]
            running = [task for task in running if not task.done()]
            for task in done:
                try:
                    result = task.result()
                except (BudgetError, UnusableError) as error:
                    ended = error
                else:
                    yield result
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, *done, return_exceptions=True)
    if ended is not None:
        raise ended


def in_turn(scorers: Sequence[Scorer]) -> list[list[Scorer]]:
    """The scorers in the order in which neurons have to be scored by them, a pass for each list.

    Those that compare with other texts come when all neurons are explained.
    """
    first = [scorer for scorer in scorers if not isinstance(scorer, OtherText)]
    later = [scorer for scorer in scorers if scorer not in first]
    return [first, later] if later else [first]


def _by_own_simulations(scorer: Scorer) -> bool:
    """Whether a scorer goes by what is simulated from the explanation itself."""
    return scorer.judge is None and not isinstance(scorer, OtherText)


@dataclass(frozen=True)
class _Work:
    """What is done for one neuron."""

    database: Database
    explainer: Explainer
    simulator: Simulator | None
    scorers: Sequence[Scorer]
    fresh: bool

    async def on(self, record: NeuronRecord) -> NeuronResult:
        asked = (self.explainer.method, self.explainer.model, self.explainer.version)
        found = None if self.fresh else self.database.find_explanation(record.id, *asked)
        if found is not None:
            return await self._scored(record, *found)
        try:
            row = await self._explain(record)
        except Deferred:
            return NeuronResult(record.id, None, None, waiting=True)
        if row.text is None:
            await self.database.write(self.database.add_explanations, [row])
            return NeuronResult(record.id, None, None, [f"explanation: {row.failure}"])
        return await self._scored(record, row, row.text)

    async def _scored(
        self, record: NeuronRecord, explanation: ExplanationRow | int, text: str
    ) -> NeuronResult:
        """Simulate and score an explanation: a new one, or the one of which the id is given."""
        wanted = {scorer.name: scorer.excerpts(record) for scorer in self.scorers}
        excerpts = {
            sample.excerpt: sample
            for scorer in self.scorers
            if _by_own_simulations(scorer)
            for sample in wanted[scorer.name]
        }
        have: dict[int, np.ndarray] = {}
        stored: dict[str, list[Measured]] = {}
        if isinstance(explanation, int):
            if self.simulator is not None:
                have = self.database.simulated(
                    explanation, self.simulator.model, self.simulator.version
                )
            stored = self._stored_scores(explanation)
        missing = [sample for e, sample in excerpts.items() if e not in have]
        known = isinstance(explanation, int)
        if known and not missing and len(stored) == len(self.scorers):
            return NeuronResult(record.id, text, stored, complete=True)
        outcomes = await asyncio.gather(
            *(self._simulate(record.skip, text, sample) for sample in missing),
            return_exceptions=True,  # all are waited for: what was sent may have been paid for
        )
        simulations = {
            sample.excerpt: outcome
            for sample, outcome in zip(missing, outcomes, strict=True)
            if isinstance(outcome, _Outcome)
        }
        have |= {e: s.values for e, s in simulations.items() if s.values is not None}
        asked = {sample.excerpt for sample in missing}
        changed = {
            scorer.name
            for scorer in self.scorers
            if _by_own_simulations(scorer)
            and any(sample.excerpt in asked for sample in wanted[scorer.name])
        }
        # Without those that wait in a batch, or could not be sent, there is no score yet.
        ready = [
            scorer
            for scorer in self.scorers
            if (scorer.name in changed or scorer.name not in stored)
            and (len(simulations) == len(missing) or not _by_own_simulations(scorer))
        ]
        values = {e: own[record.skip :] for e, own in have.items()}
        scored = await asyncio.gather(
            *(self._score(scorer, record, text, wanted[scorer.name], values) for scorer in ready),
            return_exceptions=True,
        )
        scores = {
            scorer.name: measured
            for scorer, measured in zip(ready, scored, strict=True)
            if isinstance(measured, list)
        }
        await self.database.write(self._store, explanation, excerpts, simulations, scores)
        failures = [
            f"simulation of excerpt {excerpt}: {outcome.failure}"
            for excerpt, outcome in simulations.items()
            if outcome.failure
        ]
        for scorer, outcome in zip(ready, scored, strict=True):
            if isinstance(outcome, LLMError) and not isinstance(outcome, UnusableError):
                failures.append(f"{scorer.name}: {outcome}")
            elif isinstance(outcome, BaseException):
                outcomes.append(outcome)
        for ended in outcomes:
            if isinstance(ended, BaseException) and not isinstance(ended, Deferred):
                raise ended
        waiting = any(isinstance(outcome, Deferred) for outcome in outcomes)
        return NeuronResult(record.id, text, stored | scores, failures, waiting)

    def _store(
        self,
        explanation: ExplanationRow | int,
        excerpts: dict[int, Sample],
        simulations: dict[int, _Outcome],
        scores: dict[str, list[Measured]],
    ) -> None:
        """Store what came of a neuron, with its new explanation or that of which the id is given.

        Excerpts and their simulations are by excerpt id, scores by the scorer's name.
        """
        with self.database.transaction():
            if isinstance(explanation, ExplanationRow):
                [explanation] = self.database.add_explanations([explanation])
            for excerpt, outcome in simulations.items():
                self.database.add_simulation(
                    explanation,
                    *self._simulated_by(),
                    excerpt,
                    excerpts[excerpt].split,
                    outcome.values,
                    outcome.failure,
                )
            for scorer in self.scorers:
                if scorer.name in scores:
                    own = {explanation: scores[scorer.name]}
                    self.database.add_scores(scorer.name, *self._judge(scorer), own)

    def _stored_scores(self, explanation: int) -> dict[str, list[Measured]]:
        """What scorers gave an explanation before, by their names; only of those that did.

        Those whose judge left a question without an answer are to be done again: it is asked for
        that alone, as the other answers are stored.
        """
        found: dict[str, list[Measured]] = {}
        asked = {scorer.name: self._judge(scorer) for scorer in self.scorers}
        for score in self.database.scores(explanation):
            if asked.get(score.scorer) == (score.judge, score.version):
                found.setdefault(score.scorer, []).append(score.measured)
        for scorer in self.scorers:
            rows = found.get(scorer.name, ())
            if scorer.judge and any(m.reason and m.value is not None for m in rows):
                del found[scorer.name]
        return found

    def _judge(self, scorer: Scorer) -> tuple[str, str]:
        """The model by which a scorer scores, and the version of the way it is asked."""
        return scorer.judge or self._simulated_by()

    def _simulated_by(self) -> tuple[str, str]:
        assert self.simulator is not None
        return self.simulator.model, self.simulator.version

    async def _score(
        self,
        scorer: Scorer,
        record: NeuronRecord,
        text: str,
        excerpts: list[Sample],
        values: dict[int, np.ndarray],
    ) -> list[Measured]:
        """What one scorer gives; `values` are the simulations `[counted]` by excerpt id."""
        if isinstance(scorer, OtherText):
            values = await self._simulated(scorer.text(record.id, self.database), record, excerpts)
        if scorer.judge is None:
            excerpts = [replace(each, simulated=values.get(each.excerpt)) for each in excerpts]
        return await awaited(scorer.score(record, text, excerpts))

    async def _simulated(
        self, text: str, record: NeuronRecord, excerpts: list[Sample]
    ) -> dict[int, np.ndarray]:
        """Excerpts simulated from any text, `[counted]` by id, without those that failed.

        Raises:
            LLMError: all have failed.
        """
        outcomes = await asyncio.gather(
            *(self._simulate(record.skip, text, sample) for sample in excerpts),
            return_exceptions=True,  # all are waited for: what was sent may have been paid for
        )
        found: dict[int, np.ndarray] = {}
        failure = None
        for sample, outcome in zip(excerpts, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                raise outcome
            if outcome.values is not None:
                found[sample.excerpt] = outcome.values[record.skip :]
            failure = failure or outcome.failure
        if failure is not None and not found:
            raise LLMError(failure)
        return found

    async def _explain(self, record: NeuronRecord) -> ExplanationRow:
        """The explanation, or why there is none."""
        asked = (self.explainer.method, self.explainer.model, self.explainer.version)
        try:
            made = await awaited(self.explainer.explain(record))
        except UnusableError:
            raise
        except LLMError as error:
            return ExplanationRow(record.id, *asked, None, failure=str(error))
        if not isinstance(made, Explanation):
            raise UsageError(
                f"the explainer '{self.explainer.model}' gave a {type(made).__name__}; it has to "
                "give a fastexplain.results.Explanation"
            )
        return ExplanationRow(
            record.id,
            *asked,
            made.text,
            data=made.data,
            parameters=made.parameters,
            parent=made.parent,
        )

    async def _simulate(self, skip: int, text: str, sample: Sample) -> _Outcome:
        """One excerpt's simulation, or what went wrong."""
        assert self.simulator is not None
        try:
            found = await simulate(self.simulator, text, sample.tokens)
        except UnusableError:
            raise
        except LLMError as error:
            return _Outcome(None, str(error))
        # As long as the excerpt, so that values stand beside tokens.
        padding = np.full(skip, np.nan)
        return _Outcome(np.concatenate([padding, found.values]).astype(np.float32), found.reason)


class _Outcome(NamedTuple):
    """What came of a simulation: float32 `[tokens]` or None, and what went wrong, if anything."""

    values: np.ndarray | None
    failure: str | None
