"""What the viewer's answers have in common."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from fastexplain.errors import UsageError
from fastexplain.run.directory import Run


@dataclass(frozen=True, eq=False)
class Beside:
    """What a viewer has beside its run.

    Attributes:
        subject: where the run's subject is now, if not where it was swept from.
        trust_remote_code: run the subject's own code.
        other: a second run, of a model with the same sites and widths.
    """

    subject: str | None = None
    trust_remote_code: bool = False
    other: Run | None = None


@dataclass(frozen=True, eq=False)
class Viewed:
    """A run that is looked at.

    Attributes:
        run: read by several threads at once.
        token: what the browser sends with what it may not do without; see `guard.py`.
        beside: what else there is.
    """

    run: Run
    token: str
    beside: Beside = field(default_factory=Beside)


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
