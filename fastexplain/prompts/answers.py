"""What a simulator wrote, read by place: line or item i of an answer is about token i of the text.

A line or item that is not about its token ends the reading; nothing is ever looked for further
on. All that was not read is missing, which is NaN, together with the first reason.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from math import exp

import numpy as np

from fastexplain.llm.requests import Answer, Token
from fastexplain.prompts.lines import END, START, line, quote

# Where the tokenizer splits "10", a share of the probabilities up to this may lie on a "1" that
# is not known to be a 1; it is left out. Above it the place is missing.
_NEGLIGIBLE = 0.01

# An integer's token, behind what precedes the number in it.
_INTEGER = re.compile(r" *(0|[1-9][0-9]?)[ \r\n]*")
# Digits with which a number of two begins.
_CONTINUED = frozenset("123456789")
_WRITTEN = re.compile(r"0|[1-9][0-9]?")
_FENCED = re.compile(r"\s*```(?:json)?\s*(.*?)\s*```\s*", re.DOTALL)

Read = tuple[np.ndarray, str | None]


def repeated(answer: Answer, tokens: Sequence[str], largest: int) -> Read:
    """Read an answer to `simulator_chats.repeating`.

    Returns:
        Natural logarithms of the probabilities of 0..`largest` at each token, float64
        `[tokens, largest + 1]`, up to a constant of each row; and the first reason why one is
        missing, if one is.
    """
    rows = np.full((len(tokens), largest + 1), np.nan)
    if not answer.tokens:
        return rows, "the answer came without log-probabilities"
    lines, pieces = _lines(answer.text), _Pieces(answer.tokens)
    split = _splits_ten(lines, pieces)
    reason = None
    for place, token in enumerate(tokens):
        text = lines[place] if place < len(lines) else ""
        number = _number(text, token)
        if answer.finish == "length" and place >= len(lines) - 1:
            reason = reason or f"the answer was cut off at {named(place, tokens)}"
            break
        if number is None:
            seen = "ends before" if text.strip() in ("", END) else f"has {quote(text)} at"
            reason = reason or f"the answer {seen} {named(place, tokens)}"
            break
        written = number.strip(" \r")
        if not _WRITTEN.fullmatch(written) or int(written) > largest:
            reason = reason or _no_number(written, place, tokens, largest)
            continue
        found = pieces.find(place, number)
        halves = split and not written.startswith("1")
        if found is None:
            row: list[float] | str = "the answer's tokens are not its text"
        else:
            row = _row(pieces.tokens, *found, largest, halves)
        if isinstance(row, str):
            reason = reason or f"{row} at {named(place, tokens)}"
        else:
            rows[place] = row
    with np.errstate(divide="ignore"):
        return np.log(rows), reason


def single(answer: Answer, largest: int) -> Read:
    """Read an answer to `simulator_chats.single_chat`.

    Returns:
        As `repeated`, for the one token: float64 `[1, largest + 1]`.
    """
    rows = np.full((1, largest + 1), np.nan)
    # White space may come first, in tokens of its own.
    first = next((i for i, token in enumerate(answer.tokens) if token.text.strip()), None)
    if first is None:
        there = answer.text.strip()
        return rows, "the answer came without log-probabilities" if there else "the answer is empty"
    text = answer.tokens[first].text
    if not _INTEGER.fullmatch(text.lstrip()):
        return rows, f"the answer is not a number: {quote(answer.text)}"
    lead = text[: len(text) - len(text.lstrip())]
    row = _row(answer.tokens, first, lead, largest)
    if isinstance(row, str):
        return rows, row
    with np.errstate(divide="ignore"):
        return np.log([row]), None


def structured(answer: Answer, tokens: Sequence[str], largest: int) -> Read:
    """Read an answer to `simulator_chats.structured`.

    Returns:
        The value of each token, float64 `[tokens]`, and the first reason why one is missing.
    """
    values = np.full(len(tokens), np.nan)
    fenced = _FENCED.fullmatch(answer.text)
    try:
        data = json.loads(fenced[1] if fenced else answer.text)
    except (ValueError, RecursionError):
        if answer.finish == "length":
            return values, "the answer was cut off"
        return values, f"the answer is not JSON: {quote(answer.text)}"
    items = data.get("activations") if isinstance(data, dict) else None
    if not isinstance(items, list):
        return values, "the answer's JSON has no list of activations"
    reason = None
    for place, token in enumerate(tokens):
        if place >= len(items):
            return values, reason or f"the answer ends before {named(place, tokens)}"
        item = items[place] if isinstance(items[place], dict) else {}
        said, value = item.get("token"), item.get("value")
        if not isinstance(said, str) or not _same(said, token):
            has = quote(said) if isinstance(said, str) else "no token"
            return values, reason or f"the answer has {has} at {named(place, tokens)}"
        if type(value) is int and 0 <= value <= largest:
            values[place] = value
        else:
            reason = reason or _no_number(json.dumps(value), place, tokens, largest)
    return values, reason


class _Pieces:
    """The tokens of an answer, and the lines that they make up together.

    That is the answer's text, but for tokens that are parts of a character: these may stand in
    other words. Such parts are never a tab or a line break, so places are taken from here.
    """

    def __init__(self, tokens: tuple[Token, ...]) -> None:
        self.tokens = tokens
        self._starts = list(accumulate((len(token.text) for token in tokens), initial=0))[:-1]
        lines = "".join([token.text for token in tokens]).split("\n")
        starts = accumulate((len(text) + 1 for text in lines), initial=0)
        skipped = _skipped(lines)
        self._lines = list(zip(starts, lines, strict=False))[skipped:]

    def find(self, place: int, number: str) -> tuple[int, str] | None:
        """The token where a line's number begins, and the token's text before the number.

        None if the number is not there as it is written in the answer's text.
        """
        if place >= len(self._lines):
            return None
        start, text = self._lines[place]
        before, tab, written = text.partition("\t")
        if not tab or not written.startswith(number):
            return None
        offset = start + len(before) + 1 + len(number) - len(number.lstrip(" "))
        index = bisect_right(self._starts, offset) - 1
        return index, self.tokens[index].text[: offset - self._starts[index]]


def _lines(text: str) -> list[str]:
    lines = text.split("\n")
    return lines[_skipped(lines) :]


def _skipped(lines: list[str]) -> int:
    """Lines before the first token's: blank ones, and the marker."""
    blank = next((count for count, text in enumerate(lines) if text.strip()), 0)
    return blank + 1 if lines[blank].strip() == START else blank


