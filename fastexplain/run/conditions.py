"""Conditions on neurons, such as `lookup_score < 0.3 and kurtosis > 10`, by SQLite in memory.

SQLite evaluates them, and may only read that table: an authorizer refuses all else. The text is
rewritten first where SQL would surprise: integers become reals (in SQL 1/3 is 0), `a < b < c` means
`a < b and b < c`, and a comparison with an undefined value is false, so that its `not` is true.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from fastexplain.errors import UsageError

_LONGEST = 1000  # characters; far more than anyone writes
_MOST_TOKENS = 10_000  # of the SQL, in which `a < b < c` has b twice, and so on inside of b
_SECONDS = 60.0  # for a layer, which takes milliseconds
_STEPS = 100_000  # of SQLite's machine between two looks at the clock
_FUNCTIONS = ("abs", "min", "max", "ifnull")
_WORDS = ("and", "or", "not", "is", "null", "between", "in")
_COMPARISONS = ("<", "<=", ">", ">=", "=", "==", "!=", "<>")
# What SQLite says of a condition, and what that means to its author.
_REASONS = {
    "number of arguments": "a function has too few or too many values",
    "aggregate": "a function has too few values",
    "stack overflow": "it has too many parentheses",
}
_MISPLACED = "something is missing or out of place"
_ENDS = ("and", "or", "not", ",", ")")  # of a comparison

# Nothing else may stand in a condition. Without quotes there is no text, and no name that SQLite
# takes for text. Tokens are joined by spaces: two minus signs then begin no comment.
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)|(?P<word>(?!select\b)[a-z_]\w*)"
    r"|(?P<sign><=|>=|==|!=|<>|[-+*/%<>=(),]))\s*",
    re.ASCII | re.IGNORECASE,
)


class Condition:
    """A condition that was checked, ready to be evaluated.

    Undefined values are NaN, NULL in SQL. All comparisons with them are false, `!=` too; so is what
    is divided by 0.

    Args:
        text: an SQL expression of columns, numbers, operators and a few functions.
        columns: the names that it may use.

    Attributes:
        text: as given, on one line.
        names: the columns that it uses.

    Raises:
        UsageError: it can't be read, or uses anything else; names the columns.
    """

    def __init__(self, text: str, columns: Collection[str]) -> None:
        self.text = " ".join(text.split())
        self.names: set[str] = set()
        self._sqlite = sqlite3.connect(":memory:", isolation_level=None)
        definitions = ", ".join(f'"{name}" REAL' for name in columns)
        self._sqlite.execute(f"CREATE TABLE neurons ({definitions})")
        try:
            self._statement = f"SELECT rowid FROM neurons WHERE ({_sql(self.text, columns)})"
            self._sqlite.set_authorizer(self._authorize)
            self._sqlite.execute(self._statement)  # of no rows yet: it is compiled, and so checked
        except (sqlite3.Error, ValueError) as error:
            why = str(error)
            if isinstance(error, sqlite3.Error):
                why = next((ours for theirs, ours in _REASONS.items() if theirs in why), _MISPLACED)
            raise UsageError(
                f"the condition '{self.text}' can't be used: {why}; write comparisons, as in "
                f"lookup_score < 0.3 and kurtosis > 10; the columns are {', '.join(columns)}"
            ) from error
        self._sqlite.set_authorizer(None)
        self.names.intersection_update(columns)  # not the rowid

    def select(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """Where the condition holds, bool `[neurons]`.

        Args:
            values: float64 `[neurons]` for each of `names`, and for one column at least.

        Raises:
            UsageError: it takes too long.
        """
        columns = [column.tolist() for column in values.values()]
        names = ", ".join(f'"{name}"' for name in values)
        insert = f"INSERT INTO neurons ({names}) VALUES ({', '.join('?' * len(columns))})"
        holds = np.zeros(len(columns[0]), dtype=bool)
        self._sqlite.execute("BEGIN")
        self._sqlite.executemany(insert, zip(*columns, strict=True))
        end = time.monotonic() + _SECONDS
        self._sqlite.set_progress_handler(lambda: time.monotonic() > end, _STEPS)
        try:
            rows = self._sqlite.execute(self._statement).fetchall()
        except sqlite3.OperationalError as error:
            raise UsageError(
                f"the condition '{self.text}' can't be evaluated ({error}); for a layer it may "
                f"take {_SECONDS:.0f} s"
            ) from error
        finally:
            self._sqlite.set_progress_handler(None, 0)
            self._sqlite.execute("ROLLBACK")
        holds[np.array(rows, dtype=np.int64).ravel() - 1] = True
        return holds

    def _authorize(self, action: int, first: str | None, second: str | None, *_: object) -> int:
        if action == sqlite3.SQLITE_READ and first == "neurons":
            self.names.add(str(second))
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION and second in _FUNCTIONS:
            return sqlite3.SQLITE_OK
        return sqlite3.SQLITE_OK if action == sqlite3.SQLITE_SELECT else sqlite3.SQLITE_DENY


@dataclass
class _Comparison:
    """One that is being written: the places in the SQL where it and where its last side begin."""

    start: int
    side: int | None = None


def _sql(text: str, columns: Collection[str]) -> str:
    """The condition with its comparisons as SQL must have them.

    Raises:
        ValueError: it is too long, has what no condition has, or its parentheses don't match.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"it is longer than {_LONGEST} characters")
    sql: list[str] = []
    levels = [_Comparison(0)]  # the innermost parenthesis is the last
    for token in [*_tokens(text, columns), ")"]:
        if not levels:
            raise ValueError("its parentheses don't match")
        this = levels[-1]
        if token == "(":
            levels.append(_Comparison(len(sql) + 1))
        elif token in _ENDS:
            if this.side is not None:
                sql.insert(this.start, "ifnull(")
                sql.append(", 0)")
            levels[-1] = _Comparison(len(sql) + 1)
            if token == ")":
                levels.pop()
        elif token in _COMPARISONS:
            if this.side is not None:  # the one before has the same side on its right
                sql += ["and", *sql[this.side :]]
                if len(sql) > _MOST_TOKENS:
                    raise ValueError("its comparisons inside comparisons are too many")
            this.side = len(sql) + 1
        sql.append(token)
    if levels:
        raise ValueError("its parentheses don't match")
    return " ".join(sql[:-1])


def _tokens(text: str, columns: Collection[str]) -> Iterator[str]:
    end = 0
    while end < len(text):
        match = _TOKEN.match(text, end)
        if match is None:
            raise ValueError(f"'{text[end:].split()[0]}' is not understood")
        end = match.end()
        if number := match["number"]:
            yield f"{number}.0" if number.isdecimal() else number
        elif word := match["word"]:  # `index` is a word of SQL's too
            if word not in columns and word.lower() not in (*_WORDS, *_FUNCTIONS):
                raise ValueError(f"there is no '{word}'")
            yield f'"{word}"' if word in columns else word.lower()
        else:
            yield match["sign"]
