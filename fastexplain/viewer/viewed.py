"""What the viewer's answers have in common."""

from __future__ import annotations

import json
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from fastexplain.errors import RunError, UsageError
from fastexplain.run.database import Database
from fastexplain.run.directory import Run
from fastexplain.viewer.kept import Kept

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


class Viewed:
    """A run that is looked at; threads may share it.

    Args:
        run, token, beside: the attributes.

    Attributes:
        run: read by several threads at once.
        kept: what is made of the whole run.
        token: what the browser sends with what it may not do without; see `guard.py`.
        beside: what else there is.
        at_end: what is to be closed when the viewer ends.
    """

    def __init__(self, run: Run, token: str, beside: Beside | None = None) -> None:
        self.run, self.token, self.beside = run, token, beside or Beside()
        self.kept = Kept(run)
        self.at_end = ExitStack()
        self._lock = threading.Lock()
        self._database: Database | None = None
        self._closed = False

    @property
    def database(self) -> Database:
        """The run's database, read-only: opened by the first who asks, open until `close`.

        To open one takes 0.5 to 2.7 ms, as long as a third of a neuron's page.

        Raises:
            RunError: it is damaged.
        """
        with self._lock:
            if self._closed:
                raise RunError("the viewer has ended")
            if self._database is None:
                self._database = self.run.database(read_only=True)
                self.at_end.callback(self._database.close)
            return self._database

    def close(self) -> None:
        """Close the database, and what else was opened for the viewer alone."""
        with self._lock:
            self._closed = True
        self.at_end.close()


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
