"""Explanations: the explainer is shown a neuron's exemplars and names what they share.

`explain_neurons` is the whole path for many neurons: explain, simulate the test excerpts, score.
Every answer goes into the database as soon as it is there, so an interrupted call loses only
what is in flight, and the next one asks only for what is missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from fastexplain.database import Database, ExplanationRow
from fastexplain.errors import LLMError
from fastexplain.llm import Connection
from fastexplain.prompts import explainer as explainer_prompt
from fastexplain.prompts import simulator as simulator_prompt
from fastexplain.records import Exemplar, NeuronId, NeuronRecord
from fastexplain.score import EXPLANATION_RANKS, Scores, score, splits
from fastexplain.simulate import simulate

# A phrase of some 20 words; what goes on for longer is cut off.
MAX_TOKENS = 60
TEMPERATURE = 0.0
SEED = 0


@dataclass(frozen=True)
class Explanation:
    """What an explainer says of a neuron.

    Attributes:
        neuron: which one.
        text: a short phrase.
        model, version: the explainer, and the version of its prompt.
    """

    neuron: NeuronId
    text: str
    model: str
    version: str


@dataclass(frozen=True)
class NeuronResult:
    """What `explain_neurons` has for one neuron.

    Attributes:
        neuron: which one.
        text: the explanation; None if it failed.
        scores: of the explanation; None without one.
        failures: a line for each request that failed.
        stored: whether all of it was in the database already, so that nothing was asked.
    """

    neuron: NeuronId
    text: str | None
    scores: Scores | None
    failures: list[str] = field(default_factory=list)
    stored: bool = False


async def explain(record: NeuronRecord, connection: Connection) -> Explanation:
    """Have a neuron explained from the top exemplars of its explanation split.

    Raises:
        LLMError: the explainer failed or gave no phrase, or the neuron is never above 0.
    """
    shown = [record.top[rank] for rank in EXPLANATION_RANKS if rank < len(record.top)]
    chat = explainer_prompt.messages(shown, record.skip)
    answer = await connection.generate(
        chat, max_tokens=MAX_TOKENS, temperature=TEMPERATURE, seed=SEED
    )
    return Explanation(
        record.id, explainer_prompt.parse(answer), connection.model, explainer_prompt.VERSION
    )


async def explain_neurons(
    records: Iterable[NeuronRecord],
    database: Database,
    *,
    explainer: Connection,
    simulator: Connection,
    fresh: bool = False,
    progress: Callable[[NeuronId, str], None] | None = None,
) -> AsyncIterator[NeuronResult]:
    """Explain, simulate and score neurons; yields a result for each as soon as it is complete.

    Args:
        records: the neurons; taken one by one, as there is room for more requests.
        database: where answers are stored, and found again by explainer, simulator and the
            versions of their prompts. Failures are stored too, and asked for anew.
        explainer, simulator: may be the same connection.
        fresh: ask for everything again, and replace what the database has.
        progress: called with a neuron and "explanation", "simulation" or "score" after each step.

    Raises:
        LLMError: explainer or simulator can't serve any request. A failure that concerns one
            neuron or excerpt is part of the result instead.
    """
    work = _Work(database, explainer, simulator, fresh, progress)
    source = iter(records)
    results: asyncio.Queue[NeuronResult | None] = asyncio.Queue()

    async def worker() -> None:
        for record in source:
            results.put_nowait(await work.on(record))

    async def workers() -> None:
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


class _Work:
    """What is done for one neuron, within the bounds on requests in flight."""

    def __init__(
        self,
        database: Database,
        explainer: Connection,
        simulator: Connection,
        fresh: bool,
        progress: Callable[[NeuronId, str], None] | None,
    ) -> None:
        self._database = database
        self._explainer, self._simulator = explainer, simulator
        self._fresh = fresh
        self._progress = progress or (lambda neuron, step: None)
        self._explaining = asyncio.Semaphore(explainer.concurrency)
        self._simulating = (
            self._explaining if simulator is explainer else asyncio.Semaphore(simulator.concurrency)
        )
        self._checking = asyncio.Lock()
        self._explainer_checked = False

    async def on(self, record: NeuronRecord) -> NeuronResult:
        found = None if self._fresh else self._stored_explanation(record.id)
        stored = found is not None
        if found is None:
            try:
                await self._check(explaining=True)
                found = await self._explain(record)
            except _Failed as failed:
                self._progress(record.id, "explanation")
                return NeuronResult(record.id, None, None, [f"explanation: {failed}"])
            self._progress(record.id, "explanation")
        explanation, text = found

        split = splits(
            np.array([e.excerpt for e in record.top], dtype=np.int64),
            np.array([e.excerpt for e in record.random], dtype=np.int64),
        )["test"]
        excerpts = [record.top[r] for r in split.top] + [record.random[s] for s in split.random]
        have = self._database.simulated(
            explanation, self._simulator.model, simulator_prompt.VERSION
        )
        missing = [e for e in excerpts if e.excerpt not in have]
        if missing:
            await self._check(explaining=False)
            stored = False
        failures = await asyncio.gather(
            *(self._simulate(record, explanation, text, e, have) for e in missing)
        )
        scores = score(
            [e.activations[record.skip :] for e in excerpts],
            [_counted(have.get(e.excerpt), record.skip) for e in excerpts],
            [True] * len(split.top) + [False] * len(split.random),
        )
        self._database.add_scores(
            explanation, self._simulator.model, simulator_prompt.VERSION, scores
        )
        self._progress(record.id, "score")
        return NeuronResult(record.id, text, scores, [f for f in failures if f], stored)

    async def _check(self, *, explaining: bool) -> None:
        """Before the first request: whether the models that are needed can serve any.

        The simulator comes first, since explanations that can't be scored may cost money.
        """
        async with self._checking:
            await self._simulator.largest_integer()
            if explaining and not self._explainer_checked:
                await self._explainer.check()
                self._explainer_checked = True

    def _stored_explanation(self, neuron: NeuronId) -> tuple[int, str] | None:
        return self._database.find_explanation(
            neuron, "llm", self._explainer.model, explainer_prompt.VERSION
        )

    async def _explain(self, record: NeuronRecord) -> tuple[int, str]:
        """Explain and store; raises _Failed, with the reason stored, if that fails."""
        text, failure = None, None
        async with self._explaining:
            try:
                text = (await explain(record, self._explainer)).text
            except LLMError as error:
                failure = str(error)
        row = ExplanationRow(
            record.id,
            "llm",
            self._explainer.model,
            explainer_prompt.VERSION,
            text,
            parameters={"max_tokens": MAX_TOKENS, "temperature": TEMPERATURE, "seed": SEED},
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
        """Simulate and store one excerpt, add it to `have`; returns why, if that failed."""
        values, failure = None, None
        async with self._simulating:
            try:
                counted = await simulate(text, exemplar.tokens[record.skip :], self._simulator)
                if np.isnan(counted).all():
                    raise LLMError("the simulator gives no integer a probability at any token")
            except LLMError as error:
                failure = str(error)
            else:
                # As long as the excerpt, so that values stand beside tokens.
                padding = np.full(record.skip, np.nan)
                values = np.concatenate([padding, counted]).astype(np.float32)
                have[exemplar.excerpt] = values
        self._database.add_simulation(
            explanation,
            self._simulator.model,
            simulator_prompt.VERSION,
            exemplar.excerpt,
            "test",
            values,
            failure,
        )
        self._progress(record.id, "simulation")
        return failure and f"simulation of excerpt {exemplar.excerpt}: {failure}"


class _Failed(Exception):
    """A neuron has no explanation; the message says why."""


def _counted(values: np.ndarray | None, skip: int) -> np.ndarray | None:
    return None if values is None else values[skip:]
