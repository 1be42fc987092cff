"""The whole run: its picture, its distributions and lists, and search.

GET /api/maps           what the picture can show
GET /api/map/KEY        a number of all neurons, packed
GET /api/progress       what of it is made by now: `made`, a number that grows with each new
                        overview (0 for none yet), and `baselines` (`BaselineMaps.data`)
GET /api/overview       distributions, lists, cost
GET /api/search?q=      neurons, a token and explanations; `limit=` up to 100 of each
GET /api/glance/NEURON  a neuron's best explanation
GET /api/glances?of=    the same of up to 100 neurons, named with commas between
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from fastexplain.errors import UsageError
from fastexplain.report.maps import (
    baseline_maps,
    is_baseline,
    is_statistic,
    maps_data,
    packed,
    score_map,
)
from fastexplain.report.search import glance_data, search_data
from fastexplain.viewer.answers import JSONAnswer
from fastexplain.viewer.baselines import BaselineMaps
from fastexplain.viewer.viewed import Viewed

_FEW, _MANY = 8, 100


def routes(viewed: Viewed) -> Sequence[BaseRoute]:
    """The addresses above; see the functions of `report` that they call for what they give."""
    run, kept = viewed.run, viewed.kept
    baselines = BaselineMaps(run)
    viewed.at_end.callback(baselines.close)
    kept.begun()  # whoever opens the viewer sees the overview first

    def maps(_: Request) -> JSONAnswer:
        found = maps_data()
        return JSONAnswer(found | {"maps": found["maps"] + baseline_maps(run)})

    def one_map(request: Request) -> Response:
        key = request.path_params["key"]
        try:
            if is_statistic(key):
                column = kept.statistics()[key]
            elif is_baseline(key):
                column = baselines.column(key)
            else:
                column = score_map(kept.made().scores, key)
        except KeyError:
            raise UsageError(f"there is no map '{key}'") from None
        return Response(packed(column), media_type="application/octet-stream")

    def progress(_: Request) -> JSONAnswer:
        known = kept.known()
        number = known.number if known else 0
        return JSONAnswer({"made": number, "baselines": baselines.data()})

    def overview(_: Request) -> JSONAnswer:
        return JSONAnswer(kept.made().overview)

    def search(request: Request) -> JSONAnswer:
        limit = _limit(request.query_params.get("limit", str(_FEW)))
        text = request.query_params.get("q", "")
        known = kept.known()
        headlines = None if known is None else known.scores.headlines
        return JSONAnswer(search_data(run, viewed.database, kept.tokens, headlines, text, limit))

    def glance(request: Request) -> JSONAnswer:
        return JSONAnswer(glance_data(run, viewed.database, request.path_params["neuron"]))

    def glances(request: Request) -> JSONAnswer:
        names = request.query_params.get("of", "").split(",")
        if len(names) > _MANY:
            raise UsageError(f"{len(names)} neurons are too many; name up to {_MANY}")
        with run.database(read_only=True) as database:
            return JSONAnswer([glance_data(run, database, name) for name in names])

    return [
        Route("/api/maps", maps),
        Route("/api/map/{key}", one_map),
        Route("/api/progress", progress),
        Route("/api/overview", overview),
        Route("/api/search", search),
        Route("/api/glance/{neuron}", glance),
        Route("/api/glances", glances),
    ]


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= _MANY):
        raise UsageError(f"'{text:.50}' results can't be given; ask for 1 to {_MANY}")
    return int(text)
