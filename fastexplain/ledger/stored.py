"""A connection whose responses are kept: nothing that was answered is asked again."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TypeVar

from fastexplain.errors import Deferred, LLMError, UnusableError
from fastexplain.ledger import tally
from fastexplain.ledger.budget import Budget
from fastexplain.ledger.prices import FREE, Price, cost
from fastexplain.ledger.responses import PendingRequest, Responses
from fastexplain.llm.base import Connection
from fastexplain.llm.openai.wire import at_most
from fastexplain.llm.requests import Capabilities, Request, Response, Usage, key

_T = TypeVar("_T")

# Seconds between two looks at whether another process has its answer: at first, and at the most.
_FIRST_WAIT, _LONGEST_WAIT = 0.05, 1.0

# Seconds of waiting for another process behind which the user is told of it.
_TELL_AFTER = 10.0


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

    Requests that are alike and asked at the same time are sent once, by whatever process: the
    others wait for its answer, and ask themselves if it ends without one. A response is stored
    before anybody gets it, and before its place among the `concurrency` requests in flight is free.
    What was in flight when the command ended is asked again by the next one.

    Args:
        inner: reaches the model. It is closed by whoever opened it.
        responses: the store.
        purpose: "explanation", "simulation" or a scorer's name, for the ledger and for batches.
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
        self._told = False

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
        before = self._responses.capabilities(self.model, self.address)
        anew = self._fresh or self.address == "local"
        if self._inner.capabilities is None and before is not None and not anew:
            with contextlib.suppress(UnusableError):
                result = check(before)
                self.capabilities = self._inner.capabilities = before
                return result
        if self._inner.capabilities is None:
            async with self._claimed(f"capabilities of {self.model} at {self.address}"):
                found = self._responses.capabilities(self.model, self.address)
                if found in (None, before) or self.address == "local":
                    found = await self._inner.probe()
                    self._responses.record_capabilities(self.model, self.address, found)
                self._inner.capabilities = found
        self.capabilities = self._inner.capabilities
        return check(self.capabilities)

    async def ask(self, request: Request) -> Response:
        response = await self._response(request)
        tally.count(response.usage, cost(response.usage, self._price))
        return response

    async def _response(self, request: Request) -> Response:
        name = key(self.model, request)
        if name in self._in_flight:
            return await asyncio.shield(self._in_flight[name])
        anew = self._fresh and name not in self._asked
        if not anew and (response := self._find(name, request)) is not None:
            return response
        self._in_flight[name] = asyncio.create_task(self._send(name, request, anew))
        try:
            return await self._in_flight[name]
        finally:
            del self._in_flight[name]

    def _find(self, name: str, request: Request) -> Response | None:
        response = self._responses.find(name, request)
        if response is not None:
            self.meter.stored += 1
            if name in self._deferred:
                spent = cost(response.usage, self._price) or 0.0
                self._budget.settle(self._deferred.pop(name), spent)
        return response

    @contextlib.asynccontextmanager
    async def _claimed(self, name: str) -> AsyncIterator[None]:
        """Hold a place in flight, and a claim on a name as soon as no other process has it."""
        wait = waited = 0.0
        while True:
            async with self._inner.slots:  # what waits may still be called off
                if self._responses.claims.claim(name):
                    try:
                        yield
                    finally:
                        self._responses.claims.release(name)
                    return
            wait = min(max(_FIRST_WAIT, 2 * wait), _LONGEST_WAIT)
            await asyncio.sleep(wait)
            self._budget.check_interrupted()
            waited += wait
            if waited >= _TELL_AFTER and not self._told:
                self._told = True
                warnings.warn(
                    "another command on this run is asking the same; this one waits for its "
                    "answers, and goes on by itself if that one ends",
                    stacklevel=2,
                )

    async def _send(self, name: str, request: Request, anew: bool) -> Response:
        """Have a request answered, unless another process has it answered first.

        Args:
            anew: whatever there is in the store.
        """
        async with self._claimed(name):
            if not anew and (found := self._find(name, request)) is not None:
                return found
            if name in self._deferred:
                reserved = self._deferred.pop(name)
            else:
                reserved = self._budget.reserve(self._most(request))
            try:
                response = await self._inner.ask(request)
            except Deferred:  # it will be asked and paid for, only not by us
                pending = PendingRequest(name, self.model, self._purpose, request)
                self._responses.add_pending([pending])
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

    def _most(self, request: Request) -> float:
        """The most that a request may cost, in US dollars, as far as that is known."""
        if self._price in (None, FREE):
            return 0.0
        most = at_most(request, self._inner.capabilities or Capabilities())
        return cost(most, self._price) or 0.0
