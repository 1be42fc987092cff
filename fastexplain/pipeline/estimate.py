"""What explaining would ask and cost, found by doing it all but sending anything.

The work runs over a scratch database; a request whose response is stored gets that, any
other is counted and gets a stand-in. The stand-in for an explanation is as long as explanations
are, so that the simulations' prompts have their length; each arm of a revision ends with a text of
its own, as if all of them gained, so that all are simulated.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from fastexplain.explainers.exemplars import QUANTILES, TOP, choose_top, exemplars_of
from fastexplain.ledger.budget import Estimate
from fastexplain.ledger.prices import BATCH_FACTOR, Price, cost, price_of
from fastexplain.ledger.responses import Responses
from fastexplain.llm import Connection, address_of
from fastexplain.llm.openai.wire import at_most
from fastexplain.llm.requests import (
    Answer,
    Capabilities,
    Chat,
    Distribution,
    Request,
    Response,
    key,
)
from fastexplain.pipeline.batches.files import recorded_for_files
from fastexplain.pipeline.choosing import (
    SENTENCES,
    VALIDATION,
    arms,
    best_of,
    check_choice,
    explainer_of,
    said_by,
)
from fastexplain.pipeline.models import (
    Model,
    Settings,
    offline,
    recorded_tuning,
    simulates,
    simulator_of,
)
from fastexplain.pipeline.neurons import explain_neurons, in_turn
from fastexplain.pipeline.sides import explainer_for, source_of
from fastexplain.prompts.revision import TYPICAL
from fastexplain.prompts.simulator import FILLERS
from fastexplain.records import Exemplar, NeuronId, NeuronRecord
from fastexplain.run.database import Database
from fastexplain.run.directory import Run
from fastexplain.run.sides import of_side
from fastexplain.scorers import registry
from fastexplain.simulators.model import Simulator as ModelSimulator

# Of more neurons, so many are rehearsed in place of all: a second or two, whatever the run.
_REHEARSED = 200
# And so many where explanations are chosen, which takes some ten times the requests.
_REHEARSED_CHOICES = 40

# How the names of those of OpenAI's models begin that don't think.
_THOUGHTLESS = ("gpt-3", "gpt-4")

_STAND_IN = "words for things that people put on, and the places where one finds"


class Rehearsal(Connection):
    """A connection that counts what it would have to ask.

    Args:
        model, address, capabilities: of the connection that it stands for.
        responses: the run's store, which is read, never written.
        purpose: as the ledger has it: "explanation", "simulation", ... or a scorer's name.
        price: of the model; None if unknown.
        total: what is counted is added here.
        fresh: take nothing from the store.
    """

    concurrency = 1

    def __init__(
        self,
        model: str,
        address: str,
        capabilities: Capabilities,
        responses: Responses,
        purpose: str,
        price: Price | None,
        total: Estimate,
        *,
        fresh: bool = False,
    ) -> None:
        self.model, self.address, self.capabilities = model, address, capabilities
        self._responses = responses
        self._purpose = purpose
        self._price = price
        self._total = total
        self._fresh = fresh
        self._seen: set[str] = set()

    async def probe(self) -> Capabilities:
        assert self.capabilities is not None
        return self.capabilities

    async def ask(self, request: Request) -> Response:
        name = key(self.model, request)
        found = None if self._fresh else self._responses.find(name, request)
        if found is not None:
            return found
        if name not in self._seen:
            self._seen.add(name)
            usage = at_most(request, await self.probe())
            self._total.add(self._purpose, usage, cost(usage, self._price))
        if isinstance(request, Chat):
            if self._purpose == SENTENCES:
                return Answer(TYPICAL, "stop")
            # Its own for every neuron, so that simulations of shared excerpts differ.
            return Answer(f"{_STAND_IN} {name[:6]}", "stop")
        shape = (len(request.lines), request.largest + 1)
        return Distribution(np.zeros(shape, dtype=np.float32))


async def rehearse(
    run: Run,
    neurons: list[NeuronId],
    settings: Settings,
    *,
    batch: bool = False,
    files: bool = False,
) -> Estimate:
    """What `explain_by_model` would ask and cost at the most, without sending anything.

    Of many neurons a sample is rehearsed. What the connections can do is taken from the run's
    record of a former probe; where there is none, that they can do what their kind mostly can.

    Args:
        batch: it is to be asked in batches.
        files: in files of batches, for an offline engine.

    Raises:
        UnusableError: the simulator is known to lack what is asked for.
    """
    chosen = neurons
    sample = _REHEARSED_CHOICES if settings.chooses else _REHEARSED
    if len(neurons) > sample:
        places = np.random.default_rng(0).choice(len(neurons), sample, replace=False)
        chosen = [neurons[place] for place in np.sort(places)]
    total = Estimate()
    if files:
        settings = offline(settings)
    check_choice(run, settings)
    with (
        run.database(read_only=True) as database,
        tempfile.TemporaryDirectory() as directory,
        Database(Path(directory) / "scratch.sqlite") as scratch,
    ):
        responses = Responses(database)

        def stand_in(model: Model, purpose: str) -> Rehearsal:
            return rehearsal_of(
                model, purpose, responses, total, fresh=settings.fresh, batch=batch, files=files
            )

        explainer, simulator = settings.models
        scorers = registry.make(settings.scorers, run, lambda purpose: stand_in(simulator, purpose))

        def simulated(purpose: str) -> ModelSimulator:
            inner = stand_in(simulator, purpose)
            assert inner.capabilities is not None
            tuned = recorded_tuning(responses, inner, settings)
            return simulator_of(inner, settings, tuned, inner.capabilities)

        simulating = simulated("simulation") if simulates(scorers) else None
        validator = simulated(VALIDATION) if settings.chooses else None

        def ask(purpose: str) -> Rehearsal:
            return stand_in(explainer, purpose)

        asked = ask("explanation")
        assert asked.capabilities is not None
        explaining = explainer_of(
            asked, asked.capabilities, settings, source_of(run, settings.side),
            choose_top if settings.exemplars == TOP else _as_many,
        )  # fmt: skip
        ways = arms(
            explainer_for(best_of(explaining, validator, settings, hopeful=True), settings.side),
            ask, validator, settings, scorers, lambda: _at_rest,
            said_by(scratch), hopeful=True,
        )  # fmt: skip
        for arm in ways:
            for own in in_turn(arm.scorers):
                async for _ in explain_neurons(
                    (of_side(run.neuron(each), settings.side) for each in chosen),
                    scratch,
                    explainer=arm.explainer,
                    simulator=simulating,
                    scorers=own,
                ):
                    pass
    return total.scaled(len(neurons), len(chosen)) if chosen else total


def rehearsal_of(
    model: Model,
    purpose: str,
    responses: Responses,
    total: Estimate,
    *,
    fresh: bool = False,
    batch: bool = False,
    files: bool = False,
) -> Rehearsal:
    """What stands for a model; for the arguments see `Rehearsal` and `rehearse`."""
    address = address_of(model.base_url, local=model.local)
    price = model.price or price_of(model.name, address)
    if (batch or files) and not model.local and price is not None:
        price = price.times(BATCH_FACTOR)
    if files and not model.local:
        can = recorded_for_files(responses, model.name, address)
    else:
        can = responses.capabilities(model.name, address) or _usual(model, address)
    return Rehearsal(model.name, address, can, responses, purpose, price, total, fresh=fresh)


async def _as_many(record: NeuronRecord) -> list[Exemplar]:
    """Stands for exemplars by quantiles, on which the subject would have to run.

    As many others of the record are in their place, of which the activations are known.
    """
    shown = exemplars_of(record)
    seen = {each.excerpt for each in shown}
    others = [each for each in [*record.top, *record.random] if each.excerpt not in seen]
    return shown + others[:QUANTILES]


async def _at_rest(neuron: NeuronId, texts: Sequence[str]) -> list[Exemplar]:
    """Stands for the subject: the neuron reacts to nothing, a word is a token."""
    words = [text.split() for text in texts]
    none = np.empty(0, np.int32)
    return [Exemplar(-1, none, own, np.zeros(len(own), np.float32)) for own in words]


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
