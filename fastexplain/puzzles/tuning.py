"""Tuning: how a simulator is best asked and read, chosen by puzzles and recorded for a run.

1. Every way to simulate (`simulators.tuning.ways`) simulates the true and false descriptions of the
   puzzles for choosing. Ways share their requests: what was asked once is found in the store.
2. The way is chosen by which true descriptions of whichever puzzle outscore false ones of
   whichever (AUC) most often; then by the share of puzzles whose true one comes first.
3. The other half of the puzzles reports it, beside the way that is usual.
4. The run's database keeps it for this model at this address; `explain` goes by it from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fastexplain.errors import UsageError
from fastexplain.ledger.budget import Budget
from fastexplain.ledger.responses import Responses
from fastexplain.ledger.stored import StoredConnection
from fastexplain.pipeline.choosing import check_choice
from fastexplain.pipeline.explaining import OnFailure, Progress
from fastexplain.pipeline.models import Model, Settings, connections
from fastexplain.progress import Report
from fastexplain.puzzles.oracle import DESCRIPTIONS, Given
from fastexplain.puzzles.ranking import Ranking
from fastexplain.puzzles.solving import database, solve_with
from fastexplain.puzzles.texts import HALVES, load
from fastexplain.results import CORRELATION
from fastexplain.run.directory import Run
from fastexplain.simulators.tuning import Tuning, ways

CHOOSING, REPORTING = HALVES


@dataclass(frozen=True)
class Tuned:
    """What `tune` has found.

    Attributes:
        simulator: the model's name.
        tried: the ways, best first, each by the puzzles for choosing.
        usual: the way that is taken without tuning.
        reported: the best one by the other puzzles.
        usual_reported: the usual one by these.
        cost: of what this call asked, in US dollars, as far as the prices are known.
        requests: that were answered in this call.
    """

    simulator: str
    tried: list[tuple[Tuning, Ranking]]
    usual: Tuning
    reported: Ranking
    usual_reported: Ranking
    cost: float
    requests: int

    @property
    def best(self) -> Tuning:
        """The way that was chosen."""
        return self.tried[0][0]

    def data(self) -> dict[str, Any]:
        """The same as plain data, for JSON."""
        return {
            "simulator": self.simulator,
            "chosen": asdict(self.best) | {"reported": asdict(self.reported)},
            "usual": asdict(self.usual) | {"reported": asdict(self.usual_reported)},
            "tried": [asdict(way) | {"ranking": asdict(found)} for way, found in self.tried],
            "cost": self.cost,
            "requests": self.requests,
        }


async def tune(
    run: Run,
    settings: Settings,
    *,
    out: Path,
    progress: Progress | None = None,
    report: Report = lambda done: None,
    on_failure: OnFailure = lambda neuron, failure: None,
) -> Tuned:
    """Choose how a simulator is asked and read, and record it for a run.

    Args:
        run: whose `explain` goes by it.
        settings: the simulator, its limits, and `mode` if only that is to be tried.
        out, progress, report, on_failure: as for `solving.solve`.

    Raises:
        UsageError: the simulator is no language model, or answers are to be asked for again.
        RunError: `out` or the run can't be written.
        LLMError: the model can't be reached or can't simulate, or nothing could be scored.
        BudgetError: the next request might pass the limit, or the user stopped it.
    """
    check_tuning(run, settings)
    progress = progress or Progress(0)
    budget = Budget(
        settings.max_cost, settings.max_requests, progress.interrupted, settings.max_minutes
    )
    each = len(load(CHOOSING)) * (len(DESCRIPTIONS) + 1)
    with run.database() as own, database(out) as opened:
        async with connections(replace(settings, explainer=Given([]))) as (_, connection):
            assert connection is not None
            progress.stage = "Finding out what the model can do"
            probed = StoredConnection(connection, Responses(opened), "simulation")
            first, examples = await probed.probe_for(lambda can: ways(can, settings.mode))
            usual = Tuning(first[0].mode)
            progress.total = each * (len(first) + len(examples) + 2)

            async def ranked(way: Tuning, half: str) -> Ranking:
                # What the puzzles' own database has recorded is none of this.
                asked = replace(
                    settings, explainer=Given(load(half)), tuning=way, scorers=(CORRELATION,)
                )
                solved = await solve_with(
                    (None, connection), opened, asked, half, progress, report, on_failure, budget
                )
                return solved.ranking()

            tried = _best_first([(way, await ranked(way, CHOOSING)) for way in first])
            others = [replace(tried[0][0], examples=name) for name in examples]
            tried = _best_first([*tried, *[(way, await ranked(way, CHOOSING)) for way in others]])
            best = tried[0][0]
            reported, before = await ranked(best, REPORTING), await ranked(usual, REPORTING)
            Responses(own).record_tuning(connection.model, connection.address, asdict(best))
    meter = progress.meter
    return Tuned(connection.model, tried, usual, reported, before, meter.cost, meter.answered)


def check_tuning(run: Run, settings: Settings) -> Model:
    """The simulator that is tuned; raises UsageError where `tune` does."""
    if not isinstance(settings.simulator, Model):
        raise UsageError("a `simulator` that is tuned is a language model; name one")
    if settings.fresh:
        raise UsageError("ways that are tried share their answers, so `fresh` can't be had here")
    check_choice(run, settings)
    return settings.simulator


def _best_first(found: Sequence[tuple[Tuning, Ranking]]) -> list[tuple[Tuning, Ranking]]:
    """Ways by their rankings; of equal ones the first stays first."""
    return sorted(found, key=lambda each: (-each[1].auc, -each[1].first))
