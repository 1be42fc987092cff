"""The whole path for many neurons: explain, simulate the test excerpts, score.

Every answer goes into the database as soon as it is there, so an interrupted call loses only
what is in flight, and the next one asks only for what is missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastexplain.errors import BudgetError, Deferred, LLMError, UnusableError
from fastexplain.explainers.model import MAX_TOKENS, SEED, TEMPERATURE, explain
from fastexplain.llm import Connection
from fastexplain.prompts import explainer as explainer_prompt
from fastexplain.records import Exemplar, ExplanationRow, NeuronId, NeuronRecord, Scores
from fastexplain.run.database import Database
from fastexplain.run.splits import splits
from fastexplain.scorers.correlation import score
from fastexplain.simulators.model import Simulator


@dataclass(frozen=True)
class NeuronResult:
    """What `explain_neurons` has for one neuron.

    Attributes:
        neuron: which one.
        text: the explanation; None if it failed, or waits in a batch.
        scores: of the explanation; None without one.
        failures: a line for each request that failed.
        waiting: whether some of its requests were noted for a batch, so that it goes on later.
        complete: whether all was there already, so that nothing was asked.
    """

    neuron: NeuronId
    text: str | None
    scores: Scores | None
    failures: list[str] = field(default_factory=list)
    waiting: bool = False
    complete: bool = False


async def explain_neurons(
    records: Iterable[NeuronRecord],
    database: Database,
    *,
    explainer: Connection,
    simulator: Simulator,
    fresh: bool = False,
) -> AsyncIterator[NeuronResult]:
    """Explain, simulate and score neurons; yields a result for each as soon as it is complete.

    Args:
        records: the neurons; taken one by one, as there is room for more requests.
        database: where answers are stored, and found again by explainer, simulator and the
            versions of their prompts. Failures are stored too, and asked for anew.
        explainer: writes the explanations.
        simulator: predicts the test excerpts from them.
        fresh: explain and simulate everything again, and replace what the database has.

    Raises:
        UnusableError: explainer or simulator can't serve any request.
        BudgetError: the next request might pass the limit.
            What was in flight is complete by then. A failure that concerns one neuron or excerpt
            is part of the result instead.
    """
    work = _Work(database, explainer, simulator, fresh)
    source = iter(records)
    results: asyncio.Queue[NeuronResult | None] = asyncio.Queue()
    ends: list[BudgetError | UnusableError] = []

    async def worker() -> None:
        for record in source:
            try:
                results.put_nowait(await work.on(record))
            except (BudgetError, UnusableError) as error:
                ends.append(error)
            if ends:  # what others have in flight may have been paid for: they end their neurons
                return
            await asyncio.sleep(0)  # where nothing had to be asked, nobody else had a turn

    async def workers() -> None:
        # A neuron has at least one request in flight, so as many neurons keep a connection busy.
        crew = [asyncio.create_task(worker()) for _ in range(explainer.concurrency)]
        try:
            await asyncio.gather(*crew)
        finally:
            for each in crew:
                each.cancel()
            await asyncio.gather(*crew, return_exceptions=True)
            results.put_nowait(None)

    running = asyncio.create_task(workers())
    try:
        while (result := await results.get()) is not None:
            yield result
        await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    if ends:
        raise ends[-1]


class _Work:
    """What is done for one neuron."""

    def __init__(
        self, database: Database, explainer: Connection, simulator: Simulator, fresh: bool
    ) -> None:
        self._database = database
        self._explainer, self._simulator = explainer, simulator
        self._fresh = fresh

    async def on(self, record: NeuronRecord) -> NeuronResult:
        found = None if self._fresh else self._stored_explanation(record.id)
        if found is None:
            try:
                found = await self._explain(record)
            except Deferred:
                return NeuronResult(record.id, None, None, waiting=True)
            except _Failed as failed:
                return NeuronResult(record.id, None, None, [f"explanation: {failed}"])
        explanation, text = found

        split = splits(
            np.array([e.excerpt for e in record.top], dtype=np.int64),
            np.array([e.excerpt for e in record.random], dtype=np.int64),
        )["test"]
        excerpts = [record.top[r] for r in split.top] + [record.random[s] for s in split.random]
        have: dict[int, np.ndarray] = {}
        if not self._fresh:
            have = self._database.simulated(
                explanation, self._simulator.model, self._simulator.version
            )
        missing = [e for e in excerpts if e.excerpt not in have]
        if not missing:
            stored = self._database.scores(
                explanation, self._simulator.model, self._simulator.version
            )
            if stored is not None:
                return NeuronResult(record.id, text, stored, complete=True)
        outcomes = await asyncio.gather(
            *(self._simulate(record, explanation, text, e, have) for e in missing),
            return_exceptions=True,  # all are waited for: what was sent may have been paid for
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, Deferred):
                raise outcome
        scores = score(
            [e.activations[record.skip :] for e in excerpts],
            [_counted(have.get(e.excerpt), record.skip) for e in excerpts],
            [True] * len(split.top) + [False] * len(split.random),
        )
        waiting = any(isinstance(outcome, Deferred) for outcome in outcomes)
        if not waiting:
            self._database.add_scores(
                explanation, self._simulator.model, self._simulator.version, scores
            )
        failures = [outcome for outcome in outcomes if isinstance(outcome, str)]
        return NeuronResult(record.id, text, scores, failures, waiting)

    def _stored_explanation(self, neuron: NeuronId) -> tuple[int, str] | None:
        return self._database.find_explanation(
            neuron, "llm", self._explainer.model, explainer_prompt.VERSION
        )

    async def _explain(self, record: NeuronRecord) -> tuple[int, str]:
        """Explain and store; raises _Failed, with the reason stored, if that fails."""
        text, failure = None, None
        parameters: dict[str, Any] = {
            "max_tokens": MAX_TOKENS,
            "temperature": TEMPERATURE,
            "seed": SEED,
        }
        try:
            found = await explain(record, self._explainer)
        except UnusableError:
            raise
        except LLMError as error:
            failure = str(error)
        else:
            text = found.text
            parameters |= {
                "exemplars": found.exemplars,
                "request": found.request,
                "prompt_tokens": found.usage.prompt_tokens,
                "completion_tokens": found.usage.completion_tokens,
            }
        row = ExplanationRow(
            record.id,
            "llm",
            self._explainer.model,
            explainer_prompt.VERSION,
            text,
            parameters=parameters,
            failure=failure,
        )
        [explanation] = self._database.add_explanations([row])
        if text is None:
            raise _Failed(failure)
        return explanation, text

    async def _simulate(
        self,
        record: NeuronRecord,
        explanation: int,
        text: str,
        exemplar: Exemplar,
        have: dict[int, np.ndarray],
    ) -> str | None:
        """Simulate and store one excerpt, add it to `have`; returns what went wrong, if it did."""
        values = None
        try:
            simulation = await self._simulator.simulate(text, exemplar.tokens[record.skip :])
        except UnusableError:
            raise
        except LLMError as error:
            failure: str | None = str(error)
        else:
            failure = simulation.reason
            if not np.isnan(simulation.values).all():
                # As long as the excerpt, so that values stand beside tokens.
                padding = np.full(record.skip, np.nan)
                values = np.concatenate([padding, simulation.values]).astype(np.float32)
                have[exemplar.excerpt] = values
        self._database.add_simulation(
            explanation,
            self._simulator.model,
            self._simulator.version,
            exemplar.excerpt,
            "test",
            values,
            failure,
        )
        return failure and f"simulation of excerpt {exemplar.excerpt}: {failure}"


class _Failed(Exception):
    """A neuron has no explanation; the message says why."""


def _counted(values: np.ndarray | None, skip: int) -> np.ndarray | None:
    return None if values is None else values[skip:]
