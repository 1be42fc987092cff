"""A connection that gives what the store has, and asks nothing."""

from __future__ import annotations

from fastexplain.errors import LLMError
from fastexplain.ledger.responses import Responses
from fastexplain.llm.base import Connection
from fastexplain.llm.requests import Capabilities, Request, Response, key


class Recorded(Connection):
    """What a model has answered before.

    Args:
        model: its name.
        capabilities: what it could do when it was asked, as far as the requests depend on that.
        responses: the store, which is only read.
    """

    address = "the run's database"
    concurrency = 1

    def __init__(self, model: str, capabilities: Capabilities, responses: Responses) -> None:
        self.model, self.capabilities = model, capabilities
        self._responses = responses

    async def probe(self) -> Capabilities:
        assert self.capabilities is not None
        return self.capabilities

    async def ask(self, request: Request) -> Response:
        """The stored response. Raises LLMError where there is none."""
        found = self.find(request)
        if found is None:
            raise LLMError(f"no answer of '{self.model}' to this is stored")
        return found

    def find(self, request: Request) -> Response | None:
        """The stored response, outside of any event loop; None where there is none."""
        return self._responses.find(key(self.model, request), request)
