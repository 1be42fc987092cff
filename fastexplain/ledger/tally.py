"""What the requests of one piece of work come to, whoever sends them and whenever."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from fastexplain.llm.requests import Usage


@dataclass
class Tally:
    """Requests that were answered, counted alike whether the answer was in the store before or not.

    Attributes:
        requests: how many.
        prompt_tokens, completion_tokens: of their answers.
        cost: of these, in US dollars; None if a price is not known.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = 0.0

    def add(self, usage: Usage, cost: float | None) -> None:
        """Count one answer."""
        self.requests += 1
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens
        self.cost = None if self.cost is None or cost is None else self.cost + cost

    def data(self) -> dict[str, Any]:
        """As stored with an explanation."""
        return dict(vars(self))


_current: ContextVar[tuple[Tally, ...]] = ContextVar("tallies", default=())


@contextlib.contextmanager
def tallied() -> Iterator[Tally]:
    """Count the answers that the calling task gets, and those of tasks that it starts.

    Inside of another count they are part of that too.
    """
    found = Tally()
    token = _current.set((*_current.get(), found))
    try:
        yield found
    finally:
        _current.reset(token)


def count(usage: Usage, cost: float | None) -> None:
    """Count an answer for all who count."""
    for own in _current.get():
        own.add(usage, cost)
