"""Requests and responses as OpenAI's API writes them, and as the servers that follow it do.

A `Reading` becomes a completion that echoes its prompt with log-probabilities. Which of the echoed
tokens stand at the places follows from the prompt's own construction: the tokens make up the text
again, and in it the places are known. Servers differ in what they make of characters that a
tokenizer cuts into several tokens (nothing, U+FFFD for each part, or the whole character with the
last one), of spaces before words and of what a tokenizer puts before a prompt, and in the offsets
that they give. So tokens and text are compared in what all of them keep: ASCII without spaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jiter
import numpy as np

from fastexplain.errors import LLMError
from fastexplain.llm.requests import (
    Answer,
    Capabilities,
    Chat,
    Distribution,
    Reading,
    Request,
    Response,
    Token,
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

# What a tokenizer may put before a prompt, in tokens.
_MOST_BEFORE = 3

# Characters of a refusal that are passed on.
_LONGEST_REFUSAL = 100

# Between tokens that are joined; no prompt holds it.
_END = "\0"


class Listing(NamedTuple):
    """Tokens of a response, and for each the alternatives that are listed, by their text."""

    tokens: list[str]
    listed: list[dict[str, float] | None]


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
        rows = _rows(request, data, capabilities)
        return Distribution(_log_probabilities(rows, request.largest), spent)
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
        result["response_format"] = _format(request.schema, capabilities.schema)
    return result


def _format(schema: dict[str, Any], form: str) -> dict[str, Any]:
    if form == "json_schema":
        named = {"name": "answer", "strict": True, "schema": schema}
        return {"type": "json_schema", "json_schema": named}
    # Beside OpenAI's own form, that of llama-cpp-python and of several services.
    return {"type": "json_object"} | ({"schema": schema} if form == "json_object_schema" else {})


def _reading_body(request: Reading, model: str, capabilities: Capabilities) -> dict[str, Any]:
    if request.largest > capabilities.largest:
        raise LLMError(f"'{model}' has no single token for {request.largest} behind a tab")
    if not request.filler and capabilities.digits:
        digits = list(capabilities.digits[: request.largest + 1])
        return completion(request.text, model, logprobs=1, logprob_token_ids=digits)
    listed = capabilities.prompt_logprobs if request.filler else capabilities.next_logprobs
    if not listed:
        raise LLMError(f"no log-probabilities come with the completions of '{model}'")
    echo = {"echo": True} if request.filler else {}
    return completion(request.text, model, logprobs=listed, **echo)


def completion(prompt: str, model: str, **more: Any) -> dict[str, Any]:
    """The JSON object that asks what comes behind a text."""
    # One token is written even if the prompt's are wanted: 0 is refused by some servers, and
    # means no limit to llama-cpp-python.
    return {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0.0, **more}


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
    tokens = _tokens(given) if request.integers else ()
    if tokens and (text != content or apart):
        tokens = _last(tokens, text)
    return Answer(text, "length" if cut_off else "stop", tokens, spent)


def _has_thoughts_apart(message: dict[str, Any]) -> bool:
    """Whether the server gives a model's thoughts apart from its answer."""
    return bool(message.get("reasoning") or message.get("reasoning_content"))


def _begins_with_thoughts(text: str) -> bool:
    return text.lstrip().startswith(_THOUGHTS_BEGIN)


def _last(tokens: tuple[Token, ...], text: str) -> tuple[Token, ...]:
    """Those of the tokens that make up the answer's text, without the thoughts before it."""
    ends = np.cumsum([len(_kept(token.text)) for token in tokens])
    start = _kept("".join(token.text for token in tokens)).rfind(_kept(text))
    if start < 0:
        raise LLMError("the log-probabilities are not of the answer's tokens")
    return tokens[int(np.searchsorted(ends, start, side="right")) :]


def _tokens(given: dict[str, Any]) -> tuple[Token, ...]:
    """The tokens of a chat's answer with their alternatives."""
    content = (_object(given.get("logprobs")) or {}).get("content")
    if not content or not isinstance(content, list):
        raise LLMError("the answer came without log-probabilities")
    try:
        return tuple(Token(entry["token"], _integers(entry)) for entry in content)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        raise LLMError("the answer's log-probabilities are incomplete or no numbers") from None


def _integers(entry: dict[str, Any]) -> dict[str, float]:
    """Those of the alternatives to a token, and it itself, that are an integer."""
    result: dict[str, float] = {}
    for alternative in entry.get("top_logprobs") or ():
        text = alternative["token"]
        if _is_integer(text):
            value = _number(alternative["logprob"])
            # Of tokens that a server writes alike, we can't tell which is which: both are it.
            result[text] = float(np.logaddexp(result[text], value)) if text in result else value
    if _is_integer(entry["token"]) and entry["token"] not in result:
        result[entry["token"]] = _number(entry["logprob"])
    return result


