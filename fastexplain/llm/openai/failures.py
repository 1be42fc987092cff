"""The ways in which a request to a server fails, besides an answer that is of no use."""

from __future__ import annotations

from typing import Any

from fastexplain.errors import LLMError
from fastexplain.llm.openai.answers import finish_of

# Statuses of errors that are reported by a name alone: OpenAI's, Anthropic's and Google's.
_NAMED = {
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "resource_exhausted": 429,
    "insufficient_quota": 429,
    "server_error": 500,
    "internal_error": 500,
    "internal_server_error": 500,
    "api_error": 500,
    "internal": 500,
    "unavailable": 503,
    "service_unavailable": 503,
    "timeout_error": 504,
    "deadline_exceeded": 504,
    "overloaded_error": 529,
}

# Finish reasons of requests that the server gave up: of OpenRouter and vLLM, vLLM and SGLang,
# Zhipu, DeepSeek.
_GIVEN_UP = ("error", "abort", "network_error", "insufficient_system_resource")


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


def reported(data: Any) -> tuple[int, Any] | None:
    """The error that the body of a response tells of, beside its choices or in one of them.

    Returns:
        As what HTTP status it counts, and the error; None if there is none.
    """
    if isinstance(data, list) and len(data) == 1:  # so Google writes errors
        [data] = data
    if not isinstance(data, dict):
        return None
    if error := data.get("error"):
        return _status(error), error
    choices = data.get("choices")
    for given in choices if isinstance(choices, list) else ():
        if not isinstance(given, dict):
            continue
        if error := given.get("error"):
            return _status(error), error
        if (finish := finish_of(given)) in _GIVEN_UP:
            return 500, f"the answer's finish reason is '{finish}'"
    return None


def _status(error: Any) -> int:
    """The HTTP status that an error stands for: 400 where it does not say."""
    fields = error if isinstance(error, dict) else {}
    for name in ("code", "status", "status_code", "type"):
        value = str(fields.get(name)).lower()
        if value in _NAMED:
            return _NAMED[value]
        if value.isdecimal() and len(value) == 3 and 400 <= int(value) < 600:
            return int(value)
    return 400
