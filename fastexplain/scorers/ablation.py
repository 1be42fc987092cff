"""The ablation score: what the model does when a neuron's activations are those of a simulation.

Source: Bills et al. 2023, "Validating against ablating", with their formula:

    1 - E[JSD(simulated, original)] / E[JSD(mean-ablated, original)]

JSD is the Jensen-Shannon divergence of next-token distributions, averaged over all counted
tokens of the excerpts: a change at one token reaches those after it.

On each excerpt of the test split all counted activations of the neuron are replaced: by the
simulation, by the neuron's mean over the sweep, and by its activations on another random excerpt of
the run (resampling ablation); `replacements.py` says how. The measure `ablation` takes the mean as
its reference, `resampling` the other excerpt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import torch

from fastexplain.records import NeuronRecord
from fastexplain.results import Measured, Sample
from fastexplain.run.directory import Run
from fastexplain.run.subjects import load_subject_of
from fastexplain.scorers.registry import Connect
from fastexplain.scorers.replacements import Case, Replacements, excerpts_of, replacements
from fastexplain.subject.divergence import jensen_shannon
from fastexplain.subject.interventions import Intervention, intervene
from fastexplain.subject.model import Subject

ABLATION, RESAMPLING = "ablation", "resampling"

# A divergence is told from rounding above that of log-probabilities which are so many roundings
# apart: d^2 / 8.
_ROUNDINGS = 16
_ENOUGH = 0.9  # of the tokens simulated; a score that rests on less says so
_RESAMPLES, _INTERVAL = 1000, (2.5, 97.5)


def make(run: Run, connect: Connect) -> Ablation:
    """See `registry`."""
    return Ablation(run)


class Ablation:
    """The scorer; the run's subject is loaded when the first explanation is scored.

    Attributes:
        name, measures, judge: see `pipeline.protocols.Scorer`.
    """

    name = ABLATION
    measures: tuple[str, ...] = (ABLATION, RESAMPLING)
    judge: tuple[str, str] | None = None

    def __init__(self, run: Run) -> None:
        self._run, self._turn = run, asyncio.Lock()
        self._subject: Subject | None = None

    def excerpts(self, record: NeuronRecord) -> list[Sample]:
        """The test split, and the calibration split."""
        return excerpts_of(record)

    async def score(
        self, record: NeuronRecord, explanation: str, excerpts: Sequence[Sample]
    ) -> list[Measured]:
        """Score one neuron's simulations; in a thread, so that requests go on meanwhile."""
        async with self._turn:
            [measured] = await asyncio.to_thread(self._score, Case(record, excerpts))
        return measured

    def _score(self, case: Case) -> list[list[Measured]]:
        if self._subject is None:
            self._subject = load_subject_of(self._run, dtype="float32")
        return score_layer(self._run, self._subject, [case])


def score_layer(run: Run, subject: Subject, cases: Sequence[Case]) -> list[list[Measured]]:
    """Score explanations of neurons of one layer, all in the same batches.

    Returns:
        For each case both measures over random_only, top_and_random and top_only, each with its
        interval by bootstrap over excerpts; None with the reason where there is none.

    Raises:
        SubjectError: see `intervene`.
    """
    planned = [replacements(case) for case in cases]
    ids = sorted({each.excerpt for plan in planned for each in plan.tests})
    place = {excerpt: i for i, excerpt in enumerate(ids)}
    # What is asked for twice is run once: a simulation that is the mean has the mean's divergence.
    wanted: dict[tuple[int, int, bytes], Intervention] = {}

    def key(case: Case, excerpt: int, values: np.ndarray) -> tuple[int, int, bytes]:
        found = (case.record.id.index, excerpt, values.tobytes())
        wanted[found] = Intervention(case.record.id.index, place[excerpt], values)
        return found

    keys = [
        [[key(case, each.excerpt, v) for v in values] for each, values in
         zip(plan.tests, plan.values, strict=True)]
        for case, plan in zip(cases, planned, strict=True)
    ]  # fmt: skip
    found: dict[int, torch.Tensor] = {}

    def visit(number: int, before: torch.Tensor, after: torch.Tensor) -> None:
        found[number] = jensen_shannon(before[run.skip :], after[run.skip :]).mean()

    if wanted:
        tokens = torch.from_numpy(np.stack([run.excerpt(excerpt) for excerpt in ids]))
        intervene(
            subject, cases[0].record.id.layer, tokens, list(wanted.values()), visit
        )  # fmt: skip
    means = torch.stack([found[i] for i in range(len(wanted))]).tolist() if wanted else []
    by_key = dict(zip(wanted, means, strict=True))
    return [
        _measured(plan, np.array([[by_key[k] for k in row] for row in own]), subject.dtype)
        for plan, own in zip(planned, keys, strict=True)
    ]


def _measured(plan: Replacements, found: np.ndarray, dtype: torch.dtype) -> list[Measured]:
    """Scores of mean divergences `[tests, 3]`, or `[tests, 2]`, that a model of this dtype gave."""
    least = (_ROUNDINGS * torch.finfo(dtype).eps) ** 2 / 8
    tops = np.array([sample.top for sample in plan.tests], bool)
    rows = []
    for measure, column in ((ABLATION, 1), (RESAMPLING, 2)):
        for split, chosen in (
            ("random_only", ~tops), ("top_and_random", tops | True), ("top_only", tops),
        ):  # fmt: skip
            count = int(chosen.sum())
            reason = plan.reason or (None if count else "no excerpt was simulated")
            if reason is None and column >= found.shape[1]:
                reason = "the run has no other random excerpt"
            if reason is None and found[chosen, column].mean() <= least:
                what = measure if column > 1 else "mean ablation"
                reason = f"{what} changes nothing that {str(dtype).removeprefix('torch.')} tells"
            if reason is not None:
                rows.append(Measured(split, measure, None, count, reason=reason))
                continue
            value, low, high = _ratio(found[chosen][:, [0, column]], tops[chosen])
            lacks = None
            if plan.share < _ENOUGH:
                lacks = f"rests on {plan.share:.0%} of the tokens: the others got the mean"
            rows.append(Measured(split, measure, value, count, low, high, lacks))
    return rows


def _ratio(pairs: np.ndarray, tops: np.ndarray) -> tuple[float, float | None, float | None]:
    """1 - E[simulated] / E[reference] of `[excerpts, 2]`, with its percentile interval.

    Excerpts are redrawn within their kind, 1,000 times.
    """
    value = 1 - pairs[:, 0].mean() / pairs[:, 1].mean()
    random = np.random.default_rng(0)
    places = [np.flatnonzero(tops == kind) for kind in (False, True)]
    drawn = np.concatenate(
        [own[random.integers(0, max(len(own), 1), (_RESAMPLES, len(own)))] for own in places],
        axis=1,
    )
    means = pairs[drawn].mean(axis=1)
    ratios = 1 - means[means[:, 1] > 0, 0] / means[means[:, 1] > 0, 1]
    if len(pairs) < 2:
        return float(value), None, None
    low, high = np.percentile(ratios, _INTERVAL)
    return float(value), float(low), float(high)