@lru_cache(maxsize=2**16)
def _is_integer(text: str) -> bool:
    return text.isascii() and text.strip().isdigit()


def _number(value: Any) -> float:
    """A log-probability. Raises ValueError or TypeError if it is none."""
    number = float(value)
    if not number < np.inf:  # nor NaN
        raise ValueError
    return number


def _rows(
    request: Reading, data: dict[str, Any], capabilities: Capabilities
) -> list[dict[str, float]]:
    """The alternatives at each of a reading's places; none where no token of its own stands."""
    if not request.filler:
        return [next_token(data)]
    tokens, listed = listing(choice(data))
    shift = capabilities.shift
    rows = [
        {} if index is None else listed[index - shift] if index >= shift else None
        for index in indices(tokens, request.text, request.places)
    ]
    if None in rows:
        raise LLMError("the server lists no alternatives at one of the prompt's places")
    return [row for row in rows if row is not None]


def _log_probabilities(rows: list[dict[str, float]], largest: int) -> np.ndarray:
    """Float32 `[places, largest + 1]`, from the alternatives at each place."""
    names = [str(value) for value in range(largest + 1)]
    try:
        result = np.array([[row.get(name, -np.inf) for name in names] for row in rows], float)
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise LLMError("the log-probabilities that the server lists are no numbers") from None
    if not (result < np.inf).all():
        raise LLMError("the log-probabilities that the server lists are NaN or infinite")
    result[(result == -np.inf).all(axis=1)] = np.nan
    with np.errstate(over="ignore"):
        return result.astype(np.float32)


def next_token(data: dict[str, Any]) -> dict[str, float]:
    """The alternatives that are listed to the one token that a server wrote behind a text."""
    tokens, listed = listing(choice(data))
    if len(tokens) != 1 or listed[0] is None:
        raise LLMError(f"the server lists {len(tokens)} tokens behind the text, not one")
    return listed[0]


def listing(given: dict[str, Any]) -> Listing:
    """The tokens of a choice with their alternatives, in OpenAI's form for completions or chats.

    Raises:
        LLMError: there are none, or the lists do not fit together.
    """
    logprobs = _object(given.get("logprobs"))
    if logprobs is None:
        raise LLMError("the answer came without log-probabilities")
    content = logprobs.get("content")
    if isinstance(content, list):  # for completions too: llama.cpp's own server
        try:
            return Listing([entry["token"] for entry in content], [_listed(e) for e in content])
        except (AttributeError, KeyError, TypeError):
            raise LLMError("the answer's log-probabilities are incomplete") from None
    tokens, listed = logprobs.get("tokens"), logprobs.get("top_logprobs")
    if not isinstance(tokens, list) or not isinstance(listed, list) or not tokens:
        raise LLMError("the answer came without log-probabilities")
    if len(tokens) != len(listed):
        raise LLMError(f"{len(listed)} lists of alternatives came with {len(tokens)} tokens")
    return Listing(tokens, listed)


def _listed(entry: dict[str, Any]) -> dict[str, float]:
    """The alternatives to a token in the form for chats; of those alike the likeliest."""
    result: dict[str, float] = {}
    for alternative in entry.get("top_logprobs") or ():
        result.setdefault(alternative["token"], alternative["logprob"])
    return result


def indices(tokens: Sequence[str], text: str, places: Sequence[int]) -> list[int | None]:
    """Which of the tokens of an echoed text begin at places in it, each behind a tab.

    Args:
        tokens: of the text, and what precedes or follows it.
        places: offsets in `text`, in characters and ascending.

    Returns:
        For each place the index of its token; None where a token holds both the tab and what
        stands behind.

    Raises:
        LLMError: the tokens are not those of the text.
    """
    if not all(isinstance(token, str) for token in tokens):
        raise LLMError("the tokens that the server echoes are no text")
    joined = _kept(_END.join(tokens))
    ends = np.flatnonzero(np.frombuffer(joined, np.uint8) == 0)
    starts = np.concatenate([[0], ends - np.arange(len(ends))])
    whole, wanted = joined.replace(_END.encode(), b""), _kept(text)
    before = next((s for s in starts[: _MOST_BEFORE + 1] if whole.startswith(wanted, s)), None)
    if before is None or len(starts) != len(tokens):
        raise LLMError("the tokens that the server echoes are not those of the prompt")
    bounds = [0, *places]
    pieces = (text[start:end] for start, end in zip(bounds, places, strict=False))
    offsets = before + np.cumsum([len(_kept(piece)) for piece in pieces])
    # The last of those that begin there: others before it are empty.
    found = np.searchsorted(starts, offsets, side="right") - 1
    begins = starts[found] == offsets
    return [
        index if begin and tokens[index - 1].endswith("\t") else None
        for index, begin in zip(found.tolist(), begins.tolist(), strict=True)
    ]


def _kept(text: str) -> bytes:
    """What all servers keep of a text."""
    return text.encode("ascii", "ignore").replace(b" ", b"")


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
