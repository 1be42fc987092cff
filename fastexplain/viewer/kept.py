"""What is made of a whole run is made once, in the background, and again when the run has changed.

Of 300,000 neurons scores take seconds, too long for a request. Until they are made anew the former
ones are given, so that a page is never slower while `explain` writes.
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fastexplain.report.columns import ScoreColumns, score_columns, statistic_columns
from fastexplain.report.overview import overview_data
from fastexplain.report.search import TokenSearch
from fastexplain.run.directory import Run

# While a run is being written into, at most this share of the time is spent on making it anew.
_SHARE = 0.1


@dataclass(frozen=True)
class Made:
    """What the database held at a time.

    Attributes:
        number: from 1; a later one is larger.
        scores: of all neurons.
        overview: see `report.overview.overview_data`.
    """

    number: int
    scores: ScoreColumns
    overview: dict[str, Any]


class Kept:
    """What is kept of a run; threads may share it."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._thread = ThreadPoolExecutor(1, "overview")
        self._lock = threading.Lock()
        self._files: tuple[tuple[int, int], ...] = ()
        self._next = 0.0  # when it may be made anew
        self._number = 0
        self._made: Future[Made] | None = None
        self._newer: Future[Made] | None = None
        self._once = threading.Lock()

    @cached_property
    def _statistics(self) -> dict[str, np.ndarray]:
        return statistic_columns(self._run)

    def statistics(self) -> dict[str, np.ndarray]:
        """See `columns.statistic_columns`; made by the first who asks."""
        with self._once:
            return self._statistics

    @cached_property
    def tokens(self) -> TokenSearch:
        """Search by token."""
        return TokenSearch(self._run, self.statistics())

    def made(self) -> Made:
        """What the database holds, or held when that was last made; waits only where nothing is.

        Raises:
            RunError: a file or the database is damaged.
        """
        return self.begun().result()

    def known(self) -> Made | None:
        """What `made` gives, or None where that has to be waited for; never raises."""
        made = self.begun()
        return made.result() if made.done() and made.exception() is None else None

    def begun(self) -> Future[Made]:
        """The same, while it may still be made."""
        with self._lock:
            if self._newer is not None and self._newer.done():
                self._made, self._newer = self._newer, None
            files = self._signature()
            # What failed is tried again by the next who asks.
            failed = self._made is not None and self._made.done() and self._made.exception()
            if self._made is None or failed:
                self._files = files
                self._made = self._thread.submit(self._make)
            elif (
                self._newer is None
                and self._made.done()
                and files != self._files
                and time.monotonic() >= self._next
            ):
                self._files = files
                self._newer = self._thread.submit(self._make)
            return self._made

    def _make(self) -> Made:
        statistics = self.statistics()  # first: the picture begins with them
        began = time.monotonic()
        with self._run.database(read_only=True) as database:
            scores = score_columns(self._run, database)
            overview = overview_data(self._run, database, statistics, scores)
        now = time.monotonic()
        self._next = now + (now - began) / _SHARE
        self._number += 1
        return Made(self._number, scores, overview)

    def _signature(self) -> tuple[tuple[int, int], ...]:
        """Changes whenever something is committed to the database: times and sizes of its files."""
        found = []
        for name in ("run.sqlite", "run.sqlite-wal"):
            try:
                status = os.stat(self._run.path / name)  # noqa: PTH116
            except OSError:
                continue
            if status.st_size:
                found.append((status.st_mtime_ns, status.st_size))
        return tuple(found)
