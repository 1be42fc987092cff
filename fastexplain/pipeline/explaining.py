"""Explaining neurons with language models: connections, store, budget.

1. The explainer and the simulator are connected and, on their first use in a run, probed.
2. Both are put behind the store of responses, with one budget and one set of counters.
3. `explain_neurons` does the work; failures are reported, and stored with their reasons.

`estimate.py` does it without sending anything; for batches see `batches/`.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from fastexplain.errors import BudgetError, StoppedError
from fastexplain.explainers.revise import Activate
from fastexplain.ledger.budget import INTERRUPTED
from fastexplain.ledger.responses import Responses
from fastexplain.ledger.stored import Meter
from fastexplain.pipeline.choosing import Arm, arms, asked_of, check_choice, said_by
from fastexplain.pipeline.models import Settings, connections, put_behind_store
from fastexplain.pipeline.neurons import explain_neurons, in_turn
from fastexplain.progress import Report
from fastexplain.records import NeuronId
from fastexplain.run.directory import Run
from fastexplain.run.sides import of_side
from fastexplain.simulators.tuning import Tuning

# Where there are several ways to explain, so many neurons go through all before the next ones do.
_TOGETHER = 256

OnFailure = Callable[[NeuronId, str], None]
"""Called with a neuron and, in a line, what failed and why."""


@dataclass
class Progress:
    """How far a call has got; it changes while the call is under way.

    Attributes:
        total: neurons in all.
        stage: what is being done.
        done: neurons that are done.
        before: of those done, the ones that were done before this call.
        requests_a_neuron: how many requests a neuron takes at the most; 0 while unknown.
        meter: counts of requests.
        retried: requests that had to be sent once more.
        interrupted: set it to have nothing more sent; what is in flight is still awaited.
    """

    total: int
    stage: str = ""
    done: int = 0
    before: int = 0
    requests_a_neuron: int = 0
    meter: Meter = field(default_factory=Meter)
    retried: int = 0
    interrupted: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        explained: neurons that have an explanation now.
        stopped: the limit that was reached, if one was.
        finished: whether nothing waits for the answers to a batch.
        simulation: how it was simulated: the prompt's version, mode and readout. None of a batch,
            and where no scorer goes by simulations.
        arms: by the name of each `choosing.Arm`, method, model and version of its explanations, as
            they are stored; the last are those that were asked for.
        tuned: how it was simulated, where that was as recorded by `puzzles.tuning`.
    """

    explained: int
    stopped: BudgetError | None = None
    finished: bool = True
    simulation: str | None = None
    arms: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    tuned: Tuning | None = None


async def explain_by_model(
    run: Run,
    neurons: list[NeuronId],
    settings: Settings,
    *,
    progress: Progress | None = None,
    report: Report = lambda done: None,
    on_failure: OnFailure = lambda neuron, failure: None,
) -> Outcome:
    """Explain, simulate and score; the results are in the run's database.

    Args:
        progress: is kept up to date.
        report: called with the number of neurons done, after each.
        on_failure: called for each failure.

    Raises:
        LLMError: a model can't be reached, or lacks what is needed.
        UsageError: a limit on the cost was set, and a price is not known.
    """
    check_choice(run, settings)
    progress = progress or Progress(len(neurons))
    explained = 0
    stopped: BudgetError | None = None
    with run.database() as database:
        responses = Responses(database)
        async with connections(settings) as (explaining, simulating):
            progress.stage = "Finding out what the models can do"
            ready = await put_behind_store(
                run,
                explaining,
                simulating,
                settings,
                responses,
                progress.meter,
                progress.interrupted,
            )
            progress.stage = f"Explaining by {ready.explainer.model}"
            progress.requests_a_neuron = ready.requests(run.excerpts.shape[1])
            ways = arms(
                ready.explainer,
                ready.ask,
                ready.validator,
                settings,
                ready.scorers,
                functools.partial(_activating, run, settings.subject),
                said_by(database),
            )
            inner = {id(c): c for c in (explaining, simulating) if c is not None}.values()

            async def explain_by(arm: Arm, wanted: list[NeuronId]) -> list[NeuronId]:
                """Have neurons explained by one of the ways; returns those that now are."""
                nonlocal explained
                there: list[NeuronId] = []
                if arm.name:
                    progress.stage = f"By {ready.explainer.model}, {arm.name}"
                for turn, scorers in enumerate(in_turn(arm.scorers)):
                    going = itertools.takewhile(lambda _: not progress.interrupted.is_set(), wanted)
                    missed = len(wanted)
                    there = []
                    async for result in explain_neurons(
                        (of_side(run.neuron(each), settings.side) for each in going),
                        database,
                        explainer=arm.explainer,
                        simulator=ready.simulator,
                        scorers=scorers,
                        concurrency=ready.concurrency,
                        fresh=settings.fresh and turn == 0,
                    ):
                        missed -= 1
                        progress.retried = sum(connection.retried for connection in inner)
                        if turn == 0 and arm is ways[-1]:
                            progress.done += 1
                            progress.before += result.complete
                            explained += result.text is not None
                            report(progress.done)
                        if result.text is not None:
                            there.append(result.neuron)
                        for failure in result.failures:
                            on_failure(result.neuron, failure)
                    wanted = there
                    progress.stage = "Simulating other texts"
                    if progress.interrupted.is_set() and missed:
                        raise StoppedError(INTERRUPTED)
                return there

            # What a limit leaves is then explained in all ways, not all neurons in the first.
            size = _TOGETHER if len(ways) > 1 else max(len(neurons), 1)
            try:
                for start in range(0, len(neurons), size):
                    first = await explain_by(ways[0], neurons[start : start + size])
                    for arm in ways[1:]:
                        await explain_by(arm, first)
            except BudgetError as error:
                stopped = error
    simulation = None if ready.simulator is None else ready.simulator.version
    asked = {arm.name: asked_of(arm.explainer) for arm in ways}
    return Outcome(explained, stopped, simulation=simulation, arms=asked, tuned=ready.tuned)


def _activating(run: Run, subject: str | None) -> Activate:
    """Gives activations of a run's subject."""
    from fastexplain.pipeline.sentences import Sentences  # these import torch
    from fastexplain.run.subjects import load_subject_of

    return Sentences(lambda: load_subject_of(run, name=subject), run.excerpts.shape[1])
