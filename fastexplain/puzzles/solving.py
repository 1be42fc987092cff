"""How well an explainer, a simulator and the scorers do on puzzles, of which the answers are known.

1. The puzzles' own descriptions, one true and two false, go through the pipeline as explanations:
   the simulator predicts the test split from each, and the scorers score them.
2. The explainer's explanations go the same way.
3. A simulator is good if true descriptions outscore false ones, a measure likewise, and an
   explainer if what it writes outscores the false ones under the same simulator.

Answers are stored in a file of their own and not asked again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

from fastexplain.errors import LLMError, RunError, StoppedError, UsageError
from fastexplain.ledger.budget import INTERRUPTED, Budget
from fastexplain.ledger.responses import Responses
from fastexplain.llm import Connection
from fastexplain.pipeline.choosing import check_choice
from fastexplain.pipeline.explaining import OnFailure, Progress
from fastexplain.pipeline.models import Model, Settings, connections, put_behind_store
from fastexplain.pipeline.neurons import NeuronResult, explain_neurons
from fastexplain.pipeline.protocols import Explainer, Simulator
from fastexplain.progress import Report
from fastexplain.puzzles import lookup, oracle
from fastexplain.puzzles.oracle import DESCRIPTIONS, TRUE, Given, Oracle
from fastexplain.puzzles.ranking import Ranking
from fastexplain.puzzles.texts import LEVELS, Puzzle, fingerprint, load
from fastexplain.results import CORRELATION
from fastexplain.run.database import Database
from fastexplain.run.directory import Run

WRITTEN = "written"
WITHOUT_MODELS = (lookup.NAME, oracle.NAME)
"""Names that explain and simulate without a language model."""


class MeasureId(NamedTuple):
    """Which number of which scorer, such as `correlation top_and_random correlation`."""

    scorer: str
    split: str
    measure: str


HEADLINE = MeasureId(CORRELATION, "top_and_random", CORRELATION)


@dataclass(frozen=True)
class Solution:
    """What came of one puzzle.

    Attributes:
        puzzle: which one.
        written: what the explainer wrote; None if it failed.
        scores: by "true", "false 1", "false 2" and "written", the scorers' values; None undefined.
    """

    puzzle: Puzzle
    written: str | None
    scores: dict[str, dict[MeasureId, float | None]]


@dataclass(frozen=True, repr=False)
class Solved:
    """What `solve_puzzles` has found.

    Attributes:
        explainer, simulator: their names.
        half: "choosing" or "reporting".
        solutions: of each puzzle, in order.
        failures: by the puzzle's name, a line for each request that failed for good.
        cost: of what this call asked, in US dollars, as far as the prices are known.
        requests: that were answered in this call.
    """

    explainer: str
    simulator: str
    half: str
    solutions: list[Solution]
    failures: dict[str, list[str]] = field(default_factory=dict)
    cost: float = 0.0
    requests: int = 0

    @property
    def measures(self) -> list[MeasureId]:
        """All that the scorers gave, as they gave it."""
        scores = (own for each in self.solutions for own in each.scores.values())
        return list(dict.fromkeys(name for own in scores for name in own))

    @property
    def headline(self) -> MeasureId:
        """The correlation over top and random excerpts, or what comes first where that is not."""
        return HEADLINE if HEADLINE in self.measures else self.measures[0]

    def ranking(
        self, measure: MeasureId | None = None, which: str = TRUE, level: int | None = None
    ) -> Ranking:
        """How often a description outscores the two false ones.

        Args:
            measure: the headline if None.
            which: "true", or "written" for the explainer's.
            level: only puzzles of this one.

        Raises:
            ValueError: there is no puzzle of that level.
        """
        name = measure or self.headline
        values = [
            [each.scores[kind].get(name) for kind in (which, *DESCRIPTIONS[1:])]
            for each in self.solutions
            if level in (None, each.puzzle.level)
        ]
        return Ranking.of([first for first, *_ in values], [others for _, *others in values])

    def data(self) -> dict[str, Any]:
        """The same as plain data, for JSON."""
        return {
            "explainer": self.explainer,
            "simulator": self.simulator,
            "half": self.half,
            "fingerprint": fingerprint(),
            "headline": self.headline._asdict(),
            "simulator_ranking": asdict(self.ranking()),
            "explainer_ranking": asdict(self.ranking(which=WRITTEN)),
            "levels": {
                level: {
                    which: asdict(self.ranking(None, which, level)) for which in (TRUE, WRITTEN)
                }
                for level in LEVELS
            },
            "measures": [name._asdict() | asdict(self.ranking(name)) for name in self.measures],
            "puzzles": [
                {
                    "name": each.puzzle.name,
                    "level": each.puzzle.level,
                    "true": each.puzzle.true,
                    "false": [decoy.text for decoy in each.puzzle.false],
                    "written": each.written,
                    "scores": {which: own.get(self.headline) for which, own in each.scores.items()},
                }
                for each in self.solutions
            ],
            "failures": self.failures,
            "cost": self.cost,
            "requests": self.requests,
        }

    def __repr__(self) -> str:
        true, written = self.ranking(), self.ranking(which=WRITTEN)
        return (
            f"{true.puzzles} puzzles for {self.half}: by {self.simulator} the true description "
            f"outscores both false ones in {true.first:.0%}, that of {self.explainer} in "
            f"{written.first:.0%}"
        )


def explainer_of(given: Model | Explainer | str, puzzles: Sequence[Puzzle]) -> Model | Explainer:
    """An explainer, where it is named "lookup" or "oracle"; others as they are.

    Raises:
        UsageError: another name.
    """
    return _named(
        "explainer", given, {lookup.NAME: lookup.Lookup, oracle.NAME: lambda: Given(puzzles)}
    )


def simulator_of(given: Model | Simulator | str, puzzles: Sequence[Puzzle]) -> Model | Simulator:
    """A simulator, where it is named "lookup" or "oracle"; others as they are.

    Raises:
        UsageError: another name.
    """
    return _named(
        "simulator", given, {lookup.NAME: lookup.Lookup, oracle.NAME: lambda: Oracle(puzzles)}
    )


def _named(role: str, given: Any, makers: dict[str, Callable[[], Any]]) -> Any:
    if not isinstance(given, str):
        return given
    if given not in makers:
        raise UsageError(
            f"`{role}` is {given!r}; give {' or '.join(map(repr, makers))}, or "
            f"fastexplain.Model({given!r})"
        )
    return makers[given]()


async def solve(
    settings: Settings,
    *,
    half: str,
    out: Path,
    progress: Progress | None = None,
    report: Report = lambda done: None,
    on_failure: OnFailure = lambda neuron, failure: None,
) -> Solved:
    """Explain, simulate and score one half of the puzzles.

    Args:
        settings: with what; explainer and simulator as `explainer_of` and `simulator_of` give them.
        half: one of `texts.HALVES`.
        out: a directory; answers are stored in a file there, and found again by the next call.
        progress: is kept up to date; its total is set.
        report: called with the number of descriptions done, after each.
        on_failure: called for each failure.

    Raises:
        UsageError: there is no such half, the oracle is to read an explainer's texts, or a scorer
            needs a run.
        RunError: `out` can't be written.
        LLMError: a model can't be reached or lacks what is needed, or nothing could be scored.
        BudgetError: the next request might pass the limit, or the user stopped it.
    """
    puzzles = load(half)
    if isinstance(settings.simulator, Oracle) and not isinstance(settings.explainer, Given):
        raise UsageError(
            "the oracle knows the puzzles' own descriptions only; with `simulator='oracle'` give "
            "`explainer='oracle'`, or name another `simulator`"
        )
    check_choice(cast(Run, _NoRun()), settings)
    progress = progress or Progress(0)
    progress.total = len(puzzles) * (len(DESCRIPTIONS) + 1)
    with database(out) as opened:
        async with connections(settings) as connected:
            return await solve_with(connected, opened, settings, half, progress, report, on_failure)


async def solve_with(
    connected: tuple[Connection | None, Connection | None],
    database: Database,
    settings: Settings,
    half: str,
    progress: Progress,
    report: Report,
    on_failure: OnFailure,
    budget: Budget | None = None,
) -> Solved:
    """As `solve`, over connections and a database that are open already.

    Args:
        connected: to explainer and simulator.
        budget: that of the settings if None.
    """
    puzzles = load(half)
    explaining, simulating = connected
    records = [puzzle.record() for puzzle in puzzles]
    results: dict[str, dict[int, NeuronResult]] = {}
    progress.stage = "Finding out what the models can do"
    ready = await put_behind_store(
        cast(Run, _NoRun()), explaining, simulating, settings,
        Responses(database), progress.meter, progress.interrupted, lookup.Lookup(), budget,
    )  # fmt: skip
    simulator = settings.simulator
    judge = simulator.name if isinstance(simulator, Model) else simulator.model
    progress.stage = f"Solving puzzles by {judge}"
    progress.requests_a_neuron = ready.requests(1)
    inner = {id(c): c for c in (explaining, simulating) if c is not None}.values()
    given: list[tuple[str, Explainer]] = [(d, Given(puzzles, d)) for d in DESCRIPTIONS]
    for which, explainer in [*given, (WRITTEN, ready.explainer)]:
        results[which] = {}
        wanted = itertools.takewhile(lambda _: not progress.interrupted.is_set(), records)
        async for result in explain_neurons(
            wanted,
            database,
            explainer=explainer,
            simulator=ready.simulator,
            scorers=ready.scorers,
            concurrency=max([ready.concurrency, *(c.concurrency for c in inner)]),
            fresh=settings.fresh,
        ):
            results[which][result.neuron.index] = result
            progress.done += 1
            progress.before += result.complete
            progress.retried = sum(connection.retried for connection in inner)
            report(progress.done)
            for failure in result.failures:
                on_failure(result.neuron, failure)
    if progress.interrupted.is_set() and progress.done < progress.total:
        raise StoppedError(INTERRUPTED)
    return _solved(ready.explainer.model, judge, half, puzzles, results, progress)


def _solved(
    explainer: str,
    simulator: str,
    half: str,
    puzzles: Iterable[Puzzle],
    results: dict[str, dict[int, NeuronResult]],
    progress: Progress,
) -> Solved:
    solutions = []
    failures: dict[str, list[str]] = {}
    for puzzle in puzzles:
        own = {which: found[puzzle.place] for which, found in results.items()}
        scores = {
            which: {
                MeasureId(scorer, m.split, m.measure): m.value
                for scorer, measured in (result.scores or {}).items()
                for m in measured
            }
            for which, result in own.items()
        }
        solutions.append(Solution(puzzle, own[WRITTEN].text, scores))
        lines = [f"{which}: {line}" for which, result in own.items() for line in result.failures]
        if lines:
            failures[puzzle.name] = lines
    meter = progress.meter
    # The oracle is among the given: its explanations have the model "true".
    name = oracle.NAME if explainer == TRUE else explainer
    solved = Solved(name, simulator, half, solutions, failures, meter.cost, meter.answered)
    if not solved.measures:
        why = next((line for lines in failures.values() for line in lines), "no scorer gave any")
        raise LLMError(f"none of the puzzles has a score; the first failure is: {why}")
    return solved


def database(out: Path) -> Database:
    """The file in a directory where answers are stored. Raises RunError if it can't be made."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out} can't be made into a directory ({error.strerror})") from error
    return Database(answers_file(out))


def answers_file(out: Path) -> Path:
    """That file; excerpts have other texts where the puzzles are others."""
    return out / f"puzzles-{fingerprint()}.sqlite"


class _NoRun:
    """Stands in for a run where scorers are made; one that looks into it can't be used."""

    def __getattr__(self, name: str) -> Any:
        raise UsageError(
            "puzzles are of no run, and one of the `scorers` asks for it; leave that one out"
        )
