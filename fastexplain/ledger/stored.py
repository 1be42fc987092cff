"""A connection whose responses are kept: nothing that was answered is asked again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from fastexplain.errors import Deferred, LLMError, UnusableError
from fastexplain.ledger.budget import Budget
from fastexplain.ledger.prices import Price, cost
from fastexplain.ledger.responses import Responses
from fastexplain.llm.base import Connection
from fastexplain.llm.openai.wire import most_tokens
from fastexplain.llm.requests import Capabilities, Request, Response, Usage, key
from fastexplain.llm.tokens import estimate

_T = TypeVar("_T")


@dataclass
class Meter:
    """What a command's requests have come to so far.

    Attributes:
        answered, failed, stored: requests that were answered, that failed for good, and those
            whose response was in the store already.
        prompt_tokens, completion_tokens: of the answers, also those that were of no use.
        cost: of these, in US dollars, as far as the prices are known.
    """

    answered: int = 0
    failed: int = 0
    stored: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    @property
    def done(self) -> int:
        return self.answered + self.failed + self.stored

    def add(self, usage: Usage, cost: float | None) -> None:
        """Count what an answer took, whether it is of use or not."""
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens
        self.cost += cost or 0.0


class StoredConnection(Connection):
    """A connection behind the store of responses.

    Requests that are alike and asked at the same time are sent once. A response is stored before
    anybody gets it, and before its place among the `concurrency` requests in flight is free. What
    was in flight when the command ended is asked again by the next one.

    Args:
        inner: reaches the model. It is closed by whoever opened it.
        responses: the store.
        purpose: "explanation" or "simulation", for the ledger.
        price: of the model; None if unknown.
        budget: asked before every request that is sent; None: no limit.
        fresh: ask once more for what was stored before this connection was made.
        meter: counts; connections may share one.
    """

    def __init__(
        self,
        inner: Connection,
        responses: Responses,
        purpose: str,
        *,
        price: Price | None = None,
        budget: Budget | None = None,
        fresh: bool = False,
        meter: Meter | None = None,
    ) -> None:
        self.model, self.address, self.concurrency = inner.model, inner.address, inner.concurrency
        self.meter = meter or Meter()
        self._inner = inner
        self._responses = responses
        self._purpose = purpose
        self._price = price
        self._budget = budget or Budget(None, None)
        self._fresh = fresh
        self._asked: set[str] = set()
        self._deferred: dict[str, float] = {}  # requests that wait for a batch: what they reserve
        self._in_flight: dict[str, asyncio.Task[Response]] = {}

    async def probe(self) -> Capabilities:
        """What the model can do: as the run's record has it, else by a probe, which is recorded.

        Two connections over one inner connection probe it once. A model in this process is probed
        anew, since that costs nothing.
        """
        return await self.probe_for(lambda found: found)

    async def probe_for(self, check: Callable[[Capabilities], _T]) -> _T:
        """What `check` returns for what the model can do.

        Where it raises UnusableError for what a record has, the model is probed again: it may be
        able to do more by now.
        """
        if self._inner.capabilities is None and not self._fresh and self.address != "local":
            recorded = self._responses.capabilities(self.model, self.address)
            if recorded is not None:
                with contextlib.suppress(UnusableError):
                    result = check(recorded)
                    self.capabilities = self._inner.capabilities = recorded
                    return result
        if self._inner.capabilities is None:
            self._inner.capabilities = await self._inner.probe()
            self._responses.record_capabilities(self.model, self.address, self._inner.capabilities)
        self.capabilities = self._inner.capabilities
        return check(self.capabilities)

    async def ask(self, request: Request) -> Response:
        name = key(self.model, request)
        if name in self._in_flight:
            return await asyncio.shield(self._in_flight[name])
        if not self._fresh or name in self._asked:
            response = self._responses.find(name, request)
            if response is not None:
                self.meter.stored += 1
                if name in self._deferred:
                    spent = cost(response.usage, self._price) or 0.0
                    self._budget.settle(self._deferred.pop(name), spent)
                return response
        self._in_flight[name] = asyncio.create_task(self._send(name, request))
        try:
            return await self._in_flight[name]
        finally:
            del self._in_flight[name]

    async def _send(self, name: str, request: Request) -> Response:
        async with self._inner.slots:  # what waits may still be called off, and reserves nothing
            if name in self._deferred:
                reserved = self._deferred.pop(name)
            else:
                answer = most_tokens(request, self._inner.capabilities or Capabilities())
                most = Usage(estimate(request), answer)
                reserved = self._budget.reserve(cost(most, self._price) or 0.0)
            try:
                response = await self._inner.ask(request)
            except Deferred:  # it will be asked and paid for, only not by us
                self._deferred[name] = reserved
                raise
            except BaseException as error:
                usage = getattr(error, "usage", Usage())
                spent = cost(usage, self._price)
                self._budget.settle(reserved, spent or 0.0)
                if isinstance(error, LLMError):
                    self.meter.failed += 1
                    self.meter.add(usage, spent)
                    await self._responses.database.write(
                        self._responses.add_failure, self.model, self._purpose, usage, spent
                    )
                raise
            spent = cost(response.usage, self._price)
            self._budget.settle(reserved, spent or 0.0)
            await self._responses.database.write(
                self._responses.add, name, self.model, self._purpose, response, spent
            )
            if self._fresh:
                self._asked.add(name)
            self.meter.answered += 1
            self.meter.add(response.usage, spent)
            return response
