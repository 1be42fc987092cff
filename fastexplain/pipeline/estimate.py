"""What explaining would ask and cost, found by doing it all but sending anything.

The work runs over a scratch database in memory; a request whose response is stored gets that, any
other is counted and gets a stand-in. The stand-in for an explanation is as long as explanations
are, so that the simulations' prompts have their length.
"""

from __future__ import annotations

import numpy as np

from fastexplain.ledger.budget import Estimate
from fastexplain.ledger.prices import Price, cost
from fastexplain.ledger.responses import Responses
from fastexplain.llm.base import Connection
from fastexplain.llm.openai.wire import most_tokens
from fastexplain.llm.requests import (
    Answer,
    Capabilities,
    Chat,
    Distribution,
    Request,
    Response,
    Usage,
    key,
)
from fastexplain.llm.tokens import estimate

_STAND_IN = "words for things that people put on, and the places where one finds"


class Rehearsal(Connection):
    """A connection that counts what it would have to ask.

    Args:
        model, address, capabilities: of the connection that it stands for.
        responses: the run's store, which is read, never written.
        purpose: "explanation" or "simulation".
        price: of the model; None if unknown.
        total: what is counted is added here.
        fresh: take nothing from the store.
    """

    concurrency = 1

    def __init__(
        self,
        model: str,
        address: str,
        capabilities: Capabilities,
        responses: Responses,
        purpose: str,
        price: Price | None,
        total: Estimate,
        *,
        fresh: bool = False,
    ) -> None:
        self.model, self.address, self.capabilities = model, address, capabilities
        self._responses = responses
        self._purpose = purpose
        self._price = price
        self._total = total
        self._fresh = fresh
        self._seen: set[str] = set()

    async def probe(self) -> Capabilities:
        assert self.capabilities is not None
        return self.capabilities

    async def ask(self, request: Request) -> Response:
        name = key(self.model, request)
        found = None if self._fresh else self._responses.find(name, request)
        if found is not None:
            return found
        if name not in self._seen:
            self._seen.add(name)
            usage = Usage(estimate(request), most_tokens(request, await self.probe()))
            spent = None if self._price is None else cost(usage, self._price)
            self._total.add(self._purpose, usage, spent)
        if isinstance(request, Chat):
            # Its own for every neuron, so that simulations of shared excerpts differ.
            return Answer(f"{_STAND_IN} {name[:6]}", "stop")
        shape = (len(request.lines), request.largest + 1)
        return Distribution(np.zeros(shape, dtype=np.float32))