def _number(text: str, token: str) -> str | None:
    """What stands behind the token and its tab; None if the line is not the token's."""
    beginning = line(token)
    if text.startswith(beginning):
        return text[len(beginning) :]
    said, tab, number = text.partition("\t")
    return number if tab and _same(said, beginning[:-1]) else None


def _same(said: str, token: str) -> bool:
    """Whether a model meant this token: models are careless with the spaces around a word."""
    return said == token or said.strip() == token.strip() != ""


def _splits_ten(lines: list[str], pieces: _Pieces) -> bool:
    """Whether a 10 in the answer is a "1" and a "0", so that a "1" elsewhere may be half of it."""
    for place, text in enumerate(lines):
        number = text.partition("\t")[2]
        if number.strip(" \r") == "10" and (found := pieces.find(place, number)):
            index, lead = found
            return pieces.tokens[index].text[len(lead) :].rstrip() == "1"
    return False


def _row(
    tokens: Sequence[Token], index: int, lead: str, largest: int, halves: bool = False
) -> list[float] | str:
    """The probabilities of 0..`largest` where token `index` has a number behind `lead`.

    Args:
        halves: a "1" may be the first half of a 10.

    Returns:
        Where they can't be known, the reason.
    """
    try:
        masses = _masses(tokens, index, lead.rstrip(" "))
    except OverflowError:
        return "a log-probability is far above 0"
    if halves:
        # What would follow this "1" was not seen, so it may as well begin a 10.
        one = masses.pop(1, 0.0)
        if one > _NEGLIGIBLE * (one + sum(masses.values())):
            return "a 1 may be the first half of a 10"
    row = [masses.get(number, 0.0) for number in range(largest + 1)]
    return row if any(row) else f"no probabilities of numbers from 0 to {largest}"


def _masses(tokens: Sequence[Token], index: int, lead: str) -> dict[int, float]:
    """The probability of each number that is listed where one begins in token `index`.

    Args:
        lead: what precedes the number in the token, but for spaces.
    """
    token = tokens[index]
    masses: dict[int, float] = {}
    for text, logarithm in token.integers.items():
        number = _integer(text, lead)
        if number is not None:  # perhaps once more, with a space
            masses[number] = masses.get(number, 0.0) + exp(logarithm)
    digit = token.text[len(lead) :].lstrip(" ")
    if digit in _CONTINUED and index + 1 < len(tokens) and token.text in token.integers:
        # By the chain rule: how much of it goes on, and how, is seen at the next token.
        whole = exp(token.integers[token.text])
        for text, logarithm in tokens[index + 1].integers.items():
            further = _integer(text, "") if text[:1].isdigit() else None
            if further is not None and further < 10:
                part, longer = whole * exp(logarithm), 10 * int(digit) + further
                # Below 0 by rounding only.
                masses[int(digit)] = max(masses[int(digit)] - part, 0.0)
                masses[longer] = masses.get(longer, 0.0) + part
    return masses


@lru_cache(maxsize=2**16)
def _integer(text: str, lead: str) -> int | None:
    """The integer that a token is behind what precedes it there; None for other tokens."""
    match = _INTEGER.fullmatch(text, len(lead)) if text.startswith(lead) else None
    return int(match[1]) if match else None


def _no_number(text: str, place: int, tokens: Sequence[str], largest: int) -> str:
    return f"{quote(text)} is no number from 0 to {largest}, at {named(place, tokens)}"


def named(place: int, tokens: Sequence[str]) -> str:
    """A token of a text, as reasons name it."""
    return f"token {place + 1} of {len(tokens)}, {quote(tokens[place])}"
