"""Requests and responses as OpenAI's API writes them, and as the servers that follow it do.

A `Reading` becomes a completion that echoes its prompt with log-probabilities; how these are read
is in `listings.py`.
"""

from __future__ import annotations

from typing import Any

import jiter

from fastexplain.errors import LLMError
from fastexplain.llm.openai import listings
from fastexplain.llm.requests import (
    Answer,
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
from fastexplain.llm.tokens import estimate

# Tokens left to a model that thinks before it answers, besides those of the answer: all servers
# count its thoughts too.
THOUGHTS = 4096

# Around the thoughts of models whose server leaves them in the answer; the first may be part of
# the prompt instead.
_THOUGHTS_BEGIN, _THOUGHTS_END = "<think>", "</think>"

# Characters of a refusal that are passed on.
_LONGEST_REFUSAL = 100


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
        UselessAnswerError: it is malformed, incomplete, withheld or empty.
    """
    spent = _usage(data)
    if not (spent.prompt_tokens or spent.completion_tokens):
        spent = Usage(estimate(request), most_tokens(request, capabilities))
    try:
        if isinstance(request, Chat):
            return _answer(request, data, capabilities.thinks, spent)
        found = listings.at_places(request, choice(data), capabilities.shift)
        return Distribution(found, spent)
    except LLMError as error:
        raise UselessAnswerError(str(error), spent) from error


def parse(content: bytes) -> Any:
    """What JSON says; None where it can't be read.

    An echoed prompt with its alternatives is 1.5 MB: 25 ms for the standard library, 7 for jiter.
    """
    try:
        return jiter.from_json(content)
    except ValueError:
        return None


def most_tokens(request: Request, capabilities: Capabilities) -> int:
    """The most tokens that may be written in answer to a request, and paid for."""
    if isinstance(request, Reading):
        return 1
    return request.max_tokens + (THOUGHTS if capabilities.thinks else 0)


def thinks(data: dict[str, Any]) -> bool:
    """Whether a model is seen to have thought before it answered a chat."""
    given = choice(data)
    message = _object(given.get("message")) or {}
    text = message.get("content") or ""
    cut_off = not text and given.get("finish_reason") == "length"
    tagged = _THOUGHTS_END in text or _begins_with_thoughts(text)
    return cut_off or tagged or _has_thoughts_apart(message)


def _chat_body(request: Chat, model: str, capabilities: Capabilities) -> dict[str, Any]:
    messages = list(request.messages)
    result: dict[str, Any] = {
        "model": model,
        "messages": messages if capabilities.system else without_system(messages),
        capabilities.limit: most_tokens(request, capabilities),
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
    listed = capabilities.prompt_logprobs if request.filler else capabilities.next_logprobs
    if not listed:
        raise LLMError(f"no log-probabilities come with the completions of '{model}'")
    return completion(request.text, model, logprobs=listed, echo=bool(request.filler))


def completion(prompt: str, model: str, *, echo: bool = False, **more: Any) -> dict[str, Any]:
    """The JSON object that asks what comes behind a text."""
    # One token is written even if the prompt's are wanted: 0 is refused by some servers, and
    # means no limit to llama-cpp-python.
    fields = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0.0, **more}
    return fields | ({"echo": True} if echo else {})


def _answer(request: Chat, data: dict[str, Any], thinks: bool, spent: Usage) -> Answer:
    given = choice(data)
    message = given.get("message")
    if not isinstance(message, dict):
        raise LLMError("the answer has no message")
    if refusal := message.get("refusal"):
        reason = " ".join(str(refusal).split())[:_LONGEST_REFUSAL]
        raise LLMError(f"the model refuses to answer: {reason}")
    if given.get("finish_reason") == "content_filter":
        raise LLMError("the answer was withheld by a content filter")
    cut_off = given.get("finish_reason") == "length"
    text = content = message.get("content")
    apart = _has_thoughts_apart(message)
    # Where a model is not known to think, an excerpt that it repeats may speak of `</think>`.
    if isinstance(content, str) and not apart and (thinks or _begins_with_thoughts(content)):
        _, end, answer = content.partition(_THOUGHTS_END)
        text = answer.lstrip() if end or cut_off else content
    if not text and cut_off:
        raise LLMError("the answer was cut off before it began, most likely among its thoughts")
    if not isinstance(text, str):
        raise LLMError("the answer has no text")
    if not text.strip():
        raise LLMError("the answer is empty")
    tokens = listings.spoken(given) if request.integers else ()
    if tokens and (text != content or apart):
        tokens = listings.last(tokens, text)
    return Answer(text, "length" if cut_off else "stop", tokens, spent)


def _has_thoughts_apart(message: dict[str, Any]) -> bool:
    """Whether the server gives a model's thoughts apart from its answer."""
    return bool(message.get("reasoning") or message.get("reasoning_content"))


def _begins_with_thoughts(text: str) -> bool:
    return text.lstrip().startswith(_THOUGHTS_BEGIN)


def choice(data: dict[str, Any]) -> dict[str, Any]:
    """The first choice of a response. Raises LLMError if there is none."""
    choices = data.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(first, dict):
        raise LLMError("the server's answer has no choices")
    return first


def _usage(data: dict[str, Any]) -> Usage:
    """What a response says that it took; 0 where it says nothing."""
    given = _object(data.get("usage")) or {}
    details = _object(given.get("prompt_tokens_details")) or {}
    counts = (given.get("prompt_tokens"), given.get("completion_tokens"))
    return Usage(*(n if isinstance(n, int) else 0 for n in (*counts, details.get("cached_tokens"))))


def _object(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None
