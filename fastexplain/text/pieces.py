"""Documents as they come from any source: pieces of text of bounded size, and texts of rows."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from fastexplain.errors import CorpusError

# Characters; a piece ends at the first line end after so many, or within a line of twice as many.
# About 5,000 tokens: few enough that a batch keeps many cores busy, enough that cuts are rare, as
# the tokens right at a cut may be others than in the whole text.
SIZE = 16_384


class Piece(NamedTuple):
    """Consecutive text of one document.

    Attributes:
        text: not empty once it is cut.
        done: the fraction of all documents that is read once this is.
        first: whether it begins a document.
    """

    text: str
    done: float
    first: bool = True

    def cut(self) -> Iterator[Piece]:
        """The same in pieces of bounded size, without half surrogate pairs.

        These a string may hold, in JSON too, but they can't be tokenised.
        """
        stream, first = io.StringIO(self.text.encode("utf-8", "replace").decode()), self.first
        while text := stream.read(SIZE) + stream.readline(SIZE):
            yield Piece(text, self.done, first)
            first = False


def names(columns: Iterable[str]) -> str:
    """Names as messages list them."""
    return ", ".join(repr(str(name)) for name in columns) or "none"


def text_of(row: Mapping[str, Any], column: str, place: str) -> str:
    """The text of a row, "" where it is null.

    Raises:
        CorpusError: there is no such column, or it holds something else; `place` is named.
    """
    if column not in row:
        raise CorpusError(f"{place}: no column {column!r}; there are {names(row)}")
    text = row[column]
    if not isinstance(text, str | None):
        raise CorpusError(f"{place}: {column!r} is {type(text).__name__}, not a string")
    return text or ""
