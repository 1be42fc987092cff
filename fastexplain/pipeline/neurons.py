"""The whole path for many neurons: explain, simulate the test excerpts, score.

What comes of a neuron goes into the database at once, in one transaction, when its last request is
answered or has failed. Answers of language models are stored before that, each as it comes (see
`ledger/stored.py`), so an interrupted call loses only what is in flight.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np

from fastexplain.errors import BudgetError, Deferred, LLMError, UnusableError, UsageError
from fastexplain.pipeline.protocols import Explainer, Scorer, Simulator
from fastexplain.records import (
    Exemplar,
    Explanation,
    ExplanationRow,
    Measured,
    NeuronId,
    NeuronRecord,
    Simulated,
)
from fastexplain.run.database import Database
from fastexplain.run.splits import held_out
from fastexplain.scorers.correlation import Correlation
from fastexplain.simulators.model import Simulation

_T = TypeVar("_T")


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
    simulator: Simulator,
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
        simulator: predicts the test excerpts from them.
        scorers: score the explanations by these predictions.
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


@dataclass(frozen=True)
class _Work:
    """What is done for one neuron."""

    database: Database
    explainer: Explainer
    simulator: Simulator
    scorers: Sequence[Scorer]
    fresh: bool

    async def on(self, record: NeuronRecord) -> NeuronResult:
        asked = (self.explainer.method, self.explainer.model, self.explainer.version)
        found = None if self.fresh else self.database.find_explanation(record.id, *asked)
        row: ExplanationRow | None = None
        if found is None:
            try:
                row = await self._explain(record)
            except Deferred:
                return NeuronResult(record.id, None, None, waiting=True)
            if row.text is None:
                await self.database.write(self.database.add_explanations, [row])
                return NeuronResult(record.id, None, None, [f"explanation: {row.failure}"])
            text = row.text
        else:
            number, text = found

        [ranks], [slots] = held_out(
            np.array([[e.excerpt for e in record.top]], dtype=np.int64),
            np.array([e.excerpt for e in record.random], dtype=np.int64),
        )
        tops = [record.top[rank] for rank in ranks if rank >= 0]
        excerpts = tops + [record.random[slot] for slot in slots if slot >= 0]
        have: dict[int, np.ndarray] = {}
        if row is None:
            have = self.database.simulated(number, self.simulator.model, self.simulator.version)
        missing = [e for e in excerpts if e.excerpt not in have]
        if row is None and not missing:
            stored = self._stored_scores(number)
            if stored is not None:
                return NeuronResult(record.id, text, stored, complete=True)
        outcomes = await asyncio.gather(
            *(self._simulate(record, text, e) for e in missing),
            return_exceptions=True,  # all are waited for: what was sent may have been paid for
        )
        simulations = {
            e.excerpt: outcome
            for e, outcome in zip(missing, outcomes, strict=True)
            if isinstance(outcome, _Outcome)
        }
        have |= {e: s.values for e, s in simulations.items() if s.values is not None}
        scores: dict[str, list[Measured]] = {}
        if len(simulations) == len(missing):  # else some wait in a batch, or could not be sent
            simulated = [
                Simulated(
                    e.excerpt,
                    place < len(tops),
                    e.activations[record.skip :],
                    have[e.excerpt][record.skip :] if e.excerpt in have else None,
                )
                for place, e in enumerate(excerpts)
            ]
            scores = {scorer.name: scorer.score(simulated) for scorer in self.scorers}
        await self.database.write(
            self._store, row if row is not None else number, simulations, scores
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, Deferred):
                raise outcome
        failures = [
            f"simulation of excerpt {excerpt}: {outcome.failure}"
            for excerpt, outcome in simulations.items()
            if outcome.failure
        ]
        waiting = any(isinstance(outcome, Deferred) for outcome in outcomes)
        return NeuronResult(record.id, text, scores, failures, waiting)

    def _store(
        self,
        explanation: ExplanationRow | int,
        simulations: dict[int, _Outcome],
        scores: dict[str, list[Measured]],
    ) -> None:
        """Store what came of a neuron, with its new explanation or that of which the id is given.

        Simulations are by excerpt id, scores by the scorer's name.
        """
        model, version = self.simulator.model, self.simulator.version
        with self.database.transaction():
            if isinstance(explanation, ExplanationRow):
                [explanation] = self.database.add_explanations([explanation])
            for excerpt, outcome in simulations.items():
                self.database.add_simulation(
                    explanation, model, version, excerpt, "test", outcome.values, outcome.failure
                )
            for scorer, measured in scores.items():
                self.database.add_scores(explanation, scorer, model, version, measured)

    def _stored_scores(self, explanation: int) -> dict[str, list[Measured]] | None:
        """What the scorers gave an explanation before, if all of them did."""
        found: dict[str, list[Measured]] = {scorer.name: [] for scorer in self.scorers}
        asked = (self.simulator.model, self.simulator.version)
        for score in self.database.scores(explanation):
            if score.scorer in found and (score.judge, score.version) == asked:
                found[score.scorer].append(score.measured)
        return found if all(found.values()) else None

    async def _explain(self, record: NeuronRecord) -> ExplanationRow:
        """The explanation, or why there is none."""
        asked = (self.explainer.method, self.explainer.model, self.explainer.version)
        try:
            made = await _awaited(self.explainer.explain(record))
        except UnusableError:
            raise
        except LLMError as error:
            return ExplanationRow(record.id, *asked, None, failure=str(error))
        if not isinstance(made, Explanation):
            raise UsageError(
                f"the explainer '{self.explainer.model}' gave a {type(made).__name__}; it has to "
                "give a fastexplain.records.Explanation"
            )
        return ExplanationRow(
            record.id,
            *asked,
            made.text,
            data=made.data,
            parameters=made.parameters,
            parent=made.parent,
        )

    async def _simulate(self, record: NeuronRecord, text: str, exemplar: Exemplar) -> _Outcome:
        """One excerpt's simulation, or what went wrong."""
        tokens = exemplar.tokens[record.skip :]
        try:
            found = await _awaited(self.simulator.simulate(text, tokens))
        except UnusableError:
            raise
        except LLMError as error:
            return _Outcome(None, str(error))
        if not isinstance(found, Simulation):
            found = Simulation(np.asarray(found))
        values = np.asarray(found.values, dtype=np.float64)
        if values.shape != (len(tokens),):
            raise UsageError(
                f"the simulator '{self.simulator.model}' gave {values.shape} values for "
                f"{len(tokens)} tokens; it has to give one for each"
            )
        if np.isinf(values).any():
            return _Outcome(None, "the simulator gave a value that is infinite")
        if np.isnan(values).all():
            return _Outcome(None, found.reason or "the simulator gave no value")
        # As long as the excerpt, so that values stand beside tokens.
        padding = np.full(record.skip, np.nan)
        return _Outcome(np.concatenate([padding, values]).astype(np.float32), found.reason)


class _Outcome(NamedTuple):
    """What came of a simulation: float32 `[tokens]` or None, and what went wrong, if anything."""

    values: np.ndarray | None
    failure: str | None


async def _awaited(result: _T | Awaitable[_T]) -> _T:
    return await result if inspect.isawaitable(result) else result
