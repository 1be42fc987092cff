"""Two explainers of the run, or of two runs.

GET /api/compare                  what can be compared
GET /api/compare/points           `?a=KEY&b=KEY&split=`: both scores of all neurons, packed: float32
                                  `[2, neurons]`, little-endian, NaN where there is none
GET /api/compare/summary          `?a=KEY&b=KEY&split=`: how they differ
GET /api/compare/neuron/NEURON    `?a=KEY&b=KEY`: one neuron as both have it
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fastexplain.errors import UsageError
from fastexplain.report.comparing import (
    SPLITS,
    Pair,
    Side,
    neuron_data_of,
    scores_of,
    sides_data,
    sides_of,
    summary_data,
)
from fastexplain.run.directory import Run
from fastexplain.viewer.answers import JSONAnswer
from fastexplain.viewer.viewed import Viewed

_MOST_KEPT = 64
"""What is kept of runs: columns of float32, 1.2 MB each of 300,000 neurons, and sides."""


def routes(viewed: Viewed) -> Sequence[BaseRoute]:
    """The addresses above; see the functions of `report.comparing` for what they give."""
    run, other = viewed.run, viewed.beside.other
    kept = _Kept([own for own in (run, other) if own is not None])

    def sides() -> dict[str, Side]:
        return kept.get(("sides",), lambda: sides_of(run, other))

    def asked(request: Request) -> tuple[Side, Side]:
        known = sides()
        keys = [request.query_params.get(name, "") for name in ("a", "b")]
        for key in keys:
            if key not in known:
                raise UsageError(
                    f"'{key:.100}' has no explanations here; choose one of {', '.join(known)}"
                )
        return known[keys[0]], known[keys[1]]

    def column(side: Side, split: str) -> np.ndarray:
        return kept.get((side.key, split), lambda: scores_of(side, split))

    def pair(request: Request) -> Pair:
        first, second = asked(request)
        split = request.query_params.get("split", SPLITS[0])
        if split not in SPLITS:
            raise UsageError(f"there is no split '{split:.50}'; choose one of {', '.join(SPLITS)}")
        return Pair(first, second, split, column(first, split), column(second, split))

    def all_sides(_: Request) -> JSONAnswer:
        return JSONAnswer(sides_data(sides(), run, other))

    def points(request: Request) -> Response:
        found = pair(request)
        both = np.stack([found.a, found.b]).astype("<f4")
        return Response(both.tobytes(), media_type="application/octet-stream")

    def summary(request: Request) -> JSONAnswer:
        found = pair(request)
        key = ("summary", found.first.key, found.second.key, found.split)
        return JSONAnswer(kept.get(key, lambda: summary_data(found)))

    def neuron(request: Request) -> JSONAnswer:
        return JSONAnswer(neuron_data_of(*asked(request), request.path_params["neuron"][:100]))

    return [
        Route("/api/compare", all_sides),
        Route("/api/compare/points", points),
        Route("/api/compare/summary", summary),
        Route("/api/compare/neuron/{neuron}", neuron),
    ]


class _Kept:
    """What was read of runs' databases, until something is written to these."""

    def __init__(self, runs: list[Run]) -> None:
        self._runs, self._lock = runs, threading.Lock()
        self._values: dict[tuple[str, ...], Any] = {}
        self._files: list[tuple[int, int]] = []

    def get(self, key: tuple[str, ...], make: Any) -> Any:
        """The value of a key; made by one thread at a time."""
        with self._lock:
            files = self._signature()
            if files != self._files:
                self._values.clear()
                self._files = files
            if key not in self._values:
                if len(self._values) >= _MOST_KEPT:
                    self._values.clear()
                self._values[key] = make()
            return self._values[key]

    def _signature(self) -> list[tuple[int, int]]:
        """Changes whenever something is committed: times and sizes of the databases' files."""
        found = []
        for run in self._runs:
            for name in ("run.sqlite", "run.sqlite-wal"):
                path = run.path / name
                # An empty log of changes comes and goes with who reads.
                if path.exists() and (status := path.stat()).st_size:
                    found.append((status.st_mtime_ns, status.st_size))
        return found
