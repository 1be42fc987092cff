"""Many neurons scored by ablation or steered, on the run's subject; no language model is asked.

Neurons go by layer, a few at a time, and what comes of these is stored at once: a call that was
interrupted goes on where it was when it is made again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastexplain.counting import counted
from fastexplain.errors import UsageError
from fastexplain.explainers.lookup import METHOD, lookup_is_stored, simulate_by_lookup, store_lookup
from fastexplain.progress import Report, reported
from fastexplain.records import NeuronId, NeuronRecord
from fastexplain.results import TOP, Measured, Steering, StoredExplanation
from fastexplain.run.database import Database
from fastexplain.run.directory import Run
from fastexplain.run.selection import select_neurons
from fastexplain.run.subjects import check_subject, load_subject_of
from fastexplain.scorers.ablation import ABLATION, score_layer
from fastexplain.scorers.replacements import Case, excerpts_of
from fastexplain.subject.model import Subject

# Neurons whose interventions share batches, and whose scores are stored together: on two CPU cores
# about a minute of SmolLM2's.
_TOGETHER = 8

# The paper's comparison is of neurons whose correlation is 0.9; here of those this near to it.
PAPER_CORRELATION, _NEAR = 0.9, 0.05


@dataclass(frozen=True)
class AblationRow:
    """One explanation with its scores.

    Attributes:
        explanation: as stored, with the scores by one simulator.
        measured: what the scorer `ablation` gave it.
    """

    explanation: StoredExplanation
    measured: list[Measured]

    @property
    def correlation(self) -> float | None:
        """Over top and random excerpts; None where it is undefined."""
        return None if self.explanation.scores is None else self.explanation.scores.top_and_random

    def value(self, split: str, measure: str = ABLATION) -> float | None:
        """None where it is undefined."""
        return next(
            (m.value for m in self.measured if (m.split, m.measure) == (split, measure)), None
        )


@dataclass(frozen=True)
class Ablated:
    """What a call of `ablate` has come to.

    Attributes:
        explainer: "lookup" or a model's name.
        rows: in the order of neurons; those without an explanation or simulation have none.
        lacking: neurons that have no such explanation, or none that was simulated.
    """

    explainer: str
    rows: list[AblationRow]
    lacking: list[NeuronId]

    def comparison(self) -> dict[str, dict[str, Any]]:
        """Ablation scores against correlations, by split.

        For each: `neurons` (with both), `mean` and `median` of the ablation score, `pearson` and
        `spearman` (correlation of the two scores; None where there is none), and of the neurons
        whose correlation is within 0.05 of 0.9 `near_0.9` (how many) and `mean_near_0.9`.
        """
        return {split: _compare(self.rows, split) for split in ("random_only", "top_and_random",
                                                                "top_only")}  # fmt: skip

    def __repr__(self) -> str:
        both = self.comparison()["top_and_random"]
        mean = "undefined" if both["mean"] is None else f"{both['mean']:.2f}"
        return (
            f"{counted(len(self.rows), 'neuron')} by {self.explainer}; mean ablation score {mean}"
        )


def ablate(
    run: Run,
    neurons: str | NeuronId | Iterable[str | NeuronId] = (),
    *,
    explainer: str = METHOD,
    sample: int | None = None,
    seed: int = 0,
    where: str | None = None,
    subject: Subject | str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    fresh: bool = False,
    trust_remote_code: bool = False,
    progress: bool | Report = False,
) -> Ablated:
    """Score explanations by ablation: does the model do the same with the simulated activations?

    Scores are stored in the run as the scorer "ablation"; what is there already is left alone.

    Args:
        run: from `sweep` or `open_run`.
        neurons: as for `explain`.
        explainer: "lookup", or the model whose newest explanation is scored, from simulations that
            are stored: `explain` made them if `ablation` was one of its scorers.
        sample, seed, where: as on the command line: that many neurons, drawn at random.
        subject: a loaded one, or where it is now, if not where it was swept from.
        device, dtype: of the subject. In 16 bits most neurons change too little to tell.
        fresh: score again what has a score.
        trust_remote_code: run the subject's own code.
        progress: True shows a bar. A function is called with the number of neurons done.

    Raises:
        UsageError: no neurons are named, or an argument makes no sense.
        SubjectError: the subject can't be loaded, or is not the one that was swept.
        RunError: the run has no tables to look up in, or its database can't be written.
    """
    chosen = _chosen(run, neurons, sample, seed, where)
    if explainer == METHOD and not lookup_is_stored(run):
        store_lookup(run)
    load = _Loader(run, subject, device, dtype, trust_remote_code)
    with run.database() as database:
        found = {neuron: _explanation(database, neuron, explainer) for neuron in chosen}
        there = {neuron: row for neuron, row in found.items() if row is not None}
        open_ = [n for n, row in there.items() if fresh or not _scores(database, row)]
        done = len(there) - len(open_)
        with reported(progress, "Ablating", len(there), "neurons", done=done) as report:
            report(done)
            for part in _parts(open_):
                rows = [there[neuron] for neuron in part]
                cases = [_case(run, database, row) for row in rows]
                scored = score_layer(run, load(), cases)
                with database.transaction():
                    for row, measured in zip(rows, scored, strict=True):
                        database.add_scores(ABLATION, *_judge(row), {row.id: measured})
                done += len(part)
                report(done)
        scores = [AblationRow(row, _scores(database, row)) for row in there.values()]
    return Ablated(explainer, scores, [neuron for neuron in chosen if neuron not in there])


def steer(
    run: Run,
    neurons: str | NeuronId | Iterable[str | NeuronId] = (),
    *,
    sample: int | None = None,
    seed: int = 0,
    where: str | None = None,
    subject: Subject | str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    fresh: bool = False,
    trust_remote_code: bool = False,
    progress: bool | Report = False,
) -> dict[NeuronId, list[Steering]]:
    """Find the tokens that become likelier where neurons are raised; stored, and read again.

    See `steering` for what is measured; arguments and errors are those of `ablate`. A neuron that
    is never above 0 has no steps.
    """
    from fastexplain.pipeline.steering import steer_layer

    chosen = _chosen(run, neurons, sample, seed, where)
    load = _Loader(run, subject, device, dtype, trust_remote_code)
    with run.database() as database:
        found = {neuron: database.steering(neuron) for neuron in chosen}
        open_ = [neuron for neuron, steps in found.items() if fresh or not steps]
        done = len(chosen) - len(open_)
        with reported(progress, "Steering", len(chosen), "neurons", done=done) as report:
            report(done)
            for part in _parts(open_):
                steered = dict(zip(part, steer_layer(run, load(), part), strict=True))
                with database.transaction():
                    for neuron, steps in steered.items():
                        database.add_steering(neuron, steps)
                found |= steered
                done += len(part)
                report(done)
    return found


def _chosen(
    run: Run,
    neurons: str | NeuronId | Iterable[str | NeuronId],
    sample: int | None,
    seed: int,
    where: str | None,
) -> list[NeuronId]:
    names = [neurons] if isinstance(neurons, str | NeuronId) else neurons
    chosen = select_neurons(run, [str(n) for n in names], sample=sample, seed=seed, where=where)
    if not chosen:
        raise UsageError("no neurons are named; name some, such as 5:131, or give `sample`")
    return chosen


class _Loader:
    """Gives the subject, loaded and compared with the run's when it is first wanted."""

    def __init__(
        self,
        run: Run,
        subject: Subject | str | None,
        device: str | None,
        dtype: str,
        trust_remote_code: bool,
    ) -> None:
        self._load: Callable[[], Subject] = lambda: load_subject_of(
            run,
            name=subject if isinstance(subject, str) else None,
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
        )
        self._subject: Subject | None = None
        if isinstance(subject, Subject):
            check_subject(run, subject)
            self._subject = subject

    def __call__(self) -> Subject:
        if self._subject is None:
            self._subject = self._load()
        return self._subject


