"""The viewer as an ASGI application: which addresses there are, and who answers them.

| address | answer |
| --- | --- |
| `/` and `/NAME` | the files in `static/`; the page's own address is behind `#` |
| `/api/...` | JSON, or packed arrays; each module of `ROOMS` lists its own |

An error of the library is an answer too: `{"error": one line}`, with status 400 for what was asked
wrongly and 500 for a damaged run.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route

from fastexplain.errors import FastexplainError, UsageError
from fastexplain.run.directory import Run
from fastexplain.viewer import comparing, neurons, overview, rating, runs, trying
from fastexplain.viewer.answers import JSONAnswer
from fastexplain.viewer.guard import Door, Guard
from fastexplain.viewer.viewed import Beside, Viewed

STATIC = Path(__file__).parent / "static"

ROOMS: Sequence[Callable[[Viewed], Sequence[BaseRoute]]] = (
    runs.routes,
    overview.routes,
    neurons.routes,
    rating.routes,
    trying.routes,
    comparing.routes,
)
"""What answers: each gives its addresses below `/api/` for what is viewed."""


def application(run: Run, door: Door, beside: Beside | None = None) -> Starlette:
    """The viewer of a run.

    Args:
        run: it may be written into meanwhile; every answer has what was committed before.
        door: who is let in.
        beside: what it has beside the run.
    """
    viewed = Viewed(run, door.token, beside)
    # By name: no path from an address reaches the file system.
    files = {path.name: path for path in STATIC.iterdir() if path.is_file()}

    def static(request: Request) -> Response:
        path = files.get(request.path_params.get("name", "index.html"))
        if path is None:
            raise HTTPException(404, "there is no such file")
        return FileResponse(path, headers={"Cache-Control": "no-cache"})

    @contextlib.asynccontextmanager
    async def running(_: Starlette) -> AsyncIterator[None]:
        with contextlib.closing(viewed):
            yield

    return Starlette(
        lifespan=running,
        routes=[
            *(route for room in ROOMS for route in room(viewed)),
            Route("/", static),
            Route("/{name}", static),
        ],
        middleware=[Middleware(Guard, door=door)],
        exception_handlers={FastexplainError: _failed, HTTPException: _refused},
    )


def _failed(_: Request, error: Exception) -> JSONAnswer:
    return JSONAnswer({"error": str(error)}, 400 if isinstance(error, UsageError) else 500)


def _refused(_: Request, error: Exception) -> JSONAnswer:
    assert isinstance(error, HTTPException)
    return JSONAnswer({"error": error.detail}, error.status_code)
