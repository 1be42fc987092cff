"""What the viewer's answers have in common."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from fastexplain.errors import UsageError
from fastexplain.run.directory import Run

if TYPE_CHECKING:
    from fastexplain.pipeline.models import Settings


@dataclass(frozen=True, eq=False)
class Beside:
    """What a viewer has beside its run.

    Attributes:
        subject: where the run's subject is now, if not where it was swept from.
        trust_remote_code: run the subject's own code.
        other: a second run, of a model with the same sites and widths.
        simulator: the language model that typed explanations are simulated by, as `explain` would
            simulate by it; its answers are stored in the run.
    """

    subject: str | None = None
    trust_remote_code: bool = False
    other: Run | None = None
    simulator: Settings | None = None


@dataclass(frozen=True, eq=False)
class Viewed:
    """A run that is looked at.

    Attributes:
        run: read by several threads at once.
        token: what the browser sends with what it may not do without; see `guard.py`.
        beside: what else there is.
        at_end: what is to be closed when the viewer ends.
    """

    run: Run
    token: str
    beside: Beside = field(default_factory=Beside)
    at_end: ExitStack = field(default_factory=ExitStack)


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
