"""What the viewer's answers have in common."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from fastexplain.errors import UsageError
from fastexplain.run.directory import Run


@dataclass(frozen=True, eq=False)
class Viewed:
    """A run that is looked at.

    Attributes:
        run: read by several threads at once.
        token: what the browser sends with what it may not do without; see `guard.py`.
    """

    run: Run
    token: str


async def body_of(request: Request) -> dict[str, Any]:
    """A request's JSON object. Raises UsageError for anything else."""
    try:
        # Deeply nested brackets end in RecursionError.
        found = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise UsageError("the request is no JSON") from error
    if not isinstance(found, dict):
        raise UsageError("the request is no JSON object")
    return found
