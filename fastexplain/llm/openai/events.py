"""Responses that come as a stream of events, from gateways that stream whatever they are asked."""

from __future__ import annotations

import re
from typing import Any

import jiter

# Of these a chunk holds the next piece; of all else its newest state.
_TEXTS = ("content", "text", "reasoning", "reasoning_content", "refusal")

_STREAM = re.compile(rb"\s*(?:data|event|id|retry)?:")
_BLANK_LINE = re.compile(r"\r?\n\r?\n|\r\r")


def is_stream(content: bytes) -> bool:
    """Whether these are server-sent events."""
    return _STREAM.match(content) is not None


def joined(content: bytes) -> dict[str, Any] | None:
    """The response that the chunks of a stream make up; None if it is not whole."""
    whole: dict[str, Any] = {}
    done = False
    for event in _BLANK_LINE.split(content.decode("utf-8", "replace")):
        lines = [line[5:].strip() for line in re.split("\r?\n", event) if line.startswith("data:")]
        if lines == ["[DONE]"]:
            done = True
        elif lines:
            try:
                chunk = jiter.from_json("\n".join(lines).encode())
            except ValueError:
                return None
            if not isinstance(chunk, dict):
                return None
            whole = _with(whole, _as_response(chunk))
    choices = whole.get("choices") or [{}]
    ended = done or whole.get("error") or choices[0].get("finish_reason") is not None
    return whole if ended else None


def _as_response(chunk: dict[str, Any]) -> dict[str, Any]:
    """A chunk in the form of a whole response: a message in place of a delta."""
    choices = chunk.get("choices")
    if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
        return {name: value for name, value in chunk.items() if name != "choices"}
    first = dict(choices[0])
    if "delta" in first:
        first["message"] = first.pop("delta")
    return chunk | {"choices": [first]}


def _with(old: Any, new: Any, name: str = "") -> Any:
    """What was there before, and what a chunk adds to it."""
    if new is None:
        return old
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {key: _with(old.get(key), value, key) for key, value in new.items()}
    if isinstance(old, list) and isinstance(new, list):
        return [_with(old[0], new[0])] if name == "choices" else old + new
    if name in _TEXTS and isinstance(old, str) and isinstance(new, str):
        return old + new
    return new
