"""The kind of every token, by its characters, and the situations that tokens stand in.

A token has exactly one kind (a lower-case word, a number, an opening bracket, ...). A counted token
stands in three *situations*, each a code that joins its kind with what is around it:

1. `BEFORE`: the kind of the token before, or that it is the first of its line.
2. `AGAIN`: whether the excerpt has shown this token before, once or more often, and whether the
   two tokens before it are repeated (it follows what it followed last time).
3. `PLACE`: the eighth of the excerpt (the first counted token apart), and whether brackets or
   double quotation marks are open.

What is around is what the excerpt shows: a bracket that was opened before it began is unknown. The
sweep adds activations up by situation, so that a rule may speak of them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

from fastexplain.kernels.cpu.situations import situations as _situations

KINDS = (
    "newline", "space", "word", "part", "name", "capitals", "number", "open", "close", "quote",
    "stop", "sign", "script", "other",
)  # fmt: skip
"""`word` is lower-case letters after a space, `part` such letters without one, `name` letters of
which the first is a capital, `script` letters that are not Latin, `other` what is none of these."""

LINE_START, NOTHING = len(KINDS), len(KINDS) + 1
"""What `BEFORE` has besides kinds: a line begins; there is no token before."""

STATES = ("new", "second", "later", "second, repeating", "later, repeating")
EIGHTHS = 8
BEFORE, AGAIN, PLACE = range(3)
ASPECTS = (len(KINDS) + 2, len(STATES), (EIGHTHS + 1) * 4)
"""How many values each of the three situations has, besides the token's kind."""

STARTS = tuple(int(x) * len(KINDS) for x in np.cumsum((0, *ASPECTS)))
"""The first code of each aspect, and the number of codes; code = start + value * kinds + kind."""


class TokenKinds:
    """What `situations` needs to know of every token id.

    Args:
        vocabulary: the bytes of every token id.

    Attributes:
        kinds: int8 `[ids]`, places in `KINDS`.
        brackets: int8 `[ids]`, brackets that the token opens less those that it closes.
        quotes: int8 `[ids]`, its double quotation marks.
        marked: whether the vocabulary marks the beginnings of words by a space.
    """

    def __init__(self, vocabulary: Sequence[bytes]) -> None:
        texts = [each.decode("utf-8", "replace") for each in vocabulary]
        # Some vocabularies don't mark where a word begins: then a part is a word.
        self.marked = any(text[:1] == " " and text[1:2].isalpha() for text in texts)
        self.kinds = np.array([kind_of(text, marked=self.marked) for text in texts], np.int8)
        self.brackets = np.array([_depth(text) for text in texts], np.int8)
        self.quotes = np.array([sum(text.count(c) for c in _DOUBLE) for text in texts], np.int8)

    def situations(self, token_ids: np.ndarray, skip: int) -> np.ndarray:
        """The codes of every counted token's three situations.

        Args:
            token_ids: int32 `[excerpts, tokens]`.
            skip: first counted token.

        Returns:
            int32 `[excerpts, tokens, 3]`; -1 before the first counted token.
        """
        known = np.minimum(token_ids, len(self.kinds) - 1)  # embeddings may have more rows
        return _situations(
            np.ascontiguousarray(token_ids), self.kinds[known], self.brackets[known],
            self.quotes[known], skip, len(KINDS), np.array(STARTS),
        )  # fmt: skip


_OPEN, _CLOSE, _DOUBLE = "([{", ")]}", '"\u201c\u201d'
_QUOTES = _DOUBLE + "'`\u2018\u2019\u00ab\u00bb"
_STOPS = ".!?\u3002\uff01\uff1f"


def kind_of(text: str, *, marked: bool = True) -> int:
    """The place in `KINDS` of a token's text.

    Args:
        marked: whether the vocabulary marks the beginnings of words by a space.
    """
    body = text.strip()
    if not body:
        return KINDS.index("newline" if "\n" in text else "space" if text else "other")
    if body.isnumeric():
        return KINDS.index("number")
    if all(c.isalpha() or unicodedata.combining(c) for c in body):
        if not any(latin(c) for c in body):
            return KINDS.index("script")
        if body.isupper() and len(body) > 1:
            return KINDS.index("capitals")
        if body[0].isupper():
            return KINDS.index("name")
        return KINDS.index("word" if text[0].isspace() or not marked else "part")
    if any(c.isalnum() for c in body) or "\ufffd" in body:
        return KINDS.index("other")
    # By the last bracket, quotation mark or stop: what comes next stands behind that one.
    for c in reversed(body):
        for kind, own in (("open", _OPEN), ("close", _CLOSE), ("quote", _QUOTES), ("stop", _STOPS)):
            if c in own:
                return KINDS.index(kind)
    return KINDS.index("sign")


def latin(character: str) -> bool:
    """Whether a character is a letter of the Latin script."""
    return character.isascii() or unicodedata.name(character, "").startswith("LATIN")


def _depth(text: str) -> int:
    return sum(text.count(c) for c in _OPEN) - sum(text.count(c) for c in _CLOSE)
