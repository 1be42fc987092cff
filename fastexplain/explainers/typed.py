r"""A list that somebody typed, in the syntax that lists' texts have.

    ' order' after ' in' 3.1, ' sort' 2.4; else 0.02

An entry is a token in quotes, which may be said to come `after` another, and its mean activation;
entries are separated by commas. What is `else`, behind a semicolon, is 0 where it is left out.
Quotes are ' or ", and between them stand escapes as in Python, such as \n. Most tokens begin with
a space.
"""

from __future__ import annotations

import ast
import re
from typing import Any, NamedTuple

from fastexplain.errors import UsageError
from fastexplain.run.directory import Run

MOST_ENTRIES = 200

_SYNTAX = "write a list such as ' order' after ' in' 3.1, ' sort' 2.4; else 0.02"
_QUOTED = r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*\""""
_NUMBER = r"[-+]?(?:\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})(?:e[-+]?\d{1,2})?"
_ENTRY = re.compile(
    rf"\s*(?P<token>{_QUOTED})(?:\s*after\s*(?P<previous>{_QUOTED}))?\s*(?P<mean>{_NUMBER})\s*",
    re.ASCII,
)
_ELSE = re.compile(rf"\s*else\s*({_NUMBER})\s*", re.ASCII)


class TypedList(NamedTuple):
    """A list as it was understood.

    Attributes:
        entries: as `simulate_list` takes them: `token`, `previous`, `ids`, `mean`.
        default: what it says of everything else.
    """

    entries: list[dict[str, Any]]
    default: float


def read_list(run: Run, text: str) -> TypedList:
    """Read a list of a run's tokens.

    Raises:
        UsageError: it is none, or has a token that the subject has not; says where and what to do.
    """
    entries: list[dict[str, Any]] = []
    place = 0
    while True:
        found = _ENTRY.match(text, place)
        if found is None:
            raise UsageError(f"an entry is expected at {_at(text, place)}; {_SYNTAX}")
        if len(entries) == MOST_ENTRIES:
            raise UsageError(f"the list has more than {MOST_ENTRIES} entries; shorten it")
        entries.append(_entry(run, found))
        place = found.end()
        if not text.startswith(",", place):
            break
        place += 1
    default = 0.0
    if text.startswith(";", place):
        last = _ELSE.match(text, place + 1)
        if last is None:
            raise UsageError(f"`else` and a number are expected at {_at(text, place + 1)}")
        default, place = float(last[1]), last.end()
    if place < len(text):
        raise UsageError(f"a comma, or `; else`, is expected at {_at(text, place)}; {_SYNTAX}")
    return TypedList(entries, default)


def _entry(run: Run, found: re.Match[str]) -> dict[str, Any]:
    token, previous = _unquoted(found["token"]), None
    ids = [_token_id(run, token)]
    if found["previous"] is not None:
        previous = _unquoted(found["previous"])
        ids = [_token_id(run, previous), *ids]
    return {"token": token, "previous": previous, "ids": ids, "mean": float(found["mean"])}


def _unquoted(quoted: str) -> str:
    try:
        return str(ast.literal_eval(quoted))
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"{quoted:.50} has an escape that means nothing") from error


def _token_id(run: Run, token: str) -> int:
    """The id of a token by its text. Raises UsageError where there is none."""
    vocabulary = run.vocabulary
    wanted = token.encode("utf-8", "surrogatepass")
    if wanted and wanted in vocabulary:
        return vocabulary.index(wanted)
    other = wanted[1:] if wanted.startswith(b" ") else b" " + wanted
    hint = "tokens are pieces of words, mostly with a space before them"
    if other and other in vocabulary:
        hint = f"there is {other.decode()!r}"
    raise UsageError(f"{token[:50]!r} is no token of the subject; {hint}")


def _at(text: str, place: int) -> str:
    rest = text[place : place + 20].strip()
    return repr(rest) if rest else "the end"
