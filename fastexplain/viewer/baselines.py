"""The baselines of all neurons, made in the background layer by layer once somebody asks for them.

They follow from the sweep alone, so that they are made once for as long as the viewer runs. Half a
second a layer of one core: pages come first, by the thread's priority.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from fastexplain.errors import FastexplainError
from fastexplain.report.baselines import baseline_columns
from fastexplain.report.columns import by_site, neurons_of
from fastexplain.report.maps import baseline_maps
from fastexplain.run.directory import Run
from fastexplain.viewer.priority import give_way


class BaselineMaps:
    """What is known of all neurons' baselines; threads may share it.

    Its states are "absent", "working", "done" and "failed"; what failed is begun again by who asks.

    Args:
        run: of which they are.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._state, self._failure, self._done = "absent", "", 0
        self._columns: dict[str, np.ndarray] = {}

    def data(self) -> dict[str, Any]:
        """`state`, `done` and `of` (layers), and `error` (one line if it failed, else null)."""
        with self._lock:
            return {
                "state": self._state,
                "done": self._done,
                "of": len(self._run.layers),
                "error": self._failure or None,
            }

    def column(self, key: str) -> np.ndarray:
        """What is made so far of a map of `maps.baseline_maps`; begins to make them all.

        Returns:
            float32 `[neurons]`, NaN where there is nothing yet.

        Raises:
            KeyError: there is no such map.
        """
        with self._lock:
            if not self._columns:
                keys = [each["key"] for each in baseline_maps(self._run)]
                self._columns = {
                    own: np.full(neurons_of(self._run), np.nan, np.float32) for own in keys
                }
            found = self._columns[key].copy()
            if self._state in ("absent", "failed") and not self._ended.is_set():
                self._state, self._failure, self._done = "working", "", 0
                self._thread = threading.Thread(target=self._make, name="baselines", daemon=True)
                self._thread.start()
            return found

    def close(self) -> None:
        """Make no more layers; waits for the one that is being made."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _make(self) -> None:
        give_way()
        state, failure = "done", ""
        try:
            for layer, found in baseline_columns(self._run):
                with self._lock:
                    for key, values in found.items():
                        by_site(self._run, self._columns[key])[str(layer)][:] = values
                    self._done += 1
                if self._ended.is_set():
                    return
        except FastexplainError as error:
            state, failure = "failed", str(error)
        except Exception as error:
            # Without this the page would wait for ever.
            state, failure = "failed", f"baselines can't be made: {type(error).__name__}: {error}"
        with self._lock:
            self._state, self._failure = state, failure
