"""The job of `fastexplain explain` with language models: connections, store, budget, display.

1. The explainer and the simulator are connected and, on their first use in a run, probed.
2. Both are put behind the store of responses, with one budget and one set of counters.
3. `explain_neurons` does the work; what fails is told, and stored with its reason.

A rehearsal does it without sending anything. For batches see `asking_batches.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np

from fastexplain.errors import BudgetError, StoppedError, UnusableError
from fastexplain.ledger.budget import INTERRUPTED, Budget, Estimate
from fastexplain.ledger.prices import Price, price_of
from fastexplain.ledger.responses import Responses
from fastexplain.ledger.stored import Meter, StoredConnection
from fastexplain.live import Progress, display
from fastexplain.llm import Connection, address_of, connect
from fastexplain.llm.requests import Capabilities
from fastexplain.pipeline.batches.files import Collector, recorded_for_files
from fastexplain.pipeline.estimate import Rehearsal
from fastexplain.pipeline.neurons import explain_neurons
from fastexplain.prompts.simulator import FILLERS
from fastexplain.records import NeuronId
from fastexplain.run.database import Database
from fastexplain.run.directory import Run
from fastexplain.run.splits import RANDOM_EXCERPTS, TEST_RANKS
from fastexplain.simulators.model import Simulator, choose_mode
from fastexplain.terminal import interrupts, messages

# Test excerpts of a neuron, each of which is simulated.
EXCERPTS = len(TEST_RANKS) + RANDOM_EXCERPTS

# Of more neurons, so many are rehearsed in place of all: a second or two, whatever the run.
_REHEARSED = 200

# How the names of those of OpenAI's models begin that don't think.
_THOUGHTLESS = ("gpt-3", "gpt-4")

# Failures that are told one by one; all are stored with their reasons.
_TOLD = 20


@dataclass(frozen=True)
class Model:
    """A language model, and how it is reached.

    Attributes:
        name: as the server knows it; with `local` the word `smollm2`, a directory or a hub id.
        base_url: of an OpenAI-compatible server; OpenAI's own if None.
        local: load it into this process.
        price: in place of the tables' price.
        key_variable: the environment variable that holds the server's key.
    """

    name: str
    base_url: str | None = None
    local: bool = False
    price: Price | None = None
    key_variable: str = "OPENAI_API_KEY"


def simulator_model(
    explainer: Model,
    name: str | None,
    *,
    base_url: str | None = None,
    local: bool = False,
    price: Price | None = None,
) -> Model:
    """The simulator: the explainer, or another model in its place, or at a place of its own.

    If it has an address of its own, its key is read from SIMULATOR_API_KEY; where that is not set,
    the explainer's key is used if both are on one server.

    Args:
        explainer: the explainer.
        name: of the simulator; the explainer's if None.
        base_url, local: its own place; the explainer's if neither is given.
        price: of the simulator; the explainer's, if that is the same model.
    """
    own = base_url is not None or local
    other = base_url is not None and (
        "SIMULATOR_API_KEY" in os.environ or _server(base_url) != _server(explainer.base_url)
    )
    same = not own and name in (None, explainer.name)
    return Model(
        name or explainer.name,
        base_url if own else explainer.base_url,
        local if own else explainer.local,
        price or (explainer.price if same else None),
        "SIMULATOR_API_KEY" if other else explainer.key_variable,
    )


def _server(base_url: str | None) -> tuple[str, str]:
    """What is told a key: the scheme and the host of an address."""
    parts = urlsplit(address_of(base_url, local=False))
    return parts.scheme, parts.netloc


@dataclass(frozen=True)
class Settings:
    """How neurons are to be explained.

    Attributes:
        explainer, simulator: the models.
        mode: a way to simulate, one of `simulate.MODES`; the best that there is if None.
        readout: one of `simulate.READOUTS`.
        limits: of the server connections: concurrency, requests_per_minute, tokens_per_minute
            and timeout; see `ServerConnection`.
        fresh: ask again for what is stored.
        max_cost: in US dollars; stop before it is passed.
        max_requests: stop before more are sent.
    """

    explainer: Model
    simulator: Model
    mode: str | None = None
    readout: str = "expected"
    limits: dict[str, Any] = field(default_factory=dict)
    fresh: bool = False
    max_cost: float | None = None
    max_requests: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        explained: neurons that have an explanation now.
        stopped: the limit that was reached, if one was.
        finished: whether nothing waits for the answers to a batch.
    """

    explained: int
    stopped: BudgetError | None = None
    finished: bool = True


