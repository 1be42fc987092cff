"""Explaining neurons from Python: one call that waits, and the same as a coroutine.

A notebook has an event loop running in the thread that would wait; there the coroutine runs in a
thread and a loop of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import functools
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, ParamSpec, TypeVar

from fastexplain.errors import UsageError
from fastexplain.explainers.exemplars import TOP
from fastexplain.explainers.lists import check_entries
from fastexplain.explainers.lookup import METHOD, lookup_is_stored, store_lookup, version_of
from fastexplain.explainers.rules import METHOD as RULE
from fastexplain.explainers.rules import rules_are_stored, store_rules
from fastexplain.notebook import table_html
from fastexplain.pipeline import explaining
from fastexplain.pipeline.models import Model, Settings
from fastexplain.pipeline.protocols import Explainer, Scorer, Simulator
from fastexplain.pipeline.spending import plan
from fastexplain.progress import Report, reported
from fastexplain.records import NeuronId
from fastexplain.results import CORRELATION, SIDES, StoredExplanation
from fastexplain.run.directory import Run
from fastexplain.run.selection import select_neurons
from fastexplain.run.sides import NOT_BY_LOOKUP

_P = ParamSpec("_P")
_T = TypeVar("_T")

_SHOWN = 20  # explanations in a repr


@dataclass(frozen=True, repr=False)
class Explained:
    """What a call of `explain` has come to.

    Attributes:
        explainer: "lookup" or the model's name.
        neurons: those that were asked for.
        explanations: theirs by this explainer, with the scores by this call's simulator if there
            are any; in the order of `neurons`, without those that have none.
        failures: by neuron, a line for each request that failed for good.
        cost: of what this call asked, in US dollars, as far as the prices are known.
        requests: that were answered in this call; what was stored before isn't asked again.
        stopped: which limit was reached, in a line; None if none was. The same call with a higher
            one goes on from there.
    """

    explainer: str
    neurons: list[NeuronId]
    explanations: list[StoredExplanation]
    failures: dict[NeuronId, list[str]] = dataclasses.field(default_factory=dict)
    cost: float = 0.0
    requests: int = 0
    stopped: str | None = None

    def __repr__(self) -> str:
        rows = self._rows()
        width = max([10, *(len(score) for _, score, _ in rows)])
        lines = [f"  {neuron:>9}  {score:>{width}}  {text}" for neuron, score, text in rows]
        return "\n".join([self._summary(), *lines])

    def _repr_html_(self) -> str:
        header = ("neuron", "top and random", "explanation")
        return table_html(self._summary(), header, self._rows())

    def _summary(self) -> str:
        done, asked = f"{len(self.explanations):,}", f"{len(self.neurons):,}"
        parts = [f"{done} of {asked} neurons explained by {self.explainer}"]
        if self.requests:
            parts.append(f"{self.requests:,} requests for ${self.cost:,.4f}")
        if self.failures:
            parts.append(f"failures at {len(self.failures):,} neurons, see .failures")
        if self.stopped is not None:
            parts.append(self.stopped)
        return "; ".join(parts)

    def _rows(self) -> list[tuple[str, str, str]]:
        """Neuron, score and text of the first explanations, and how many there are beyond."""
        rows = []
        for row in self.explanations[:_SHOWN]:
            score = "not scored"
            if row.scores is not None:
                found = row.scores.top_and_random
                score = "undefined" if found is None else f"{found:.2f}"
                if row.scores.reason:
                    score += f" ({row.scores.reason.partition(':')[0]})"
            if row.text_scores is not None:
                found = row.text_scores.top_and_random
                score = f"{'undefined' if found is None else f'{found:.2f}'}, table {score}"
            rows.append((str(row.neuron), score, row.text or ""))
        more = len(self.explanations) - len(rows)
        return rows + [("...", "", f"and {more:,} more")] * (more > 0)


async def explain_async(
    run: Run,
    neurons: str | NeuronId | Iterable[str | NeuronId],
    *,
    explainer: Model | Explainer | Literal["lookup"] = "lookup",
    simulator: Model | Simulator | None = None,
    scorers: Sequence[Scorer | str] = (CORRELATION,),
    candidates: int = 1,
    revise: int = 0,
    subject: str | None = None,
    side: str = SIDES[0],
    entries: int | None = None,
    simulation: str | None = None,
    readout: str | None = None,
    prompt: str | None = None,
    exemplars: str = TOP,
    meanings: int = 1,
    max_cost: float | None = None,
    max_requests: int | None = None,
    max_minutes: float | None = None,
    by_need: bool = False,
    concurrency: int = 64,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    timeout: float = 120.0,
    fresh: bool = False,
    progress: bool | Report = False,
) -> Explained:
    """Explain neurons, and score the explanations on excerpts held out from them.

    Everything is stored in the run as soon as it is there: a call that was interrupted goes on
    where it was when it is made again, and what is stored isn't asked again.

    Args:
        run: from `sweep` or `open_run`.
        neurons: as on the command line, such as "5:131", "5:*" for a layer or "all", or NeuronIds.
        explainer: a language model; an object that explains, see `pipeline.protocols`; or "lookup",
            which needs neither, and explains all neurons of the run in one pass, whichever are
            named.
        simulator: a language model, or an object that simulates; the explainer, if that is a
            language model and this is None.
        scorers: score the explanations; names such as "correlation", or objects that score, see
            `pipeline.protocols`.
        candidates: explanations of a neuron that a language model writes, of which the one that
            predicts the validation split best is taken.
        revise: rounds, at the most, in which a language model revises its explanation with the help
            of counter-examples: sentences on which the run's subject is loaded and run.
        subject: where that is now, if not where it was swept from.
        side: "top", or "bottom": where neurons are below 0; scores are of max(-activation, 0).
        entries: of the lookup's texts, 4, 8, 16 or 32 at most; 8, or as many as those have that are
            stored, if None.
        simulation: how to simulate, one of `simulators.model.MODES`; the best that the simulator
            can do if None.
        readout: "expected"; "contrast" with an empty explanation, or "contrast-others" with those
            of other neurons; if None, as the simulator was tuned for this run (`tune_simulator`),
            else "expected".
        prompt: how a language model is asked to explain: "exemplars", "full", "thinking", "short"
            or "list" (see `prompts.wordings`); what suits it by its probe if None.
        exemplars: the texts that a language model is shown: "top", or "quantiles" for five more
            from the neuron's whole distribution, on which the run's subject is loaded and run.
        meanings: of a neuron at the most; where its exemplars show several (see
            `explainers.meanings`), each is explained by itself, and simulated by itself.
        max_cost: in US dollars; the call stops before it is passed.
        max_requests: the call stops before more are sent.
        max_minutes: then the call sends nothing more.
        by_need: explain first where most is expected to be gained, and not where nothing is; see
            `pipeline.spending`.
        concurrency: requests in flight at a server at once.
        requests_per_minute, tokens_per_minute: a server's limits.
        timeout: seconds that a request may take.
        fresh: ask again for what is stored.
        progress: True shows a bar. A function is called with the number of neurons done, after
            each; by lookup, of layers, once for lookup and once for rules.

    Raises:
        UsageError: an argument makes no sense, or a price is not known and `max_cost` was given.
        LLMError: a model can't be reached or loaded, or lacks what is needed.
        RunError: the run has no tables to look up in, or its database can't be written.
    """
    if not isinstance(run, Run):
        raise UsageError(f"`run` is {run!r}; give a run, from fastexplain.open_run or sweep")
    names = [neurons] if isinstance(neurons, str | NeuronId) else neurons
    if isinstance(names, bytes) or not isinstance(names, Iterable):
        raise UsageError(f"`neurons` is {neurons!r}; give names, such as '5:131'")
    chosen = select_neurons(run, [str(name) for name in names])
    if not chosen:
        raise UsageError("no neurons are named; name some, such as 5:131, 5:* or all")
    if isinstance(explainer, str):
        if explainer != METHOD:
            raise UsageError(
                f"`explainer` is {explainer!r}; give 'lookup' or fastexplain.Model({explainer!r})"
            )
        given = {"simulator": simulator, "simulation": simulation, "max_cost": max_cost,
                 "max_requests": max_requests, "max_minutes": max_minutes,
                 "by_need": by_need or None, "requests_per_minute": requests_per_minute,
                 "tokens_per_minute": tokens_per_minute,
                 "candidates": None if candidates == 1 else candidates,
                 "revise": revise or None, "subject": subject, "readout": readout, "prompt": prompt,
                 "exemplars": None if exemplars == TOP else exemplars,
                 "meanings": None if meanings == 1 else meanings}  # fmt: skip
        for name, value in given.items():
            if value is not None:
                raise UsageError(
                    f"`{name}` is for language models; name one, as "
                    "explainer=fastexplain.Model(...)"
                )
        if side != SIDES[0]:
            raise UsageError(NOT_BY_LOOKUP)
        return await _by_lookup(run, chosen, entries, fresh=fresh, progress=progress)

    if entries is not None:
        raise UsageError("`entries` is for lookup, the explainer that lists entries")
    if not isinstance(concurrency, int) or concurrency < 1:
        raise UsageError(f"`concurrency` is {concurrency!r}; give a whole number from 1 on")
    limiting = {"max_cost": max_cost, "max_requests": max_requests, "max_minutes": max_minutes,
               "timeout": timeout, "requests_per_minute": requests_per_minute,
               "tokens_per_minute": tokens_per_minute}  # fmt: skip
    for name, value in limiting.items():
        if value is not None and not isinstance(value, Real):
            raise UsageError(f"`{name}` is {value!r}; give a number")
    if isinstance(scorers, str) or not isinstance(scorers, Sequence):
        raise UsageError(f"`scorers` is {scorers!r}; give a list of scorers")
    limits = {"concurrency": concurrency, "requests_per_minute": requests_per_minute,
              "tokens_per_minute": tokens_per_minute, "timeout": timeout}  # fmt: skip
    if simulator is None:
        if not isinstance(explainer, Model):
            raise UsageError("the explainer is no language model; name a simulator too")
        simulator = explainer
    _check(explainer, simulator, scorers)
    if not isinstance(simulator, Model) and (simulation or readout):
        raise UsageError("`simulation` and `readout` are for language models that simulate")
    if prompt is not None and not isinstance(explainer, Model):
        raise UsageError("`prompt` is for language models that explain")
    settings = Settings(
        explainer, simulator, simulation, readout, limits, fresh=fresh, side=side, subject=subject,
        max_cost=max_cost, max_requests=max_requests, max_minutes=max_minutes, prompt=prompt,
        scorers=scorers, candidates=candidates, revise=revise, exemplars=exemplars,
        meanings=meanings,
    )  # fmt: skip
    if by_need:
        chosen = plan(run, chosen, side).neurons
    name = explainer.name if isinstance(explainer, Model) else explainer.model
    judge = simulator.name if isinstance(simulator, Model) else simulator.model
    state = explaining.Progress(len(chosen))
    failures: dict[NeuronId, list[str]] = {}
    with reported(progress, f"Explaining by {name}", len(chosen), "neurons") as report:
        outcome = await explaining.explain_by_model(
            run,
            chosen,
            settings,
            progress=state,
            report=report,
            on_failure=lambda neuron, failure: failures.setdefault(neuron, []).append(failure),
        )
    return Explained(
        name,
        chosen,
        _stored(run, chosen, list(outcome.arms.values())[-1], (judge, outcome.simulation)),
        failures,
        state.meter.cost,
        state.meter.answered,
        None if outcome.stopped is None else str(outcome.stopped),
    )


def _check(explainer: object, simulator: object, scorers: Sequence[object]) -> None:
    """Raise UsageError for what can't explain, simulate or score."""
    for role, given, model, kind, attributes in (
        ("explainer", explainer, "a fastexplain.Model, or ", Explainer,
         "method, model, version and explain"),
        ("simulator", simulator, "a fastexplain.Model, or ", Simulator,
         "model, version and simulate"),
        *(
            ("scorer", scorer, "a name, or ", Scorer, "name, measures, judge, excerpts and score")
            for scorer in scorers
            if not isinstance(scorer, str)
        ),
    ):  # fmt: skip
        if not (isinstance(given, kind) or (kind is not Scorer and isinstance(given, Model))):
            raise UsageError(
                f"the {role} {given!r} can't be used; give {model}an object with {attributes}"
            )
    if getattr(explainer, "method", None) == METHOD:
        raise UsageError(f"the method '{METHOD}' is taken; give the explainer's another name")
    if [getattr(explainer, name, None) for name in ("method", "model")] == [RULE, RULE]:
        raise UsageError(f"the model '{RULE}' of the method '{RULE}' is taken; name it otherwise")


