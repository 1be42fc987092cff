"""Typed explanations simulated by a language model, in a thread of their own while a page waits.

A page asks for a text again and again, and hears each time what came of it or how far it has got.
So one text is simulated once, however often it is asked for and by how many pages; and when no page
has asked for `LEASE` seconds, all have left: nothing more is sent for it. What was sent is awaited
and stored, since it may have been paid for.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import threading
import time
from collections.abc import Callable
from concurrent import futures
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from fastexplain.errors import (
    BudgetError,
    FastexplainError,
    LLMError,
    RunError,
    StoppedError,
    UsageError,
)
from fastexplain.ledger.budget import Budget, Share
from fastexplain.ledger.prices import dollars, price_of
from fastexplain.ledger.responses import Responses
from fastexplain.ledger.stored import Meter
from fastexplain.llm import Connection, address_of
from fastexplain.pipeline.models import Settings, put_behind_store, reach
from fastexplain.pipeline.trying import Tried, Typed, rehearse_text, try_text
from fastexplain.records import NeuronId
from fastexplain.report.trying import tried_data
from fastexplain.run.directory import Run
from fastexplain.run.splits import HELD_OUT
from fastexplain.simulators.model import READOUTS, check_way
from fastexplain.viewer.priority import give_way

HOLD, LEASE = 1.0, 5.0
"""Seconds until a page is answered at the latest, and after which one that asks no more has left.
"""

MOST = 4
"""Texts that are simulated at once."""

# Seconds in which what is in flight may be answered when the viewer ends.
_AT_END = 5.0


class Simulations:
    """What pages have simulated by one model, within one budget; threads may share it.

    Args:
        run: its answers are stored there.
        settings: with a language model as simulator.
        clock: gives seconds.

    Raises:
        UsageError: a limit, mode or readout makes no sense, or a limit on the cost was set and the
            model's price is not known.
    """

    def __init__(
        self, run: Run, settings: Settings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._run, self._settings, self._clock = run, settings, clock
        _, self._model = settings.models
        self._budget = Budget(settings.max_cost, settings.max_requests)
        address = address_of(self._model.base_url, local=self._model.local)
        self._price = self._model.price or price_of(self._model.name, address)
        self._budget.check_price(self._model.name, self._price)
        check_way(settings.mode, settings.readout or READOUTS[0])
        self._lock = threading.Lock()
        self._trials: dict[tuple[NeuronId, str], _Trial] = {}
        self._running: set[futures.Future[Tried]] = set()  # of those that were left, too
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread
        self._opening = asyncio.Lock()
        self._opened = AsyncExitStack()
        self._reached: tuple[Connection, Responses] | None = None

    def state(self) -> dict[str, Any]:
        """`model`, `max_cost`, `left` (of that), both null without a limit, and `spent`."""
        return {
            "model": self._model.name,
            "max_cost": self._settings.max_cost,
            "left": self._budget.left,
            "spent": self._budget.spent,
        }

    def estimate(self, neuron: NeuronId, text: str) -> dict[str, Any]:
        """What simulating a text would take: `requests` and `cost`, at the most, and `state`.

        The cost is in US dollars, null where the price is not known.
        """
        share, _ = self._rehearsed(neuron, text)
        cost = None if share.unpriced else share.cost
        return {"requests": share.requests, "cost": cost} | self.state()

    def ask(self, neuron: NeuronId, text: str) -> dict[str, Any]:
        """What came of a text, or how far that has got, after `HOLD` seconds at the latest.

        What is stored already is given at once, whether the model can be reached or not.

        Returns:
            `done` and `of`, excerpts, and `reached`, whether the model is; or, when all are done,
            what `report.trying.tried_data` has, `answered` (requests), `cost` (null where the price
            is not known) and `state`.

        Raises:
            LLMError: the model can't be reached, lacks what is needed, or gave nothing of use; or
                a limit is reached.
            UsageError: too many texts are being simulated.
            RunError: the run can't be read or written.
        """
        key = neuron, text
        trial = self._under_way(key)
        if trial is None:
            _, found = self._rehearsed(neuron, text)
            if found is not None:
                return self._result(neuron, found, Meter())
            trial = self._under_way(key, begin=True)
            assert trial is not None
        futures.wait([trial.result], HOLD)
        if not trial.result.done():
            return trial.data()
        with self._lock:
            if self._trials.get(key) is trial:
                del self._trials[key]
        try:
            return self._result(neuron, trial.result.result(), trial.meter)
        except StoppedError:  # it was taken to be left; who asks again has it begun anew
            return trial.data()
        except (BudgetError, LLMError) as error:
            raise LLMError(_with_options(str(error))) from error
        except futures.CancelledError as error:
            raise LLMError("the viewer is ending") from error

    def close(self) -> None:
        """Send no more; what is in flight is stored if it is answered soon."""
        with self._lock:
            loop, self._loop = self._loop, None
            running = list(self._running)
            for each in self._trials.values():
                each.leave()
        if loop is None:
            return
        for result in futures.wait(running, _AT_END).not_done:
            result.cancel()
        asyncio.run_coroutine_threadsafe(self._end(), loop)
        # It waits in vain while a model is being loaded, which ends with the process.
        self._thread.join(_AT_END)

    async def _end(self) -> None:
        """Close the model and the store, and let all that still waits come to its end."""
        try:
            await self._opened.aclose()
        finally:
            waiting = asyncio.all_tasks() - {asyncio.current_task()}
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.stop)

    def _rehearsed(self, neuron: NeuronId, text: str) -> tuple[Share, Tried | None]:
        with self._run.database(read_only=True) as database:
            rehearsal = rehearse_text(
                Responses(database), self._run.neuron(neuron), text, self._settings
            )
            try:
                estimate, found = asyncio.run(rehearsal)
            except LLMError as error:
                raise LLMError(_with_options(str(error))) from error
        return estimate.total, found

    def _result(self, neuron: NeuronId, tried: Tried, meter: Meter) -> dict[str, Any]:
        return {
            **tried_data(self._run, neuron, tried),
            "answered": meter.answered,
            "cost": None if self._price is None and meter.answered else meter.cost,
        } | self.state()

    def _under_way(self, key: tuple[NeuronId, str], *, begin: bool = False) -> _Trial | None:
        """What is under way for a text, with its lease renewed; one that was left is not."""
        with self._lock:
            trial = self._trials.get(key)
            if (trial is None or trial.is_set()) and begin:
                trial = self._begin(key)
            if trial is None or trial.is_set():
                return None
            trial.renew()
            return trial

    def _begin(self, key: tuple[NeuronId, str]) -> _Trial:
        self._trials = {own: each for own, each in self._trials.items() if not each.is_set()}
        waited_for = sum(not each.result.done() for each in self._trials.values())
        if waited_for >= MOST:
            raise UsageError(f"{MOST} explanations are being simulated; wait for one of them")
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            # The end of the viewer does not wait for it.
            self._thread = threading.Thread(
                target=_run_forever, args=(self._loop,), name="simulator", daemon=True
            )
            self._thread.start()
        trial = _Trial(self._clock)
        trial.result = asyncio.run_coroutine_threadsafe(self._simulate(trial, *key), self._loop)
        self._trials[key] = trial
        self._running.add(trial.result)
        trial.result.add_done_callback(self._running.discard)
        return trial

    async def _simulate(self, trial: _Trial, neuron: NeuronId, text: str) -> Tried:
        connection, responses = await self._open()
        settings = replace(self._settings, explainer=Typed(text))
        budget = Budget(None, None, trial, within=self._budget)
        ready = await put_behind_store(
            self._run, None, connection, settings, responses, trial.meter, budget=budget
        )
        assert ready.simulator is not None
        trial.reached = True
        record = self._run.neuron(neuron)
        # By what the model can do as it is known now.
        estimate, _ = await rehearse_text(responses, record, text, self._settings)
        left = self._budget.left
        if left is not None and estimate.total.cost > left:
            raise BudgetError(
                f"simulating this may cost {dollars(estimate.total.cost)}, and of `max_cost` "
                f"{dollars(left)} are left; start the viewer again with a higher one"
            )
        return await try_text(record, text, ready.simulator, trial.advance)

    async def _open(self) -> tuple[Connection, Responses]:
        """The model and the store, opened by the first who asks; what failed is tried again."""
        async with self._opening:
            if self._reached is None:
                connection = reach(self._model, self._settings)
                try:
                    database = self._opened.enter_context(self._run.database())
                except RunError:
                    await connection.close()
                    raise
                await self._opened.enter_async_context(connection)
                self._reached = connection, Responses(database)
            return self._reached


class _Trial:
    """One text under way.

    Attributes:
        result: what comes of it.
        reached: whether the model is, and known to be able to.
        done: excerpts that are simulated, or have failed.
        meter: counts its requests.
    """

    result: futures.Future[Tried]

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.done, self.reached, self.meter = 0, False, Meter()
        self.renew()

    def data(self) -> dict[str, Any]:
        """How far it has got."""
        return {"done": self.done, "of": HELD_OUT, "reached": self.reached}

    def advance(self) -> None:
        """Count one more excerpt."""
        self.done += 1

    def renew(self) -> None:
        """Note that a page waits for it."""
        self._until = self._clock() + LEASE

    def leave(self) -> None:
        """Take all pages to have left."""
        self._until = float("-inf")

    def is_set(self) -> bool:
        """Whether all pages have left; see `ledger.budget.Interruption`."""
        return self._clock() > self._until


def _run_forever(loop: asyncio.AbstractEventLoop) -> None:
    """Run the simulator's loop: a model in this process, which it begins, lets pages go first."""
    give_way()
    loop.run_forever()
    loop.close()


def without_simulator(run: Run) -> dict[str, Any]:
    """`model`, null, and `start`: a command by which the viewer has the run's last simulator.

    Where nothing was simulated by a model, its name is left to be filled in.
    """
    try:
        with run.database(read_only=True) as database:
            found = Responses(database).last_simulator()
    except FastexplainError:  # other pages say so
        found = None
    model, address = found or ("MODEL", address_of(None, local=False))
    options = ["--simulator", model]
    if address == "local":
        options.append("--local")
    elif address != address_of(None, local=False):
        options += ["--base-url", address]
    return {"model": None, "start": shlex.join(["fastexplain", "view", str(run.path), *options])}


def _with_options(message: str) -> str:
    """A message with the command's options in place of Python's arguments that it has."""
    return re.sub(
        r"`(max_cost|max_requests|price|simulation|readout)(?:='?([^`']*)'?)?`",
        lambda found: f"--{found[1].replace('_', '-')}{f' {found[2]}' if found[2] else ''}",
        message,
    )