def explain_by_model(run: Run, neurons: list[NeuronId], settings: Settings) -> Outcome:
    """Explain, simulate and score; failures go to standard error, results to the database.

    Raises:
        LLMError: a model can't be reached, or lacks what is needed.
        UsageError: a limit on the cost was set, and a price is not known.
        KeyboardInterrupt: by a second Ctrl-C, or the first one where all is asked of models here.
            The first one lets requests in flight end, and is part of the outcome.
    """
    try:
        return asyncio.run(_explain(run, neurons, settings))
    except KeyboardInterrupt:
        messages.print("What was answered is stored; the same command goes on from there.")
        raise


async def _explain(run: Run, neurons: list[NeuronId], settings: Settings) -> Outcome:
    meter, told = Meter(), Failures()
    progress, explained = Progress(len(neurons)), 0
    stopped: BudgetError | None = None
    with contextlib.ExitStack() as undo:
        database = undo.enter_context(run.database())
        # What a server has in flight may cost money; what waits for a model here does not.
        if not (settings.explainer.local and settings.simulator.local):
            progress.interrupted = undo.enter_context(interrupts())
        responses = Responses(database)
        async with _connections(settings) as (explaining, simulating):
            explainer, simulator, _ = await put_behind_store(
                explaining, simulating, settings, responses, meter, progress.interrupted
            )
            wanted = itertools.takewhile(lambda _: not progress.interrupted.is_set(), neurons)
            records = map(run.neuron, wanted)
            results = explain_neurons(
                records, database, explainer=explainer, simulator=simulator, fresh=settings.fresh
            )
            inner = {id(c): c for c in (explaining, simulating)}.values()
            with display(
                f"Explaining by {settings.explainer.name}",
                progress,
                meter,
                1 + EXCERPTS * simulator.requests(run.excerpts.shape[1]),
                retried=lambda: sum(getattr(c, "retried", 0) for c in inner),
            ):
                try:
                    async for result in results:
                        progress.done += 1
                        progress.before += result.complete
                        explained += result.text is not None
                        told.add(result.neuron, result.failures)
                except BudgetError as error:
                    stopped = error
    if progress.interrupted.is_set() and progress.done < progress.total:
        stopped = StoppedError(INTERRUPTED)
    told.summary()
    return Outcome(explained, stopped)


def rehearse(
    run: Run,
    neurons: list[NeuronId],
    settings: Settings,
    *,
    batches: Literal["server", "files"] | None = None,
) -> Estimate:
    """What `explain_by_model` would ask and cost at the most, without sending anything.

    Of many neurons a sample is rehearsed. What the connections can do is taken from the run's
    record of a former probe; where there is none, that they can do what their kind mostly can.

    Args:
        batches: whether it is to be asked in batches, by a server or by files.

    Raises:
        UnusableError: the simulator is known to lack what is asked for.
    """
    chosen = neurons
    if len(neurons) > _REHEARSED:
        places = np.random.default_rng(0).choice(len(neurons), _REHEARSED, replace=False)
        chosen = [neurons[place] for place in np.sort(places)]
    total = Estimate()
    Budget(settings.max_cost, settings.max_requests)  # raises UsageError for what is no limit
    with run.database(read_only=True) as database, Database(":memory:") as scratch:
        responses = Responses(database)

        def stand_in(model: Model, purpose: str) -> Rehearsal:
            address = address_of(model.base_url, local=model.local)
            price = model.price or price_of(model.name, address)
            if batches is not None and not model.local and price is not None:
                price = price.in_batch()
            can = responses.capabilities(model.name, address) or _usual(model, address)
            if batches == "files" and not model.local:
                can = recorded_for_files(responses, model.name, address)
            return Rehearsal(
                model.name, address, can, responses, purpose, price, total, fresh=settings.fresh
            )

        simulating = stand_in(settings.simulator, "simulation")
        assert simulating.capabilities is not None
        mode = choose_mode(simulating.capabilities, settings.mode, settings.readout)

        async def work() -> None:
            records = (run.neuron(neuron) for neuron in chosen)
            async for _ in explain_neurons(
                records,
                scratch,
                explainer=stand_in(settings.explainer, "explanation"),
                simulator=Simulator(simulating, mode, settings.readout),
            ):
                pass

        asyncio.run(work())
    return total.scaled(len(neurons), len(chosen)) if chosen else total


