"""A connection whose responses are kept: nothing that was answered is asked again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from fastexplain.errors import Deferred, LLMError, UnusableError
from fastexplain.ledger.budget import Budget
from fastexplain.ledger.prices import Price, cost
from fastexplain.ledger.responses import Responses
from fastexplain.llm.base import Connection
from fastexplain.llm.openai.wire import most_tokens
from fastexplain.llm.requests import Capabilities, Request, Response, Usage, UselessAnswerError, key
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
    anybody gets it. What was in flight when the command ended is asked again by the next one.

    Args:
        inner: reaches the model. It is closed by whoever opened it.
        responses: the store.
        purpose: "explanation" or "simulation", for the ledger.
        price: of the model; None if unknown.
        budget: asked before every request that is sent; None: no limit.
        fresh: ask once more for what was stored before this connection was made.
        meter: counts; connections may share one.

    Attributes:
        recorded: whether `capabilities` are from the record of a former command.
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
        self._budget = budget
        self._fresh = fresh
        self.recorded = False
        self._asked: set[str] = set()
        self._deferred: dict[str, float] = {}  # what is reserved for them
        self._in_flight: dict[str, asyncio.Future[Response]] = {}
        self._slots = asyncio.Semaphore(inner.concurrency)

    async def probe(self) -> Capabilities:
        """What the model can do: as the run's record has it, else by a probe, which is recorded.

        Two connections over one inner connection probe it once. A model in this process is looked
        at anew, since that is for nothing.
        """
        found = self._inner.capabilities
        if found is None and not self._fresh and self.address != "local":
            found = self._responses.capabilities(self.model, self.address)
            self.recorded = found is not None
        if found is None:
            found = await self._probe_anew()
        self.capabilities = self._inner.capabilities = found
        return found

    async def probe_for(self, check: Callable[[Capabilities], _T]) -> _T:
        """What `check` returns for what the model can do.

        Where it raises UnusableError for what a record has, the model is probed again: it may be
        able to do more by now.
        """
        try:
            return check(await self.probe())
        except UnusableError:
            if not self.recorded:
                raise
        self.recorded = False
        self.capabilities = self._inner.capabilities = await self._probe_anew()
        return check(self.capabilities)

    async def _probe_anew(self) -> Capabilities:
        found = await self._inner.probe()
        self._responses.record_capabilities(self.model, self.address, found)
        return found

    async def ask(self, request: Request) -> Response:
        name = key(self.model, request)
        if name in self._in_flight:
            return await asyncio.shield(self._in_flight[name])
        if not self._fresh or name in self._asked:
            response = self._responses.find(name, request)
            if response is not None:
                self.meter.stored += 1
                self._settle(self._deferred.pop(name, None), self.cost(response.usage))
                return response
        waiting = self._in_flight[name] = asyncio.get_running_loop().create_future()
        try:
            async with self._slots:  # what waits may still be called off, and reserves nothing
                response = await self._send(name, request)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                waiting.cancel()
            else:
                waiting.set_exception(error)
                waiting.exception()  # no complaint where nobody else waits
            raise
        else:
            waiting.set_result(response)
            return response
        finally:
            del self._in_flight[name]

    async def _send(self, name: str, request: Request) -> Response:
        reserved = self._reserve(name, request)
        spent: float | None = 0.0
        try:
            response = await self._inner.ask(request)
            spent = self.cost(response.usage)
        except Deferred:  # it will be asked and paid for, only not by us
            if reserved is not None:
                self._deferred[name] = reserved
            reserved = None
            raise
        except LLMError as error:
            usage = Usage()
            if isinstance(error, UselessAnswerError):
                usage = error.usage
                spent = self.cost(usage)
            self.meter.failed += 1
            self.meter.add(usage, spent)
            await self._responses.database.write(
                self._responses.add_failure, self.model, self._purpose, usage, spent
            )
            raise
        finally:
            self._settle(reserved, spent)
        await self._responses.database.write(
            self._responses.add, name, self.model, self._purpose, response, spent
        )
        if self._fresh:
            self._asked.add(name)
        self.meter.answered += 1
        self.meter.add(response.usage, spent)
        return response

    def _reserve(self, name: str, request: Request) -> float | None:
        if self._budget is None or name in self._deferred:
            return self._deferred.pop(name, None)
        answer = most_tokens(request, self._inner.capabilities or Capabilities())
        return self._budget.reserve(self.cost(Usage(estimate(request), answer)) or 0.0)

    def _settle(self, reserved: float | None, spent: float | None) -> None:
        if self._budget is not None and reserved is not None:
            self._budget.settle(reserved, spent or 0.0)

    def cost(self, usage: Usage) -> float | None:
        """What a response of this model costs, in US dollars; None if its price is unknown."""
        return None if self._price is None else cost(usage, self._price)
