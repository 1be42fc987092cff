"""The models that explain and simulate: how they are named, reached and put behind the store."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from fastexplain.errors import UnusableError, UsageError
from fastexplain.explainers.evidence import Source
from fastexplain.explainers.exemplars import TOP
from fastexplain.ledger.budget import Budget
from fastexplain.ledger.prices import Price, price_of
from fastexplain.ledger.responses import Responses
from fastexplain.ledger.stored import Meter, StoredConnection
from fastexplain.llm import Connection, address_of, connect
from fastexplain.llm.requests import Capabilities
from fastexplain.pipeline.choosing import (
    VALIDATION,
    best_of,
    check_choice,
    choosing_exemplars,
    explainer_of,
    most_requests,
)
from fastexplain.pipeline.protocols import Explainer, OtherText, Scorer, Simulator
from fastexplain.pipeline.sides import explainer_for, source_of
from fastexplain.prompts.simulator import trial
from fastexplain.prompts.wordings import DEFAULT
from fastexplain.results import CORRELATION, SIDES
from fastexplain.run.directory import Run
from fastexplain.run.splits import HELD_OUT
from fastexplain.scorers import registry
from fastexplain.simulators.model import READOUTS, choose_mode
from fastexplain.simulators.model import Simulator as ModelSimulator
from fastexplain.simulators.tuning import Tuning


@dataclass(frozen=True)
class Model:
    """A language model, and how it is reached.

    Attributes:
        name: as the server knows it; with `local` the word `smollm2`, a directory or a hub id.
        base_url: of an OpenAI-compatible server; OpenAI's own if None.
        local: load it into this process.
        price: in place of the tables' price.
        key_variable: the environment variable that holds the server's key.

    Raises:
        UsageError: one of these is of another type.
    """

    name: str
    base_url: str | None = None
    local: bool = False
    price: Price | None = None
    key_variable: str = "OPENAI_API_KEY"

    def __post_init__(self) -> None:
        for name, kinds, what in (
            ("name", str, "text"), ("base_url", str | None, "an address"),
            ("price", Price | None, "a fastexplain.Price"), ("key_variable", str, "text"),
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, kinds):
                raise UsageError(f"a model's `{name}` is {value!r}; give {what}")


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
    """The server a key belongs to: scheme and host of an address."""
    parts = urlsplit(address_of(base_url, local=False))
    return parts.scheme, parts.netloc


@dataclass(frozen=True)
class Settings:
    """How neurons are to be explained.

    Attributes:
        explainer, simulator: language models, or what else explains and simulates.
        scorers: score the explanations; by their names in `scorers.registry`, or objects.
        candidates: explanations of which the best on the validation split is taken; 1 is no choice.
        revise: rounds, at the most, in which explanations are revised; see `explainers.revise`.
        controls: explain by the revision's controls too.
        subject: where the run's subject is now, if not where it was swept from; for revisions and
            exemplars by quantiles.
        side: which of the neurons' sides is explained; see `run.sides`.
        mode: a way to simulate, one of `simulators.model.MODES`; the best that there is if None.
        readout: one of `simulators.model.READOUTS`; if None, all is as the simulator was tuned for
            this run (`puzzles.tuning`), or where it was not, "expected".
        prompt: how a language model is asked to explain, one of `prompts.wordings.PROMPTS`; what
            suits it by its probe if None.
        exemplars: those that an explainer is shown, one of `explainers.exemplars.CHOICES`.
        meanings: of a neuron at the most, each of which is explained by itself.
        tuning: how to simulate, in place of `mode`, `readout` and what is recorded.
        limits: of the server connections: concurrency, requests_per_minute, tokens_per_minute
            and timeout; see `ServerConnection`.
        fresh: ask again for what is stored.
        max_cost: in US dollars; stop before it is passed.
        max_requests: stop before more are sent.
        max_minutes: then nothing more is sent.
    """

    explainer: Model | Explainer
    simulator: Model | Simulator
    mode: str | None = None
    readout: str | None = None
    limits: dict[str, Any] = field(default_factory=dict)
    fresh: bool = False
    max_cost: float | None = None
    max_requests: int | None = None
    max_minutes: float | None = None
    scorers: Sequence[Scorer | str] = (CORRELATION,)
    prompt: str | None = None
    exemplars: str = TOP
    meanings: int = 1
    tuning: Tuning | None = None
    candidates: int = 1
    revise: int = 0
    controls: bool = False
    subject: str | None = None
    side: str = SIDES[0]

    @property
    def chooses(self) -> bool:
        """Whether explanations are chosen by simulations of the validation split."""
        return self.candidates > 1 or self.revise > 0

    @property
    def models(self) -> tuple[Model, Model]:
        """Explainer and simulator. Raises UsageError if one is no language model."""
        if not (isinstance(self.explainer, Model) and isinstance(self.simulator, Model)):
            raise UsageError("batches and estimates are for language models only")
        return self.explainer, self.simulator

    @property
    def local(self) -> bool:
        """Whether no server is asked."""
        models = [m for m in (self.explainer, self.simulator) if isinstance(m, Model)]
        return all(model.local for model in models)


class Ready(NamedTuple):
    """What explains, simulates and scores, and the prices of language models by their names.

    `simulator` is None where a language model would simulate, but no scorer goes by simulations.
    `concurrency` is how many neurons are worth working on at a time: each has at least one request
    in flight. `requests` is how many a neuron takes at the most, with excerpts of so many tokens.
    `validator` simulates the validation split. `ask` gives another connection to the explainer, by
    what it is for.
    `tuned` is how it is simulated, where that is as recorded by `puzzles.tuning`.
    """

    explainer: Explainer
    simulator: Simulator | None
    scorers: list[Scorer]
    prices: dict[str, Price | None]
    concurrency: int
    requests: Callable[[int], int]
    validator: Simulator | None
    ask: Callable[[str], Connection]
    tuned: Tuning | None = None


def reach(model: Model, settings: Settings) -> Connection:
    """Connect to a model, within the limits of the settings."""
    if model.local:
        return connect(model.name, local=True)
    connection = connect(
        model.name, base_url=model.base_url, key_variable=model.key_variable, **settings.limits
    )
    connection.trial = trial
    return connection


@contextlib.asynccontextmanager
async def connections(
    settings: Settings,
) -> AsyncIterator[tuple[Connection | None, Connection | None]]:
    """To explainer and simulator, None where that is no language model.

    It is one connection where they are the same model at the same place.
    """
    opened: dict[tuple[str, str | None, bool], Connection] = {}
    async with contextlib.AsyncExitStack() as stack:

        async def connected(model: object) -> Connection | None:
            if not isinstance(model, Model):
                return None
            where = (model.name, model.base_url, model.local)
            if where not in opened:
                opened[where] = await stack.enter_async_context(reach(model, settings))
            return opened[where]

        yield await connected(settings.explainer), await connected(settings.simulator)


async def put_behind_store(
    run: Run,
    explaining: Connection | None,
    simulating: Connection | None,
    settings: Settings,
    responses: Responses,
    meter: Meter,
    interrupted: threading.Event | None = None,
    source: Source | None = None,
    budget: Budget | None = None,
) -> Ready:
    """Put language models behind the store, and see that they can do what is asked.

    Args:
        run: whose neurons are explained.
        explaining, simulating: from `connections`.
        interrupted: set when the user wants no more to be sent.
        source: of what a prompt shows beside texts; the run's tables and weights if None.
        budget: that of the settings if None.

    Raises:
        UnusableError: one of them can't.
        UsageError: a limit on the cost was set, and a price is not known; a scorer lacks the
            model that it asks; there is no such prompt, or nothing that it could show; or there is
            nothing to choose candidates from.
    """
    check_choice(run, settings)
    source = source or source_of(run, settings.side)
    budget = budget or Budget(
        settings.max_cost, settings.max_requests, interrupted, settings.max_minutes
    )
    prices: dict[str, Price | None] = {}

    def behind(connection: Connection, model: Model, purpose: str) -> StoredConnection:
        price = model.price or price_of(model.name, connection.address)
        if price is not None:
            price = price.times(connection.price_factor)
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

    judging: list[StoredConnection] = []

    def judge(purpose: str) -> StoredConnection:
        check_judge(settings.simulator, purpose)
        assert simulating is not None and isinstance(settings.simulator, Model)
        judging.append(behind(simulating, settings.simulator, purpose))
        return judging[-1]

    explainer: Model | Explainer = settings.explainer
    simulator: Model | Simulator | None = settings.simulator
    scorers = registry.make(settings.scorers, run, judge)
    concurrency = settings.limits.get("concurrency") or 1
    simulations: Callable[[int], int] = lambda tokens: 0  # noqa: E731
    tuned: Tuning | None = None
    if isinstance(explainer, Model):
        assert explaining is not None
        asked = behind(explaining, explainer, "explanation")
        concurrency = explaining.concurrency
    # The simulator comes first, since explanations that can't be scored may cost money.
    validator = None if isinstance(simulator, Model) else simulator
    if isinstance(simulator, Model):
        assert simulating is not None
        made: dict[str, ModelSimulator] = {}
        wanted = {"simulation": simulates(scorers), VALIDATION: settings.chooses}
        for purpose in (name for name, is_wanted in wanted.items() if is_wanted):
            stored = behind(simulating, simulator, purpose)
            tuned = recorded_tuning(responses, stored, settings)
            make = functools.partial(simulator_of, stored, settings, tuned)
            made[purpose] = await stored.probe_for(make)
            simulations = made[purpose].requests
        simulator, validator = made.get("simulation"), made.get(VALIDATION)
    for each in judging:
        await each.probe_for(functools.partial(_check_chats, each, "judge"))
    if isinstance(explainer, Model):
        await asked.probe_for(functools.partial(_check_chats, asked, "explain"))
        assert asked.capabilities is not None
        written = explainer_of(
            asked, asked.capabilities, settings, source, choosing_exemplars(run, settings)
        )
        explainer = best_of(written, validator, settings)
    others = sum(getattr(scorer, "most_requests", 0) for scorer in scorers)
    texts = 1 + sum(isinstance(scorer, OtherText) for scorer in scorers)

    def requests(tokens: int) -> int:
        asked, validated = most_requests(settings)
        scored = 1 + 3 * settings.controls
        simulated = scored * HELD_OUT * texts * settings.meanings if simulates(scorers) else 0
        simulated += validated
        return asked + scored * others + simulated * simulations(tokens)

    def ask(purpose: str) -> Connection:
        assert explaining is not None and isinstance(settings.explainer, Model)
        return behind(explaining, settings.explainer, purpose)

    return Ready(
        explainer_for(explainer, settings.side), simulator, scorers, prices, concurrency, requests,
        validator, ask, tuned,
    )  # fmt: skip


def recorded_tuning(
    responses: Responses, connection: Connection, settings: Settings
) -> Tuning | None:
    """How this simulator was tuned for the run, unless the settings want it another way."""
    if settings.readout is not None or settings.tuning is not None:
        return None
    stored = responses.tuning(connection.model, connection.address)
    found = None if stored is None else Tuning.of(stored)
    return found if found is not None and settings.mode in (None, found.mode) else None


def simulator_of(
    connection: Connection, settings: Settings, tuned: Tuning | None, can: Capabilities
) -> ModelSimulator:
    """What simulates by a language model, as it was tuned or as the settings say.

    Raises:
        UnusableError: the connection lacks what is needed.
        UsageError: there is no such mode or readout.
    """
    way = settings.tuning or tuned or Tuning(settings.mode, settings.readout or READOUTS[0])
    mode = choose_mode(can, way.mode, way.readout)
    connection.capabilities = can
    return ModelSimulator(connection, mode, way.readout, way.filler, way.examples)


def offline(settings: Settings) -> Settings:
    """Settings for files of requests: whether a model thinks shows by its first answers only, and
    its prompt must not change between two files."""
    return replace(settings, prompt=settings.prompt or DEFAULT)


def check_judge(simulator: object, scorer: str) -> None:
    """Raise UsageError where a scorer has no language model to ask."""
    if not isinstance(simulator, Model):
        raise UsageError(
            f"the scorer '{scorer}' asks the `simulator`, which is no language model here; name "
            "one, or leave that scorer out"
        )


def simulates(scorers: Sequence[Scorer]) -> bool:
    """Whether any of them goes by simulations."""
    return any(scorer.judge is None for scorer in scorers)


def _check_chats(connection: Connection, task: str, can: Capabilities) -> None:
    """Raise UnusableError if a model can't be asked in chats to explain or to judge."""
    if not can.chat:
        why = (can.lacks or {}).get("chat")
        raise UnusableError(
            f"'{connection.model}' at {connection.address} answers no chats, so it can't {task}"
            f"{f' ({why})' if why else ''}; choose a model that was trained on instructions"
        )
