"""Requests and responses as OpenAI's API writes them, and as the servers that follow it do.

A `Reading` becomes a completion that echoes its prompt with log-probabilities; how these are read
is in `listings.py`, and how chats' answers are in `answers.py`. Where a server (vLLM) lists tokens
by their ids, it becomes a text up to each of the places instead, all in one request: an echo lists
the likeliest tokens only, and the integers that are not among them are what tells one token from
another. With SmolLM2, "unknown" and 20 alternatives, values correlate at .44 with those of the
whole distribution, with 400 at .95.
"""

from __future__ import annotations

import json
from typing import Any

import jiter

from fastexplain.errors import LLMError
from fastexplain.llm.openai import events, failures, listings
from fastexplain.llm.openai.answers import answer, choice, quoted, thinks
from fastexplain.llm.requests import (
    Capabilities,
    Chat,
    Distribution,
    Reading,
    Request,
    Response,
    Usage,
    UselessAnswerError,
    without_system,
)
from fastexplain.llm.tokens import count, estimate

__all__ = ["at_most", "body", "choice", "completion", "parse", "read", "thinks"]

# Tokens left to a model that thinks before it answers, besides those of the answer: all servers
# count its thoughts too.
THOUGHTS = 4096

# More than any request takes: the largest number that JSON holds exactly.
_MOST_TOKENS = 2**53


def body(request: Request, model: str, capabilities: Capabilities) -> tuple[str, dict[str, Any]]:
    """What to post for a request.

    Returns:
        The path below the API's address, such as "/chat/completions", and the JSON object.

    Raises:
        LLMError: the request wants what the connection can't do.
    """
    if isinstance(request, Chat):
        return "/chat/completions", _chat_body(request, model, capabilities)
    return "/completions", _reading_body(request, model, capabilities)


def read(request: Request, data: dict[str, Any], capabilities: Capabilities) -> Response:
    """The response to a request from the JSON object that the server sent.

    Where the server does not count tokens, it is taken to have used as many as it might.

    Raises:
        UselessAnswerError: it is malformed, incomplete, withheld, empty, or an error.
    """
    spent = _usage(data)
    if data.get("choices") and not spent.prompt_tokens:
        most = at_most(request, capabilities)
        written = spent.completion_tokens or most.completion_tokens
        spent = Usage(most.prompt_tokens, written, spent.cached_tokens)
    try:
        if found := failures.reported(data):
            raise LLMError(f"the server reports an error: {quoted(found[1])}")
        if isinstance(request, Reading) and capabilities.digits:
            choices = _choices(data, len(request.lines))
            return Distribution(listings.behind(choices, request.largest), spent)
        given = choice(data)
        if isinstance(request, Chat):
            return answer(request, given, capabilities.thinks, spent)
        return Distribution(listings.at_places(request, given, capabilities.shift), spent)
    except LLMError as error:
        raise UselessAnswerError(str(error), spent) from error


def parse(content: bytes) -> Any:
    """What JSON says, be it in a stream of events; None where it can't be read.

    An echoed prompt with its alternatives is 1.5 MB: 25 ms for the standard library, 7 for jiter.
    """
    try:
        return jiter.from_json(content)
    except ValueError:
        if events.is_stream(content):
            return events.joined(content)
    try:  # A byte order mark, halves of characters and control characters, which jiter refuses.
        loose = json.loads(content.decode("utf-8-sig", "replace"), strict=False)
        return jiter.from_json(json.dumps(loose, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def at_most(request: Request, capabilities: Capabilities) -> Usage:
    """The tokens of a request's prompt, roughly, and those that may be written in answer."""
    if isinstance(request, Chat):
        return Usage(estimate(request), _most_written(request, capabilities))
    if capabilities.digits:
        return Usage(sum(map(count, _texts(request))), len(request.lines))
    return Usage(estimate(request), 1)


def _most_written(chat: Chat, capabilities: Capabilities) -> int:
    return chat.max_tokens + (THOUGHTS if capabilities.thinks else 0)


def _chat_body(request: Chat, model: str, capabilities: Capabilities) -> dict[str, Any]:
    messages = list(request.messages)
    result: dict[str, Any] = {
        "model": model,
        "messages": messages if capabilities.system else without_system(messages),
        capabilities.limit: _most_written(request, capabilities),
    }
    result |= {name: getattr(request, name) for name in capabilities.sampling}
    if request.integers:
        if not capabilities.chat_logprobs:
            raise LLMError(f"no log-probabilities come with the chats of '{model}'")
        result |= {"logprobs": True, "top_logprobs": capabilities.chat_logprobs}
    if request.schema is not None and capabilities.schema is not None:
        named = {"name": "answer", "strict": True, "schema": request.schema}
        result["response_format"] = {
            "json_schema": {"type": "json_schema", "json_schema": named},
            # The form of llama-cpp-python and of several services.
            "json_object_schema": {"type": "json_object", "schema": request.schema},
            "json_object": {"type": "json_object"},
        }[capabilities.schema]
    return result


def _reading_body(request: Reading, model: str, capabilities: Capabilities) -> dict[str, Any]:
    if request.largest > capabilities.largest:
        raise LLMError(f"'{model}' has no single token for {request.largest} behind a tab")
    if capabilities.digits:
        # Where the server keeps what it has read of a text, as vLLM does, the lines alone are new.
        digits = list(capabilities.digits[: request.largest + 1])
        return completion(_texts(request), model, logprobs=1, logprob_token_ids=digits)
    listed = capabilities.prompt_logprobs if request.filler else capabilities.next_logprobs
    if not listed:
        raise LLMError(f"no log-probabilities come with the completions of '{model}'")
    return completion(request.text, model, logprobs=listed, echo=bool(request.filler))


def _texts(reading: Reading) -> list[str]:
    """A reading's text up to each of its places."""
    return [reading.text[:place] for place in reading.places]


def completion(
    prompt: str | list[str], model: str, *, echo: bool = False, **more: Any
) -> dict[str, Any]:
    """The JSON object that asks what comes behind a text, or behind each of several."""
    # One token is written even if the prompt's are wanted: 0 is refused by some servers, and
    # means no limit to llama-cpp-python.
    fields = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0.0, **more}
    return fields | ({"echo": True} if echo else {})


def _choices(data: dict[str, Any], texts: int) -> list[dict[str, Any]]:
    """The choices that answer so many texts, in their order."""
    choice(data)  # names what is there in place of choices
    try:
        found = {each["index"]: each for each in data["choices"]}
        return [found[index] for index in range(texts)]
    except (KeyError, TypeError):
        raise LLMError("the server does not answer each of the texts that it was asked") from None


def _usage(data: dict[str, Any]) -> Usage:
    """What a response says that it took; 0 where it says nothing that can be."""
    given = _object(data.get("usage"))
    details = _object(given.get("prompt_tokens_details"))
    counts = (given.get("prompt_tokens"), given.get("completion_tokens"))
    return Usage(*map(_count, (*counts, details.get("cached_tokens"))))


def _count(value: Any) -> int:
    """A number of tokens; 0 where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        return 0
    return int(value) if 0 <= value <= _MOST_TOKENS else 0


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
