"""Two explainers of the run, or of two runs.

GET /api/compare                  what can be compared
GET /api/compare/points           `?a=KEY&b=KEY&split=`: both scores of all neurons, packed: float32
                                  `[2, neurons]`, little-endian, NaN where there is none
GET /api/compare/summary          `?a=KEY&b=KEY&split=`: how they differ
GET /api/compare/neuron/NEURON    `?a=KEY&b=KEY`: one neuron as both have it

Points and summary are of what `kept.py` last made, and wait only where nothing is made yet.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fastexplain.errors import UsageError
from fastexplain.report.columns import ScoreColumns, score_columns
from fastexplain.report.comparing import (
    SPLITS,
    Pair,
    Side,
    neuron_data_of,
    pair_of,
    sides_data,
    sides_of,
    summary_data,
)
from fastexplain.run.directory import Run
from fastexplain.run.readers import file_state
from fastexplain.viewer.answers import JSONAnswer
from fastexplain.viewer.kept import Remade
from fastexplain.viewer.viewed import Viewed


def routes(viewed: Viewed) -> Sequence[BaseRoute]:
    """The addresses above; see the functions of `report.comparing` for what they give."""
    run, other = viewed.run, viewed.beside.other
    sides = _Sides(run, other)
    others = None if other is None else Remade(other, lambda: _columns_of(other))
    if others is not None:
        others.begun()

    def asked(request: Request) -> tuple[Side, Side]:
        known = sides.now()
        keys = [request.query_params.get(name, "") for name in ("a", "b")]
        for key in keys:
            if key not in known:
                raise UsageError(
                    f"'{key:.100}' has no explanations here; choose one of {', '.join(known)}"
                )
        return known[keys[0]], known[keys[1]]

    def columns(side: Side) -> ScoreColumns:
        if others is not None and side.run is other:
            return others.begun().result()
        return viewed.kept.made().scores

    def pair(request: Request) -> Pair:
        first, second = asked(request)
        split = request.query_params.get("split", SPLITS[0])
        if split not in SPLITS:
            raise UsageError(f"there is no split '{split:.50}'; choose one of {', '.join(SPLITS)}")
        return pair_of(first, second, split, columns(first), columns(second))

    def all_sides(_: Request) -> JSONAnswer:
        return JSONAnswer(sides_data(sides.now(), run, other))

    def points(request: Request) -> Response:
        found = pair(request)
        both = np.stack([found.a, found.b]).astype("<f4")
        return Response(both.tobytes(), media_type="application/octet-stream")

    def summary(request: Request) -> JSONAnswer:
        return JSONAnswer(summary_data(pair(request)))

    def neuron(request: Request) -> JSONAnswer:
        return JSONAnswer(neuron_data_of(*asked(request), request.path_params["neuron"][:100]))

    return [
        Route("/api/compare", all_sides),
        Route("/api/compare/points", points),
        Route("/api/compare/summary", summary),
        Route("/api/compare/neuron/{neuron}", neuron),
    ]


class _Sides:
    """What can be compared, looked for again once a database has changed; threads may share it."""

    def __init__(self, run: Run, other: Run | None) -> None:
        self._run, self._other = run, other
        self._known: tuple[object, dict[str, Side]] | None = None

    def now(self) -> dict[str, Side]:
        """See `sides_of`. It takes 50 ms of 300,000 neurons: whoever comes meanwhile looks too."""
        runs = [own for own in (self._run, self._other) if own is not None]
        files = [file_state(own.path / "run.sqlite") for own in runs]
        known = self._known
        if known is None or known[0] != files:
            known = self._known = files, sides_of(self._run, self._other)
        return known[1]


def _columns_of(run: Run) -> ScoreColumns:
    with run.database(read_only=True) as database:
        return score_columns(run, database)
