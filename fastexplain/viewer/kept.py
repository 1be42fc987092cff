"""What is made of a whole run is made once, in the background, and again when the run has changed.

Of 300,000 neurons scores take seconds, too long for a request. Until they are made anew the former
ones are given, so that a page is never slower while `explain` writes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np

from fastexplain.report.columns import ScoreColumns, score_columns, statistic_columns
from fastexplain.report.overview import overview_data
from fastexplain.report.search import TokenSearch
from fastexplain.run.directory import Run
from fastexplain.run.readers import file_state

T = TypeVar("T")

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


class Remade(Generic[T]):
    """What is made of a run's database in a thread; threads may share it.

    Args:
        run: that the database is of.
        make: what is called once, and again after the database has changed, when somebody asks.
        first: what is called before it, and takes its time the first time alone.
    """

    def __init__(
        self, run: Run, make: Callable[[], T], first: Callable[[], object] = lambda: None
    ) -> None:
        self._run, self._make, self._first = run, make, first
        self._thread = ThreadPoolExecutor(1, "remade")
        self._lock = threading.Lock()
        self._files: tuple[tuple[int, ...], ...] = ()
        self._next = 0.0  # when it may be made anew
        self._made: Future[T] | None = None
        self._newer: Future[T] | None = None

    def begun(self) -> Future[T]:
        """What the database holds, or held when that was last made; not done where nothing is.

        Its result raises RunError where a file or the database is damaged.
        """
        with self._lock:
            if self._newer is not None and self._newer.done():
                self._made, self._newer = self._newer, None
            files = file_state(self._run.path / "run.sqlite")
            # What failed is tried again by the next who asks.
            failed = self._made is not None and self._made.done() and self._made.exception()
            if self._made is None or failed:
                self._files = files
                self._made = self._thread.submit(self._timed)
            elif (
                self._newer is None
                and self._made.done()
                and files != self._files
                and time.monotonic() >= self._next
            ):
                self._files = files
                self._newer = self._thread.submit(self._timed)
            return self._made

    def _timed(self) -> T:
        self._first()
        began = time.monotonic()
        made = self._make()
        now = time.monotonic()
        self._next = now + (now - began) / _SHARE
        return made


class Kept:
    """What is kept of a run; threads may share it."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._number = 0
        self._once = threading.Lock()
        # The picture begins with the statistics, so they come first.
        self._all = Remade(run, self._make, self.statistics)

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
        return self._all.begun()

    def _make(self) -> Made:
        with self._run.database(read_only=True) as database:
            scores = score_columns(self._run, database)
            overview = overview_data(self._run, database, self.statistics(), scores)
        self._number += 1
        return Made(self._number, scores, overview)
