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

# What the integers that a server does not list may have of the probability of them all: each is at
# most as likely as the least likely token that it lists.
_UNLISTED = 0.1
# What an integer that is not listed is taken to have of that bound. With SmolLM2, fillers "0" and
# "?" and 100 alternatives, expected values then correlate at .9999 and .999 with those of the whole
# distribution, and at .998 and .986 where it is taken to have nothing.
_SHARE = 0.5

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
    if not reading.filler:
        return behind([given], reading.largest)
    tokens, listed = listing(given)
    found = indices(tokens, reading.text, reading.places)
    rows: list[Any] = [
        {} if index is None else listed[index - shift] if index >= shift else None
        for index in found
    ]
    if None in rows:
        raise LLMError("the server lists no alternatives at one of the prompt's places")
    return _values(rows, [None if i is None else tokens[i] for i in found], reading.largest)


def behind(choices: Sequence[dict[str, Any]], largest: int) -> np.ndarray:
    """What is listed for the integers behind texts, of which each choice answers one.

    Returns and raises as `at_places`.
    """
    rows = [next_token(given) for given in choices]
    return _values(rows, [None] * len(rows), largest)


def _values(
    rows: Sequence[dict[str, float]], own: Sequence[str | None], largest: int
) -> np.ndarray:
    """The integers' log-probabilities, from the alternatives at each place.

    Args:
        own: the token that stands at each place: it is listed however unlikely it is.
    """
    names = [str(value) for value in range(largest + 1)]
    try:
        result = np.array([[row.get(n, -np.inf) for n in names] for row in rows], float)
        least = np.array([_least(*pair) for pair in zip(rows, own, strict=True)])
    except (AttributeError, TypeError, ValueError, OverflowError):
        result = least = np.full((1, 1), np.nan)
    if not (result < np.inf).all():
        raise LLMError("the log-probabilities that the server lists are no numbers, or infinite")
    unlisted = result == -np.inf
    with np.errstate(over="ignore"):
        hidden = unlisted.sum(axis=1) * np.exp(least)
        result[hidden > _UNLISTED * (np.exp(result).sum(axis=1) + hidden)] = np.nan
        result[unlisted.all(axis=1)] = np.nan
        bound = least[:, None] + np.log(_SHARE)
        return np.where(unlisted & ~np.isnan(result), bound, result).astype(np.float32)


def _least(row: dict[str, float], own: str | None) -> float:
    """The smallest log-probability that is listed, but for that of the place's own token."""
    found = (p for text, p in row.items() if text != own and isinstance(p, float | int))
    return float(min(found, default=0.0))


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
