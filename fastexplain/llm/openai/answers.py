"""What a server's answer to a chat says: whether it is finished, and its text without thoughts."""

from __future__ import annotations

import json
from typing import Any

from fastexplain.errors import LLMError
from fastexplain.llm.openai import listings
from fastexplain.llm.openai.thoughts import answer_in, has_thoughts
from fastexplain.llm.requests import Answer, Chat, Usage, whole_lines

# Finish reasons of answers that are whole, in small letters: of OpenAI and most servers (none or
# "" in some); of Anthropic and Bedrock; of Together, of TGI, of Cohere.
FINISHED = frozenset({"stop", "", "end_turn", "stop_sequence", "eos", "eos_token", "complete"})

# Of those that ran into the limit on tokens: of OpenAI; Anthropic, Gemini and Cohere; Mistral.
CUT_OFF = frozenset({"length", "max_tokens", "max_output_tokens", "model_length"})

# Characters that are passed on of what a server or a model says.
_LONGEST_QUOTE = 200

# Of a response without choices, what is no reason why it has none.
_NO_REASONS = ("id", "object", "created", "model", "usage", "choices", "system_fingerprint")


def choice(data: dict[str, Any]) -> dict[str, Any]:
    """The first choice of a response. Raises LLMError if there is none."""
    choices = data.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(first, dict):
        said = {name: value for name, value in data.items() if value and name not in _NO_REASONS}
        has = f" but this: {quoted(json.dumps(said, ensure_ascii=False))}" if said else ""
        raise LLMError(f"the server's answer has no choices{has}")
    return first


def finish_of(given: dict[str, Any]) -> str:
    """Why a choice ended, in small letters; "" where the server does not say."""
    reason = given.get("finish_reason")
    return "" if reason is None else str(reason).strip().lower()


def quoted(text: object) -> str:
    """The beginning of what somebody else wrote, on one line."""
    return " ".join(str(text).split())[:_LONGEST_QUOTE]


def thinks(data: dict[str, Any]) -> bool:
    """Whether a model is seen to have thought before it answered a chat."""
    given = choice(data)
    message = _message(given)
    text, apart = _content(message)
    return apart or has_thoughts(text or "") or (not text and finish_of(given) in CUT_OFF)


def answer(request: Chat, given: dict[str, Any], thinks: bool, spent: Usage) -> Answer:
    """The answer to a chat, from the choice that has it.

    Args:
        thinks: whether the model is known to think.

    Raises:
        LLMError: it is refused, withheld, empty, or not finished. Of one that was cut off the lines
            before the last are whole; all of it is kept where a reader goes by places in it.
    """
    message = _message(given)
    if not message:
        raise LLMError("the answer has no message")
    if refusal := message.get("refusal"):
        raise LLMError(f"the model refuses to answer: {quoted(refusal)}")
    finish = finish_of(given)
    cut_off = finish in CUT_OFF
    if finish == "content_filter":
        raise LLMError("the answer was withheld by a content filter")
    if not cut_off and finish not in FINISHED:
        raise LLMError(f"the answer is not finished: its finish reason is '{quoted(finish)}'")
    content, apart = _content(message)
    if content is None:
        if cut_off:
            raise LLMError("the answer was cut off before it began, perhaps among its thoughts")
        raise LLMError("the answer has no text")
    text = content if apart else answer_in(content, thinks=thinks)
    if cut_off and thinks and not apart and text == content:
        text = None  # its thoughts began in the prompt, and have not ended
    if cut_off and text and not (request.integers or request.schema):
        text = whole_lines(text, request.max_tokens)
    if not text and cut_off:
        raise LLMError("the answer was cut off before it began, perhaps among its thoughts")
    if text is None:
        raise LLMError("the model ended among its thoughts, without an answer")
    if not text.strip():
        raise LLMError("the answer is empty")
    tokens = listings.spoken(given) if request.integers else ()
    if tokens and (text != content or apart):
        tokens = listings.last(tokens, text)
    return Answer(text, "length" if cut_off else "stop", tokens, spent)


def _message(given: dict[str, Any]) -> dict[str, Any]:
    message = given.get("message")
    return message if isinstance(message, dict) else {}


def _content(message: dict[str, Any]) -> tuple[str | None, bool]:
    """The text of a message, if it has any, and whether thoughts come apart from it."""
    content = message.get("content")
    apart = bool(message.get("reasoning") or message.get("reasoning_content"))
    if isinstance(content, list):  # of parts, as Mistral's models that think give it
        parts = [part if isinstance(part, dict) else {"text": part} for part in content]
        texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
        apart |= len(texts) < len(parts)
        content = "".join(texts) if texts else None
    return content if isinstance(content, str) else None, apart