def _parts(neurons: Sequence[NeuronId]) -> Iterator[list[NeuronId]]:
    """A few neurons of one layer at a time, by ascending layer."""
    for _, layer in itertools.groupby(sorted(neurons), lambda neuron: neuron.site):
        own = list(layer)
        yield from (own[i : i + _TOGETHER] for i in range(0, len(own), _TOGETHER))


def _explanation(database: Database, neuron: NeuronId, explainer: str) -> StoredExplanation | None:
    """A neuron's newest explanation of its top, by an explainer, that has simulations."""
    for row in database.explanations(neuron):
        by = row.method == METHOD if explainer == METHOD else row.model == explainer
        if by and row.side == TOP and row.text is not None and row.simulator is not None:
            return row
    return None


def _judge(row: StoredExplanation) -> tuple[str, str]:
    return row.simulator or "", row.simulation or ""


def _scores(database: Database, row: StoredExplanation) -> list[Measured]:
    return [
        score.measured
        for score in database.scores(row.id)
        if score.scorer == ABLATION and (score.judge, score.version) == _judge(row)
    ]


def _case(run: Run, database: Database, row: StoredExplanation) -> Case:
    """A neuron with what was predicted of its excerpts from an explanation."""
    record: NeuronRecord = run.neuron(row.neuron)
    if row.method == METHOD:
        values = {
            split: simulate_by_lookup(run, record, split) for split in ("test", "calibration")
        }
    else:
        stored = database.simulated(row.id, *_judge(row))
        values = {"test": stored, "calibration": stored}
    samples = []
    for sample in excerpts_of(record):
        own = values[sample.split].get(sample.excerpt)
        samples.append(replace(sample, simulated=None if own is None else own[record.skip :]))
    return Case(record, samples)


def _compare(rows: Sequence[AblationRow], split: str) -> dict[str, Any]:
    pairs = np.array(
        [
            (getattr(row.explanation.scores, split), row.value(split))
            for row in rows
            if row.value(split) is not None and row.explanation.scores is not None
            and getattr(row.explanation.scores, split) is not None
        ],
        np.float64,
    ).reshape(-1, 2)  # fmt: skip
    correlation, ablation = pairs.T
    near = np.abs(correlation - PAPER_CORRELATION) <= _NEAR
    return {
        "neurons": len(pairs),
        "mean": _mean(ablation),
        "median": float(np.median(ablation)) if len(pairs) else None,
        "pearson": _pearson(correlation, ablation),
        "spearman": _pearson(_ranks(correlation), _ranks(ablation)),
        f"near_{PAPER_CORRELATION}": int(near.sum()),
        f"mean_near_{PAPER_CORRELATION}": _mean(ablation[near]),
    }


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, equal values with the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]


def _pearson(x: np.ndarray, y: np.ndarray) -> float | None:
    from fastexplain.kernels import correlate

    if len(x) < 2:
        return None
    found = float(correlate(x[None], y[None]).correlation[0])
    return None if np.isnan(found) else found
