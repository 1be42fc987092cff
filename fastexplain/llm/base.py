"""The one small interface through which explainers and simulators reach a language model."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from contextlib import AbstractAsyncContextManager
from functools import cached_property

from fastexplain.llm.requests import Capabilities, Request, Response, Trial


class Connection(AbstractAsyncContextManager["Connection"]):
    """A language model that answers requests. A connection serves one event loop.

    Attributes:
        model: the model's name, as it is stored with what the model says.
        address: where it is reached: a URL without credentials, or "local".
        concurrency: requests worth having in flight at once; more of them wait inside.
        capabilities: what the model can do there; None until it was probed, or set from a
            former probe's record.
        trial: makes a simulator's prompt, on which a probe tries whether enough is listed at the
            places of one; None: that isn't tried.
        price_factor: what a token costs here, beside the model's usual price.
        retried: requests that had to be sent once more, so far.
    """

    model: str
    address: str
    concurrency: int
    capabilities: Capabilities | None = None
    trial: Trial | None = None
    price_factor: float = 1.0
    retried: int = 0

    @cached_property
    def slots(self) -> asyncio.Semaphore:
        """`concurrency` places, each held by a request until whoever asks has stored its answer."""
        return asyncio.Semaphore(self.concurrency)

    @abstractmethod
    async def probe(self) -> Capabilities:
        """Find out with a few small requests what the model can do; `capabilities` is then set.

        Raises:
            UnusableError: the model can't be reached, or answers nothing that we can ask.
        """

    @abstractmethod
    async def ask(self, request: Request) -> Response:
        """Have one request answered: a `Chat` by an `Answer`, a `Reading` by a `Distribution`.

        Retries what is worth it. Many calls may run at once; one that fails leaves the others be.

        Raises:
            UnusableError: no request at all can be answered: no server, a refused key, no such
                model.
            LLMError: this request failed for good; the message says why.
        """

    async def close(self) -> None:
        """Let go of the model; the connection is of no use afterwards."""
        return

    async def __aexit__(self, *error: object) -> None:
        await self.close()
