"""What a run is: its subject, corpus, settings and sites.

GET /api/run        see `routes`
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from fastexplain.report.run import run_data
from fastexplain.viewer.answers import JSONAnswer
from fastexplain.viewer.viewed import Viewed


def routes(viewed: Viewed) -> Sequence[BaseRoute]:
    """`/api/run`: `report.run.run_data`, and the token that POST requests need."""

    def run(_: Request) -> JSONAnswer:
        return JSONAnswer(run_data(viewed.run) | {"token": viewed.token})

    return [Route("/api/run", run)]
