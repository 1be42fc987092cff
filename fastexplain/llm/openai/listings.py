"""The log-probabilities that servers list, and which of them stand at the places of a text.

The tokens of an echoed prompt make up its text again, and in it the places are known. Servers
differ in what they make of characters that a tokenizer cuts into several tokens (nothing, U+FFFD
for each part, or the whole character with the last one), of spaces before words and of what a
tokenizer puts before a prompt, and in the offsets that they give. So tokens and text are compared
in what all of them keep: ASCII without spaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from fastexplain.errors import LLMError
from fastexplain.llm.requests import Reading, Token

# What a tokenizer may put before a prompt, in tokens.
_MOST_BEFORE = 3

# Between tokens that are joined; no prompt holds it.
_END = "\0"


class Listing(NamedTuple):
    """Tokens of a response, and for each the alternatives that are listed, by their text."""

    tokens: list[str]
    listed: list[dict[str, float] | None]


def listing(given: dict[str, Any]) -> Listing:
    """The tokens of a choice with their alternatives, in OpenAI's form for completions or chats.

    Raises:
        LLMError: there are none, or the lists do not fit together.
    """
    logprobs = given.get("logprobs")
    logprobs = logprobs if isinstance(logprobs, dict) else {}
    content = logprobs.get("content")
    if content and isinstance(content, list):  # for completions too: llama.cpp's own server
        try:
            return Listing([entry["token"] for entry in content], [_listed(e) for e in content])
        except (AttributeError, KeyError, TypeError):
            raise LLMError("the answer's log-probabilities are incomplete or no numbers") from None
    tokens, listed = logprobs.get("tokens"), logprobs.get("top_logprobs")
    if not isinstance(tokens, list) or not isinstance(listed, list) or not tokens:
        raise LLMError("the answer came without log-probabilities")
    if len(tokens) != len(listed):
        raise LLMError(f"{len(listed)} lists of alternatives came with {len(tokens)} tokens")
    return Listing(tokens, listed)


def _listed(entry: dict[str, Any]) -> dict[str, float]:
    """The alternatives to a token, and it itself, in the form for chats."""
    result: dict[str, float] = {}
    for alternative in entry.get("top_logprobs") or ():
        text, value = alternative["token"], alternative["logprob"]
        # Of tokens that a server writes alike, we can't tell which is which: both are it.
        result[text] = float(np.logaddexp(result[text], value)) if text in result else value
    result.setdefault(entry["token"], entry.get("logprob"))  # type: ignore[arg-type]
    return result


def spoken(given: dict[str, Any]) -> tuple[Token, ...]:
    """The tokens of a chat's answer, each with those of its alternatives that are an integer.

    Raises:
        LLMError: there are none, or an integer's log-probability is no number.
    """
    tokens, listed = listing(given)
    try:
        return tuple(
            Token(token, {text: _number(p) for text, p in row.items() if _is_integer(text)})
            for token, row in zip(tokens, listed, strict=True)
            if row is not None
        )
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise LLMError("the answer's log-probabilities are incomplete or no numbers") from None


@lru_cache(maxsize=2**16)
def _is_integer(text: str) -> bool:
    return text.isascii() and text.strip().isdigit()


def _number(value: Any) -> float:
    """A log-probability. Raises ValueError or TypeError if it is none."""
    number = float(value)
    if not number < np.inf:  # nor NaN
        raise ValueError
    return number


def last(tokens: tuple[Token, ...], text: str) -> tuple[Token, ...]:
    """Those of an answer's tokens that make up its text, without the thoughts before it.

    Raises:
        LLMError: the text is not of these tokens.
    """
    ends = np.cumsum([len(_kept(token.text)) for token in tokens])
    start = _kept("".join(token.text for token in tokens)).rfind(_kept(text))
    if start < 0:
        raise LLMError("the log-probabilities are not of the answer's tokens")
    return tokens[int(np.searchsorted(ends, start, side="right")) :]


def at_places(reading: Reading, given: dict[str, Any], shift: int) -> np.ndarray:
    """What is listed for the integers at a reading's places.

    Args:
        given: the choice that answers it.
        shift: tokens by which alternatives stand before the token that they belong to.

    Returns:
        Natural logarithms of probabilities, as `Distribution.log_probabilities` has them.

    Raises:
        LLMError: what is listed is incomplete, no numbers, or not of the reading's text.
    """
    rows: list[Any]
    if reading.filler:
        tokens, listed = listing(given)
        rows = [
            {} if index is None else listed[index - shift] if index >= shift else None
            for index in indices(tokens, reading.text, reading.places)
        ]
    else:
        rows = [next_token(given)]
    if None in rows:
        raise LLMError("the server lists no alternatives at one of the prompt's places")
    names = [str(value) for value in range(reading.largest + 1)]
    try:
        result = np.array([[row.get(n, -np.inf) for n in names] for row in rows], float)
    except (AttributeError, TypeError, ValueError, OverflowError):
        result = np.full((1, 1), np.nan)
    if not (result < np.inf).all():
        raise LLMError("the log-probabilities that the server lists are no numbers, or infinite")
    result[(result == -np.inf).all(axis=1)] = np.nan
    with np.errstate(over="ignore"):
        return result.astype(np.float32)


def next_token(given: dict[str, Any]) -> dict[str, float]:
    """The alternatives that a choice lists to the one token that a server wrote behind a text.

    Raises:
        LLMError: it lists none, or several tokens.
    """
    tokens, listed = listing(given)
    if len(tokens) != 1 or listed[0] is None:
        raise LLMError(f"the server lists {len(tokens)} tokens behind the text, not one")
    return listed[0]


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
        raise LLMError("the tokens that the server lists are no text")
    joined = _kept(_END.join(tokens))
    ends = np.flatnonzero(np.frombuffer(joined, np.uint8) == 0)
    starts = np.concatenate([[0], ends - np.arange(len(ends))])
    whole, wanted = joined.replace(_END.encode(), b""), _kept(text)
    before = next((s for s in starts[: _MOST_BEFORE + 1] if whole.startswith(wanted, s)), None)
    if before is None or len(starts) != len(tokens):
        raise LLMError("the tokens that the server lists are not those of the prompt")
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
