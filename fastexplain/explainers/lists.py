"""The text of a lookup explanation: a short list of table entries, which is a simulator of its own.

For every neuron a list is chosen and its means are estimated without the neuron's test excerpts
(`kernels/cpu/lists.py`), so that it can be scored on these as it stands: an entry's mean, as the
text shows it, where the entry applies, and one default everywhere else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastexplain.errors import UsageError
from fastexplain.kernels.cpu.lists import Lists, means_of, read
from fastexplain.kernels.summary import HeldOut, LookupTables
from fastexplain.run.directory import Run
from fastexplain.run.tables import Tables

LENGTHS = (4, 8, 16, 32)
"""Entries that a list may have at most."""
ENTRIES = 8
"""As many as a reader takes in at a glance. (The curve of benches/NOTES.md has no bend: twice the
entries are worth 0.04 to 0.06 of correlation at each length.)"""

_DIGITS = 2  # of a mean; from 100 on it is a whole number


class ShownLists(NamedTuple):
    """Lists of F neurons, as their texts show them.

    Attributes:
        rows: int32 `[F, n]`, of the tables, pairs counted on from the tokens; -1 for none.
        means, default: float64 `[F, n]` and `[F]`, rounded as in the text.
        counts: int64 `[F, n]`, counted tokens behind each entry, held-out excerpts left out.
    """

    rows: np.ndarray
    means: np.ndarray
    default: np.ndarray
    counts: np.ndarray

    def predict(self, excerpts: HeldOut, tables: LookupTables) -> np.ndarray:
        """What the lists say of excerpts; see `kernels.cpu.lists.read`."""
        return read(self.rows, self.means, self.default, excerpts, len(tables.token_counts))


def check_entries(entries: object) -> int:
    """The same number. Raises UsageError if no list has that length."""
    if entries not in LENGTHS or not isinstance(entries, int):
        lengths = ", ".join(map(str, LENGTHS))
        raise UsageError(f"`entries` is {entries!r}; choose one of {lengths}")
    return entries


def second_rows(known: Tables) -> np.ndarray:
    """The token row of each pair's second token, int32 `[P]`; -1 where it has none."""
    return known.rows(known.pairs[:, 1:])[0][:, 0]


def shortened(lists: Lists, entries: int) -> ShownLists:
    """The first entries of lists from `kernels.cpu.lists.choose`, as texts show them."""
    means, default = means_of(lists, entries)
    return ShownLists(
        lists.rows[:, :entries], rounded(means), rounded(default), lists.counts[:, :entries]
    )


def rounded(means: np.ndarray) -> np.ndarray:
    """Means as a text shows them: to two digits, and from 100 on to whole numbers."""
    with np.errstate(divide="ignore"):
        magnitude = np.floor(np.log10(np.abs(means)))
    digits = np.where(np.isfinite(magnitude), np.maximum(_DIGITS - 1 - magnitude, 0), 0)
    # Powers of ten up to 10**22 are exact, and so is the one rounding of a quotient.
    scale = 10.0 ** np.minimum(digits, 22)
    return np.round(means * scale) / scale


def entry_maker(run: Run) -> Callable[[ShownLists], list[list[dict[str, Any]]]]:
    """What makes lists' entries as they are stored; texts are made once for all layers.

    An entry has `token`, `previous` (of a pair, else None), `mean`, `count`, and `ids`, the tokens'
    ids, of which a pair has two.
    """
    known = run.tables

    @functools.cache
    def shown(row: int) -> dict[str, Any]:
        if row < len(known.tokens):
            ids = [int(known.tokens[row])]
            return {"token": run.token_text(ids[0]), "previous": None, "ids": ids}
        ids = known.pairs[row - len(known.tokens)].tolist()
        previous, token = run.token_texts(ids)
        return {"token": token, "previous": previous, "ids": ids}

    def entries_of(lists: ShownLists) -> list[list[dict[str, Any]]]:
        columns = (lists.rows.tolist(), lists.means.tolist(), lists.counts.tolist())
        return [
            [
                shown(row) | {"mean": mean, "count": count}
                for row, mean, count in zip(*own, strict=True)
                if row >= 0
            ]
            for own in zip(*columns, strict=True)
        ]

    return entries_of


def text_of(entries: Sequence[dict[str, Any]], default: float | None = None) -> str:
    """A list as one line, such as `' order' after ' in' 3.1, ' sort' 2.4; else 0.02`."""
    listed = ", ".join(
        repr(entry["token"])
        + (f" after {entry['previous']!r}" if entry["previous"] is not None else "")
        + f" {mean_text(entry['mean'])}"
        for entry in entries
    )
    return listed if default is None else f"{listed}; else {mean_text(default)}"


def mean_text(mean: float) -> str:
    """A mean as a text shows it; see `rounded`."""
    return f"{mean:.2g}" if mean < 100 else f"{mean:.0f}"


def simulate_list(
    entries: Sequence[dict[str, Any]], default: float, token_ids: np.ndarray
) -> np.ndarray:
    """What a stored list says of excerpts, float32 of the shape of `token_ids`, int `[..., T]`."""
    found = np.full(token_ids.shape, default, np.float32)
    # A pair says more than its token; of two entries of the same tokens the last one counts.
    for entry in sorted(entries, key=lambda entry: len(entry["ids"])):
        *before, token = entry["ids"]
        holds = token_ids == token
        for previous in before:
            holds[..., 1:] &= token_ids[..., :-1] == previous
            holds[..., :1] = False
        found[holds] = entry["mean"]
    return found