def _usual(model: Model, address: str) -> Capabilities:
    """What a connection of this kind can mostly do."""
    if model.local:
        return Capabilities(
            chat=True, chat_logprobs=11, next_logprobs=11, prompt_logprobs=11, fillers=FILLERS
        )
    can = Capabilities(chat=True, chat_logprobs=20, schema="json_schema")
    if urlsplit(address).hostname == "api.openai.com":
        return replace(can, thinks=not model.name.startswith(_THOUGHTLESS))
    return replace(can, prompt_logprobs=20, fillers=FILLERS)


def reach(model: Model, settings: Settings) -> Connection:
    """Connect to a model, within the limits of the settings."""
    if model.local:
        return connect(model.name, local=True)
    return connect(
        model.name, base_url=model.base_url, key_variable=model.key_variable, **settings.limits
    )


@contextlib.asynccontextmanager
async def _connections(settings: Settings) -> AsyncIterator[tuple[Connection, Connection]]:
    """Explainer and simulator; one connection where they are the same model at the same place."""
    explainer, simulator = settings.explainer, settings.simulator
    async with contextlib.AsyncExitStack() as stack:
        explaining = await stack.enter_async_context(reach(explainer, settings))
        where = [(m.name, m.base_url, m.local) for m in (explainer, simulator)]
        if where[0] == where[1]:
            yield explaining, explaining
        else:
            yield explaining, await stack.enter_async_context(reach(simulator, settings))


async def put_behind_store(
    explaining: Connection,
    simulating: Connection,
    settings: Settings,
    responses: Responses,
    meter: Meter,
    interrupted: threading.Event | None = None,
) -> tuple[StoredConnection, Simulator, dict[str, Price | None]]:
    """Put both models behind the store, and see that they can do what is asked.

    Args:
        explaining, simulating: reach the models.
        interrupted: set when the user wants no more to be sent.

    Returns:
        The explainer, the simulator, and the prices by the models' names.

    Raises:
        UnusableError: one of them can't.
        UsageError: a limit on the cost was set, and a price is not known.
    """
    budget = Budget(settings.max_cost, settings.max_requests, interrupted)
    prices: dict[str, Price | None] = {}

    def behind(connection: Connection, model: Model, purpose: str) -> StoredConnection:
        price = model.price or price_of(model.name, connection.address)
        if price is not None and isinstance(connection, Collector):
            price = price.in_batch()
        budget.check_price(model.name, price)
        prices[model.name] = price
        return StoredConnection(
            connection,
            responses,
            purpose,
            price=price,
            budget=budget,
            fresh=settings.fresh,
            meter=meter,
        )

    explainer = behind(explaining, settings.explainer, "explanation")
    # The simulator comes first, since explanations that can't be scored may cost money.
    simulator = behind(simulating, settings.simulator, "simulation")
    with messages.status("Finding out what the models can do"):
        mode = await simulator.probe_for(simulates(settings))
        await explainer.probe_for(explains(settings.explainer.name, explaining.address))
    return explainer, Simulator(simulator, mode, settings.readout), prices


def simulates(settings: Settings) -> Callable[[Capabilities], str]:
    """Gives the mode in which a model simulates; raises UnusableError if it can't."""
    return lambda can: choose_mode(can, settings.mode, settings.readout)


def explains(model: str, address: str) -> Callable[[Capabilities], None]:
    """Raises UnusableError if a model can't explain."""

    def check(can: Capabilities) -> None:
        if not can.chat:
            why = (can.lacks or {}).get("chat")
            raise UnusableError(
                f"'{model}' at {address} answers no chats, so it can't explain"
                f"{f' ({why})' if why else ''}; choose a model that was trained on instructions"
            )

    return check


class Failures:
    """Tells the first failures as they come, and at the end how many there were of each kind."""

    def __init__(self) -> None:
        self._count = 0
        self._kinds: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, neuron: NeuronId, failures: list[str]) -> None:
        for failure in failures:
            if self._count < _TOLD:
                messages.print(f"{neuron}: {failure}", markup=False, soft_wrap=True)
            self._count += 1
            reason = failure.partition(": ")[2]
            kind = _VARYING.sub("", reason)
            self._kinds[kind] += 1
            self._examples.setdefault(kind, reason)

    def summary(self) -> None:
        if self._count > _TOLD:
            often = (
                f"{count:,} times such as: {self._examples[kind]}"
                for kind, count in self._kinds.most_common(3)
            )
            messages.print(
                f"{self._count:,} failures; {'; '.join(often)}. The same command asks again for "
                "what was not answered; what was, but can't be used, only --fresh asks for again.",
                markup=False,
                soft_wrap=True,
            )


# What differs between failures of one kind: what is quoted, and numbers.
_VARYING = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\d+")
