"""People's judgements of explanations; every request names the rater, and may write.

    POST /api/rate/next      {rater}                             the next neuron to judge
    POST /api/rate/earlier   {rater, before}                     one judged before, to be changed
    POST /api/rate           {rater, neuron, key, judgement}     store; then as next
    POST /api/rate/undo      {rater}                             withdraw the last; then as next

The answer is `{task, left, total}`: `Task.data()` or null where there is nothing, and how many
neurons this rater has left. `judgement` is `{kind, values}` as in `run.ratings.Judgement`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from fastexplain.errors import UsageError
from fastexplain.rating.session import RatingSession
from fastexplain.rating.tasks import Task
from fastexplain.records import NeuronId
from fastexplain.run.ratings import Judgement
from fastexplain.viewer.answers import JSONAnswer
from fastexplain.viewer.viewed import Viewed, body_of

# Raters whose order of neurons is kept; it takes some seconds to find where neurons are many.
_MOST_RATERS = 50


def routes(viewed: Viewed) -> Sequence[BaseRoute]:
    """The addresses that the module's text lists."""
    sessions = _Sessions(viewed)

    def next_(session: RatingSession, _: dict[str, Any]) -> Task | None:
        return session.next_task()

    def earlier(session: RatingSession, asked: dict[str, Any]) -> Task | None:
        before = asked.get("before")
        if before is not None and type(before) is not int:
            raise UsageError("`before` is the number of a rating")
        return session.earlier(before)

    def store(session: RatingSession, asked: dict[str, Any]) -> Task | None:
        neuron, key, given = asked.get("neuron"), asked.get("key"), asked.get("judgement")
        if not (isinstance(neuron, str) and isinstance(key, str) and isinstance(given, dict)):
            raise UsageError("a rating has a neuron, the key of its task, and a judgement")
        kind, values = given.get("kind"), given.get("values")
        if not isinstance(kind, str) or not isinstance(values, list):
            raise UsageError("a judgement has a kind, and a list of values")
        session.store(NeuronId.parse(neuron), key, Judgement(kind, tuple(values)))
        return session.next_task()

    def undo(session: RatingSession, _: dict[str, Any]) -> Task | None:
        taken = session.undo()
        return session.next_task() if taken is None else session.task(taken.neuron)

    def answering(
        act: Callable[[RatingSession, dict[str, Any]], Task | None],
    ) -> Callable[[Request], Any]:
        async def answer(request: Request) -> JSONAnswer:
            asked = await body_of(request)
            return JSONAnswer(await run_in_threadpool(sessions.answer, act, asked))

        return answer

    ways = {"/next": next_, "/earlier": earlier, "": store, "/undo": undo}
    return [
        Route(f"/api/rate{path}", answering(act), methods=["POST"]) for path, act in ways.items()
    ]


class _Sessions:
    """A session for each rater."""

    def __init__(self, viewed: Viewed) -> None:
        self._viewed = viewed
        self._lock = threading.Lock()
        self._known: dict[str, RatingSession] = {}

    def answer(
        self, act: Callable[[RatingSession, dict[str, Any]], Task | None], asked: dict[str, Any]
    ) -> dict[str, Any]:
        """What is said to a rater, once what was asked is done."""
        rater = asked.get("rater")
        if not isinstance(rater, str):
            raise UsageError("give the name under which your ratings are stored")
        session = self._of(rater)
        task = act(session, asked)
        return {
            "task": None if task is None else task.data(),
            "left": session.left(),
            "total": len(session.neurons),
        }

    def _of(self, rater: str) -> RatingSession:
        with self._lock:
            session = self._known.pop(rater, None) or RatingSession(self._viewed.run, rater)
            self._known[rater] = session  # the longest unheard of go first
            if len(self._known) > _MOST_RATERS:
                self._known.pop(next(iter(self._known)))
        return session
