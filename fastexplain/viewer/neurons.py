"""A neuron, and what its page loads on demand.

GET /api/neuron/NAME         `report.page.page_data`, without what tables predict
GET /api/table/NAME          `report.page.table_data`
GET /api/baselines/NAME      `report.baselines.baselines_data`
GET /api/ruled/NAME/ID        `report.ruled.RuledExcerpts.data`, of a rule by its id
GET /api/similar/NAME        `report.similar.similar_data`
GET /api/context/EXCERPT     `report.excerpts.context_data`; `?before=1&after=1`
GET /api/request/NAME/ID     `report.asked.request_data`, of an explanation by its id
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from fastexplain.errors import FastexplainError, UsageError
from fastexplain.report.asked import request_data
from fastexplain.report.baselines import baselines_data
from fastexplain.report.excerpts import context_data
from fastexplain.report.page import page_data, table_data
from fastexplain.report.ruled import RuledExcerpts
from fastexplain.report.similar import similar_data
from fastexplain.viewer.answers import JSONAnswer
from fastexplain.viewer.viewed import Viewed

_REMEMBERED = 256  # neurons whose neighbours are looked for once

_PAGES = 1
"""That are made at once, others wait in turn. Python runs one thread at a time: of four, which take
its lock from each other, a page took 1.8 times as long."""


def routes(viewed: Viewed) -> Sequence[BaseRoute]:
    """The module's text lists them."""
    run = viewed.run
    one, rules = threading.Lock(), RuledExcerpts(run)

    # It reads the random excerpts' activations of all sites: 0.3 GB for 46,080 neurons. So one is
    # worked on at a time.
    @functools.lru_cache(_REMEMBERED)
    def similar_of(name: str) -> dict[str, object]:
        with one:
            return similar_data(run, name)

    def page(name: str) -> JSONAnswer:
        return JSONAnswer(page_data(run, name, viewed.database, tables=False))

    pages = ThreadPoolExecutor(_PAGES, "page")
    viewed.at_end.callback(pages.shutdown)

    async def neuron(request: Request) -> JSONAnswer:
        name = request.path_params["name"]
        return await asyncio.get_running_loop().run_in_executor(pages, page, name)

    def baselines(request: Request) -> JSONAnswer:
        return JSONAnswer(baselines_data(run, request.path_params["name"]))

    def table(request: Request) -> JSONAnswer:
        return JSONAnswer(table_data(run, request.path_params["name"]))

    def ruled(request: Request) -> JSONAnswer:
        name, rule = request.path_params["name"], _number(request.path_params["id"])
        return JSONAnswer(rules.data(name, rule))

    def similar(request: Request) -> JSONAnswer:
        return JSONAnswer(similar_of(request.path_params["name"]))

    def context(request: Request) -> JSONAnswer:
        numbers = (_number(request.query_params.get(side, "1")) for side in ("before", "after"))
        return JSONAnswer(context_data(run, _number(request.path_params["excerpt"]), *numbers))

    def asked(request: Request) -> JSONAnswer:
        name, explanation = request.path_params["name"], _number(request.path_params["id"])
        return JSONAnswer(request_data(run, name, explanation))

    # The first neuron's page loads the compiled kernels, which takes a second: it is made now,
    # while the browser opens.
    threading.Thread(target=_first, args=(viewed,), daemon=True).start()
    return [
        Route("/api/neuron/{name}", neuron),
        Route("/api/table/{name}", table),
        Route("/api/baselines/{name}", baselines),
        Route("/api/ruled/{name}/{id}", ruled),
        Route("/api/similar/{name}", similar),
        Route("/api/context/{excerpt}", context),
        Route("/api/request/{name}/{id}", asked),
    ]


def _first(viewed: Viewed) -> None:
    with contextlib.suppress(FastexplainError):  # whoever opens the page is told
        page_data(viewed.run, f"{next(iter(viewed.run.sites))}:0", viewed.database)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UsageError(f"'{text[:20]}' is no number")
    return int(text)
