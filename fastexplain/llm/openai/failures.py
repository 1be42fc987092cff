"""The ways in which a request to a server fails, besides an answer that is of no use."""

from __future__ import annotations

from fastexplain.errors import LLMError


class Refused(LLMError):
    """A server won't have this request: another try would be refused as well.

    Attributes:
        status: of the HTTP response, 300 to 499.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Passing(LLMError):
    """A request failed in a way that may pass; it is raised again when all tries have failed.

    Attributes:
        pause: seconds for which the server wants to be left alone.
        limited: the server has not looked at the request, being asked too much.
        absent: no server was reached.
    """

    def __init__(
        self, message: str, *, pause: float = 0.0, limited: bool = False, absent: bool = False
    ) -> None:
        super().__init__(message)
        self.pause, self.limited, self.absent = pause, limited, absent


class Broken(Passing):
    """A server failed at a request."""


class Unanswered(Passing):
    """A server was out of reach, late, or asked too much to look at a request."""
