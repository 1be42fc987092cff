"""Explaining through a batch API, or through files for an offline engine.

The work is done in rounds. A round explains, simulates and scores as far as the store has the
answers, and notes the requests that are missing; these are then answered as a whole. So there is
a round for the explanations, one for the simulations from them and for scorers' questions, and a
last one that finds nothing missing. Files for an offline engine end the command after each round;
the answers are ingested, and the same command goes on with the next.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from fastexplain.counting import counted
from fastexplain.errors import BudgetError, LLMError, UsageError
from fastexplain.ledger.prices import Price
from fastexplain.ledger.responses import PendingRequest, Responses
from fastexplain.ledger.stored import Meter
from fastexplain.llm import Connection, address_of
from fastexplain.llm.openai.server import ServerConnection
from fastexplain.llm.requests import Capabilities
from fastexplain.pipeline.batches.client import BatchClient
from fastexplain.pipeline.batches.files import (
    Collector,
    Ingested,
    ingest,
    lines,
    recorded_for_files,
    split,
    write_files,
)
from fastexplain.pipeline.choosing import asked_of, check_choice
from fastexplain.pipeline.explaining import OnFailure, Outcome
from fastexplain.pipeline.models import Model, Settings, offline, put_behind_store, reach
from fastexplain.pipeline.neurons import explain_neurons
from fastexplain.pipeline.protocols import OtherText
from fastexplain.records import NeuronId
from fastexplain.run.directory import Run
from fastexplain.run.sides import of_side


async def explain_in_batches(
    run: Run,
    neurons: list[NeuronId],
    settings: Settings,
    file: Path | None = None,
    *,
    report: Callable[[str], None] = lambda line: None,
    on_failure: OnFailure = lambda neuron, failure: None,
) -> Outcome:
    """As `explain_by_model`, in batches. Models in this process are asked immediately.

    Args:
        file: only write what has to be asked first; then see `take_answers`.
        report: called with a line on what is going on.
        on_failure: called for each failure.

    Raises:
        LLMError: a server can't be reached, takes no batches, or answers nothing in them.
        RunError: the file can't be written.
        UsageError: there is nothing to send in a batch, or what is stored shall be asked again.
    """
    if all(model.local for model in settings.models):
        raise UsageError("local models answer immediately; drop `batch` or `batch_file`")
    if settings.fresh:
        raise UsageError("`fresh` and batches exclude each other")
    if settings.revise:
        raise UsageError("`revise` takes many rounds, too slow in batches; leave out one of them")
    check_choice(run, settings)
    if file is not None:
        settings = offline(settings)
    explained: set[NeuronId] = set()
    waiting, stopped = list(neurons), None
    with run.database() as database:
        responses = Responses(database)
        responses.forget_failures()
        async with contextlib.AsyncExitStack() as stack:
            explaining, simulating = [
                await _reach(stack, model, settings, responses, offline=file is not None)
                for model in settings.models
            ]
            collectors = [c for c in (explaining, simulating) if isinstance(c, Collector)]
            ready = await put_behind_store(
                run, explaining, simulating, settings, responses, Meter()
            )
            asked = {"": asked_of(ready.explainer)}
            for scorer in ready.scorers:
                if isinstance(scorer, OtherText):
                    raise UsageError(
                        f"the scorer '{scorer.name}' can't be used in batches; add it when they "
                        "are done, by the same command without `batch`"
                    )
            clients = {
                collector.address: BatchClient(
                    collector.server,
                    responses,
                    _capabilities([c for c in collectors if c.address == collector.address]),
                    ready.prices,
                    report,
                )
                for collector in collectors
                if collector.server is not None
            }
            for client in clients.values():  # what an earlier command submitted
                await client.finish()
            while waiting and stopped is None:
                records = (of_side(run.neuron(each), settings.side) for each in waiting)
                waiting = []
                try:
                    async for result in explain_neurons(
                        records,
                        database,
                        explainer=ready.explainer,
                        simulator=ready.simulator,
                        scorers=ready.scorers,
                        concurrency=ready.concurrency,
                    ):
                        if result.waiting:
                            waiting.append(result.neuron)
                        if result.text is not None:
                            explained.add(result.neuron)
                        for failure in result.failures:
                            on_failure(result.neuron, failure)
                except BudgetError as error:
                    stopped = error
                noted = [name for collector in collectors for name in collector.noted]
                if not noted:
                    if file is not None:
                        report(f"Nothing is left to ask: {file} is not written.")
                    break
                if file is not None:
                    found = lines(_requests(responses, noted), _capabilities(collectors))
                    written = write_files(file, split(found))
                    report(
                        f"{counted(len(noted), 'request')} written to "
                        f"{', '.join(map(str, written))}; "
                        f"take the answers with: fastexplain ingest {run.path} FILE"
                    )
                    return Outcome(len(explained), stopped, finished=False, arms=asked)
                for collector in collectors:
                    await clients[collector.address].submit(_requests(responses, collector.noted))
                    collector.noted.clear()
                useful = [await client.finish() for client in clients.values()]
                if not any(useful):
                    raise LLMError(
                        "the batches ended without an answer to any request; the same command "
                        "submits them again"
                    )
    return Outcome(len(explained), stopped, arms=asked, tuned=ready.tuned)


def take_answers(run: Run, file: Path, price: Price | None) -> Ingested:
    """Store the answers to a file that `explain_in_batches` wrote.

    Args:
        price: of the model that gave them, as it is paid; unknown if None.

    Raises:
        UsageError: the file can't be read, or answers nothing that this run asked.
    """
    found = Ingested()
    with run.database() as database:
        responses = Responses(database)
        prices = dict.fromkeys(responses.pending_models(), price)
        try:
            with file.open("rb") as answers:
                ingest(answers, responses, {}, prices, found)
        except OSError as error:
            raise UsageError(f"{file} can't be read: {error.strerror}") from error
    if not (found.answered or found.failed or found.left or found.unknown):
        raise UsageError(
            f"{file} is no output of a batch: none of its lines is an answer; it is made from a "
            "file of requests, by an engine such as vllm run-batch"
        )
    return found


async def _reach(
    stack: contextlib.AsyncExitStack,
    model: Model,
    settings: Settings,
    responses: Responses,
    *,
    offline: bool,
) -> Connection:
    """What a model's requests are handed to: the model itself if it is local, else a collector."""
    if model.local:
        return await stack.enter_async_context(reach(model, settings))
    if offline:
        address = address_of(model.base_url, local=False)
        can = recorded_for_files(responses, model.name, address)
        return Collector(model.name, address, responses, can=can)
    server = await stack.enter_async_context(reach(model, settings))
    assert isinstance(server, ServerConnection)
    return Collector(model.name, server.address, responses, server=server)


def _capabilities(collectors: list[Collector]) -> dict[str, Capabilities]:
    """What the models can do, by their names, when they have been put behind the store."""
    return {c.model: c.capabilities for c in collectors if c.capabilities is not None}


def _requests(responses: Responses, names: Iterable[str]) -> Iterator[PendingRequest]:
    """Noted requests one by one, since all of a round may be more than memory holds."""
    for name in names:
        request = responses.pending(name)
        if request is not None:
            yield request
