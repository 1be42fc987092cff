"""Documents as they come from any source: pieces of text of bounded size, and texts of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from fastexplain.errors import CorpusError

# Characters; a piece ends at the first line end after so many, or within a line of twice as many.
# About 5,000 tokens: few enough that a batch keeps many cores busy, enough that cuts are rare, as
# the tokens right at a cut may be others than in the whole text.
SIZE = 16_384
# Characters of a row, which is decoded as a whole: several times the longest of novels.
LONGEST = 2**25

_QUOTED = 200  # characters of a path


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
        start = 0
        while start < len(self.text):
            line_end = self.text.find("\n", start + SIZE, start + 2 * SIZE) + 1
            end = line_end or start + 2 * SIZE
            text = self.text[start:end].encode("utf-8", "replace").decode()
            yield Piece(text, self.done, self.first and start == 0)
            start = end


def names(columns: Iterable[str]) -> str:
    """Names as messages list them."""
    return ", ".join(repr(str(name)) for name in columns) or "none"


def text_of(row: Mapping[str, Any], column: str, place: str) -> str:
    """The text of a row, "" where it is null.

    Raises:
        CorpusError: there is no such column, it holds something else, or more than `LONGEST`
            characters; `place` is named.
    """
    if column not in row:
        raise CorpusError(f"{place}: no column {column!r}; there are {names(row)}")
    text = row[column]
    if not isinstance(text, str | None):
        raise CorpusError(f"{place}: {column!r} is {type(text).__name__}, not a string")
    if text and len(text) > LONGEST:
        raise too_long(place)
    return text or ""


def too_long(place: str) -> CorpusError:
    """The error for a row that is longer than `LONGEST`."""
    return CorpusError(
        f"{place}: longer than {LONGEST:,} characters, the most that is read of a row; split it"
    )


def shortened(name: str) -> str:
    """A file's name as messages quote it."""
    return repr(name if len(name) <= _QUOTED else f"...{name[-_QUOTED:]}")
