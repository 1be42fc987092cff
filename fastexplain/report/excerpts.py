"""Excerpts as the viewer shows them: their tokens, what stands around them, and the histogram's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fastexplain.errors import UsageError
from fastexplain.records import Statistics
from fastexplain.run.directory import Run

MOST_AROUND = 8
"""Excerpts that may be asked for on each side of one."""

_MARKS = (0.25, 0.5, 0.75, 0.9, 0.99, 0.999)  # shares of the excerpts
_OF_A_BIN = 2  # excerpts that are shown

# Powers of ten at their exponents, and at those below 0, from the end, 1.
_UP = np.concatenate([10.0 ** np.arange(309), np.ones(309)])


def four_digits(values: np.ndarray) -> list[Any]:
    """Numbers with four significant digits, as nested as the array; None where there is none.

    Many at a time: of 64 values it takes 17 us, of 45 times as many 180.
    """
    exact = np.asarray(values, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        digits = 3 - np.floor(np.log10(np.abs(exact)))
    finite = np.isfinite(exact)
    digits = np.where(np.isfinite(digits), digits, 0).astype(np.intp)
    # Powers of ten are exact up to 10**22; the quotient is then the number that is written so.
    up, down = _UP[digits], _UP[-digits]
    rounded = np.round(exact * up / down) / up * down
    found: list[Any] = rounded.tolist()
    if not finite.all():
        known = rounded.astype(object)
        known[~finite] = None
        found = known.tolist()
    return found


def excerpts_data(
    run: Run, excerpts: Iterable[int], known: Mapping[int, Sequence[str]]
) -> dict[str, dict[str, Any]]:
    """Excerpts by id: `tokens`, as texts, and `before` and `after`, ids of the excerpts which stand
    there in the document, null where the run has none.

    Args:
        known: the tokens of some of them, as texts, which need not be read again.
    """
    wanted = np.array(sorted(excerpts), np.int64)
    before, after = _around(run, wanted)

    def tokens(id_: int) -> Sequence[str]:
        return known[id_] if id_ in known else run.excerpt_texts(id_)

    return {
        str(id_): {"tokens": tokens(id_), "before": first, "after": last}
        for id_, first, last in zip(wanted.tolist(), before, after, strict=True)
    }


def context_data(run: Run, excerpt: int, before: int = 1, after: int = 1) -> dict[str, Any]:
    """The text around an excerpt, as far as the run has it.

    Args:
        before, after: how many excerpts on either side, up to `MOST_AROUND`.

    Returns:
        `before` and `after`: excerpts in the order of the text, each with `excerpt` and `tokens`.
        They are fewer than wanted where the document ends, or where the run swept only a sample of
        the corpus: of that it has what stands directly beside, and what it happened to sweep.

    Raises:
        UsageError: there is no such excerpt, or so many are not to be had.
        RunError: the file is missing or damaged.
    """
    count = run.neighbours.shape[1]
    if not 0 <= excerpt < count:
        raise UsageError(f"there is no excerpt {excerpt}; the run has excerpts 0 to {count - 1}")
    for number in (before, after):
        if not 0 <= number <= MOST_AROUND:
            raise UsageError(f"{number} excerpts around one; ask for 0 to {MOST_AROUND}")

    def walk(side: int, number: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        here: int | None = excerpt
        for _ in range(number):
            here = _around(run, np.array([here], np.int64))[side][0]
            if here is None:
                break
            found.append({"excerpt": here, "tokens": run.excerpt_texts(here)})
        return found

    return {"before": walk(0, before)[::-1], "after": walk(1, after)}


def _around(run: Run, excerpts: np.ndarray) -> tuple[list[int | None], list[int | None]]:
    """The excerpts that stand directly before and behind others, int64 `[n]`, in the document."""
    before, after = (
        [None if place < 0 else place for place in side[excerpts].tolist()]
        for side in run.neighbours
    )
    return before, after


def histogram_data(found: Statistics) -> dict[str, Any]:
    """The excerpts by their largest activation.

    Returns:
        `bins`, from the first to the last that has any: `low`, `high` (null for the ends that are
        open: below the histogram's lowest edge, above its highest) and `count`; `marks`, for some
        shares of the excerpts the bin, by its place in `bins`, which that quantile lies in.
    """
    there = np.flatnonzero(found.histogram)
    if not len(there):
        return {"bins": [], "marks": []}
    first, last = int(there[0]), int(there[-1])
    edges, counts = _edges(found), found.histogram.tolist()
    return {
        "bins": [
            {"low": edges[place], "high": edges[place + 1], "count": counts[place]}
            for place in range(first, last + 1)
        ],
        "marks": [
            {"share": share, "bin": place - first}
            for share, place in zip(_MARKS, _bins_of_marks(found), strict=True)
        ],
    }


def banded(found: Statistics) -> list[dict[str, Any]]:
    """A random excerpt or two from the bin of each quantile, highest first.

    Returns:
        `excerpt`, `share` (the quantile), and `low` and `high`, the ends of the bin that its
        largest activation lies in; null for an open end. What it is on each token is not stored.
    """
    rows: dict[int, dict[str, Any]] = {}
    edges = _edges(found)
    for share, place in zip(_MARKS[::-1], _bins_of_marks(found)[::-1], strict=True):
        for excerpt in found.histogram_excerpts[place, :_OF_A_BIN].tolist():
            if excerpt >= 0:
                ends = {"low": edges[place], "high": edges[place + 1]}
                rows.setdefault(excerpt, {"excerpt": excerpt, "share": share} | ends)
    return list(rows.values())


def _bins_of_marks(found: Statistics) -> list[int]:
    """The bin that each quantile of `_MARKS` lies in."""
    counts = np.cumsum(found.histogram)
    places: list[int] = np.searchsorted(counts, np.array(_MARKS) * counts[-1]).tolist()
    return places


def _edges(found: Statistics) -> list[float | None]:
    """Where each bin begins and, next to it, ends; None for the ends that are open."""
    return [None, *found.histogram_edges.tolist(), None]