def waiting(function: Callable[_P, Coroutine[Any, Any, _T]], name: str) -> Callable[_P, _T]:
    """A function that runs another's coroutine to its end, in a running event loop too."""

    @functools.wraps(function)
    def call(*args: _P.args, **named: _P.kwargs) -> _T:
        coroutine = function(*args, **named)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(coroutine)
        return _run_in_thread(coroutine)

    call.__name__ = call.__qualname__ = name
    return call


explain = waiting(explain_async, "explain")


def _run_in_thread(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine to its end in a thread of its own; Ctrl-C cancels it."""
    runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
    loop = runner.get_loop()
    # The context says which cell of a notebook output belongs to.
    task = loop.create_task(coroutine, context=contextvars.copy_context())
    done: Future[_T] = Future()

    async def main() -> _T:
        return await task

    def run() -> None:
        try:
            with runner:
                done.set_result(runner.run(main()))
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=run, name="fastexplain-call", daemon=True)
    try:
        thread.start()
        return done.result()
    except KeyboardInterrupt:
        with contextlib.suppress(RuntimeError):  # the loop has just ended
            loop.call_soon_threadsafe(task.cancel)
        if thread.ident is not None:  # else it has not begun, and won't do anything
            done.exception()
        raise


async def _by_lookup(
    run: Run,
    neurons: list[NeuronId],
    entries: int | None,
    *,
    fresh: bool,
    progress: bool | Report,
) -> Explained:
    """Explain all by lookup and by a rule, unless that was done and is not wanted `fresh`."""
    if entries is not None:
        check_entries(entries)
    if fresh or not lookup_is_stored(run, entries):
        with reported(progress, "Explaining by lookup", len(run.layers), "layers") as report:
            await asyncio.to_thread(store_lookup, run, report, entries=entries)
    if fresh or not rules_are_stored(run):
        with reported(progress, "Explaining by rules", len(run.layers), "layers") as report:
            await asyncio.to_thread(store_rules, run, report)
    return Explained(
        METHOD, neurons, _stored(run, neurons, (METHOD, METHOD, None), (METHOD, version_of(run)))
    )


def _stored(
    run: Run,
    neurons: list[NeuronId],
    made_by: tuple[str, str, str | None],
    scored_by: tuple[str, str | None],
) -> list[StoredExplanation]:
    """The neurons' newest explanations by a method, model and version, scored by one simulator.

    Args:
        made_by: method, model, and version, or None for the newest of any.
        scored_by: simulator and its version; where that is None, with any scores that there are.
    """
    method, model, version = made_by
    found = []
    with run.database(read_only=True) as database:
        for neuron in neurons:
            rows = [
                row
                for row in database.explanations(neuron)  # the newest first, once for each scores
                if (row.method, row.model) == (method, model)
                and version in (None, row.version)
                and row.text is not None
            ]
            if not rows:
                continue
            if scored_by[1] is None:  # nothing was simulated
                found.append(rows[0])
                continue
            unscored = dataclasses.replace(rows[0], scores=None, simulator=None, simulation=None)
            own = (row for row in rows if row.id == rows[0].id)
            found.append(
                next((row for row in own if (row.simulator, row.simulation) == scored_by), unscored)
            )
    return found
