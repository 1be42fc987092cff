"""A run's subject, loaded in the background, on which one text runs at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from fastexplain.errors import FastexplainError, SubjectError, UsageError
from fastexplain.viewer.viewed import Viewed

if TYPE_CHECKING:
    from fastexplain.pipeline.activating import Ranker

SECONDS = 30.0
"""That a text may take; it is looked at after every eight excerpts."""

# Open pages whose newest request is known.
_MOST_PAGES = 64

T = TypeVar("T")


class OvertakenError(Exception):
    """A newer request of the same page makes this one's answer useless."""


class Background:
    """The subject of what is viewed; threads may share it.

    Its states are "absent", "loading", "ready" and "failed"; what failed can be begun again.

    Args:
        viewed: whose subject.
        clock: gives seconds.
    """

    def __init__(self, viewed: Viewed, clock: Callable[[], float] = time.monotonic) -> None:
        self._viewed, self._clock = viewed, clock
        self._changed = threading.Condition()
        self._state, self._failure = "absent", ""
        self._ranker: Ranker | None = None
        self._busy, self._tickets = False, 0
        self._newest: dict[str, int] = {}

    def state(self) -> dict[str, Any]:
        """`state`, `name` (of the subject) and `error` (one line if it failed, else null)."""
        with self._changed:
            return {
                "state": self._state,
                "name": self._viewed.run.manifest["subject"]["name"],
                "error": self._failure or None,
            }

    def begin(self) -> None:
        """Load it, unless that is done or being done."""
        with self._changed:
            if self._state in ("loading", "ready"):
                return
            self._state, self._failure = "loading", ""
        # The end of the viewer does not wait for it.
        threading.Thread(target=self._load, name="subject", daemon=True).start()

    def _load(self) -> None:
        run, beside = self._viewed.run, self._viewed.beside
        ranker, failure = None, ""
        try:
            from fastexplain.pipeline.activating import Ranker
            from fastexplain.run.subjects import load_subject_of

            ranker = Ranker(
                run,
                load_subject_of(
                    run, name=beside.subject, trust_remote_code=beside.trust_remote_code
                ),
            )
        except FastexplainError as error:
            failure = str(error)
        except Exception as error:
            # A subject's own code may raise anything; without this the page would wait for ever.
            failure = f"the subject can't be loaded: {type(error).__name__}: {error}"
        with self._changed:
            self._ranker, self._failure = ranker, failure
            self._state = "failed" if ranker is None else "ready"
            self._changed.notify_all()

    def run(self, page: str, job: Callable[[Ranker, Callable[[int], None]], T]) -> T:
        """Do a job with the subject once it is free, unless a newer one of the page comes.

        Args:
            page: whose requests overtake each other.
            job: called with the subject's ranker, and with a function to be called now and then.

        Raises:
            OvertakenError: a newer one came, before this was begun or while it ran.
            SubjectError: the subject is not loaded.
            UsageError: it took longer than `SECONDS`.
        """
        with self._changed:
            ranker = self._ranker
            if ranker is None:
                raise SubjectError(self._failure or "the subject is not loaded yet")
            self._tickets += 1
            ticket = self._tickets
            self._newest.pop(page, None)
            self._newest[page] = ticket
            if len(self._newest) > _MOST_PAGES:
                del self._newest[next(iter(self._newest))]
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._busy or self._overtaken(page, ticket))
            if self._overtaken(page, ticket):
                raise OvertakenError
            self._busy = True
        until = self._clock() + SECONDS

        def go_on(_: int) -> None:
            if self._overtaken(page, ticket):
                raise OvertakenError
            if self._clock() > until:
                raise UsageError(f"the text took more than {SECONDS:.0f} seconds; shorten it")

        try:
            return job(ranker, go_on)
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _overtaken(self, page: str, ticket: int) -> bool:
        return self._newest.get(page) != ticket
