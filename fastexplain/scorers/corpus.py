"""The score over the whole corpus, estimated from about 15 excerpts drawn by stratum.

1. Excerpts are drawn by stratum of the neuron's histogram (`run/strata.py`). The five from which
   explanations are written belong to no stratum: the score is of all others.
2. True activations are those that the run has, where the excerpt is one of its exemplars; else the
   subject is loaded, compared with the run's by its fingerprint, and run on them.
3. Simulated and true activations give the correlation and the area under the precision-recall curve
   over all counted tokens of the corpus, with intervals (`stratified.py`).

Why: over excerpts that were picked by activation a correlation fails sanity checks which it passes
over ones that were not (NeuronEval, ICML 2025).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from fastexplain.kernels.summary import widen
from fastexplain.records import NeuronRecord
from fastexplain.results import CORRELATION, Measured, Sample
from fastexplain.run.directory import Run
from fastexplain.run.splits import EXPLANATION_RANKS
from fastexplain.run.strata import Drawn, drawn
from fastexplain.run.subjects import load_subject_of
from fastexplain.scorers.registry import Connect
from fastexplain.scorers.stratified import (
    Estimates,
    Places,
    average_precisions,
    correlations,
)
from fastexplain.subject.activations import activations_at
from fastexplain.subject.model import Subject

CORPUS = "corpus"
"""The scorer, and the split of its excerpts and scores."""

_AUPRC = "auprc"
_ACTIVE = 0.1  # of the largest activation that an explainer saw: what it is shown as 1 or more


def make(run: Run, connect: Connect) -> Corpus:
    """See `registry`."""
    return Corpus(run)


class Corpus:
    """Correlation and area under the precision-recall curve over the whole corpus.

    Args:
        run: whose neurons are scored.
        subject: the run's; loaded by the manifest when it is first needed if None.

    Attributes:
        name, measures, judge: see `pipeline.protocols.Scorer`.
        load: gives the subject where none was given.
    """

    name = CORPUS
    measures: tuple[str, ...] = (CORRELATION, _AUPRC)
    judge: tuple[str, str] | None = None

    def __init__(self, run: Run, subject: Subject | None = None) -> None:
        self._run = run
        self._subject = subject
        self.load = functools.partial(load_subject_of, run)

    @property
    def subject(self) -> Subject:
        """The run's subject, loaded when it is first asked for; raises as `load_subject_of`."""
        if self._subject is None:
            self._subject = self.load()
        return self._subject

    def excerpts(self, record: NeuronRecord) -> list[Sample]:
        """Those drawn, lowest activations first, each with its stratum's weight.

        Raises:
            RunError: the run's bins keep too few excerpts.
            SubjectError: the run's subject can't be loaded, or is another model by now.
        """
        own = self._drawn(record)
        used = own.ids[0] >= 0
        ids = own.ids[0][used].tolist()
        weights = Places(own.strata, own.sizes).weights()[0][used].tolist()
        top = {each.excerpt for each in record.top}
        true = {each.excerpt: each.activations for each in [*record.top, *record.random]}
        missing = [excerpt for excerpt in ids if excerpt not in true]
        if missing:
            places = np.arange(len(missing))[None]
            tokens = np.stack([self._run.excerpt(excerpt) for excerpt in missing])
            [found] = activations_at(self.subject, tokens, [record.id], places)
            true |= dict(zip(missing, found, strict=True))
        return [
            Sample(
                excerpt,
                excerpt in top,
                true[excerpt][record.skip :],
                tokens=self._run.token_texts(self._run.excerpt(excerpt).tolist())[record.skip :],
                split=CORPUS,
                weight=weight,
            )
            for excerpt, weight in zip(ids, weights, strict=True)
        ]

    def score(
        self, record: NeuronRecord, explanation: str, excerpts: Sequence[Sample]
    ) -> list[Measured]:
        """Estimate from one neuron's simulations; those that failed are missing from their strata.

        Where all of a stratum are missing there is no estimate.
        """
        own = self._drawn(record)
        there = {
            each.excerpt: each
            for each in excerpts
            if each.simulated is not None and np.isfinite(each.simulated).any()
        }
        ids = own.ids[0][own.ids[0] >= 0].tolist()
        given = [place for place, excerpt in enumerate(ids) if excerpt in there]
        if not given:
            why = "no excerpt was simulated"
            return [Measured(CORPUS, measure, None, 0, reason=why) for measure in self.measures]
        samples = [there[ids[place]] for place in given]
        [measured] = measured_of(
            np.stack([each.true for each in samples])[None],
            np.stack([np.asarray(each.simulated) for each in samples])[None],
            Places(own.strata[:, given], own.sizes),
            scales_of(self._run, record.id.site, np.array([record.id.index])),
            np.array([len(ids)]),
        )
        return measured

    def _drawn(self, record: NeuronRecord) -> Drawn:
        return drawn(self._run, record.id.site, np.array([record.id.index]))


def scales_of(run: Run, site: int | str, indices: np.ndarray) -> np.ndarray:
    """The largest activation over the excerpts that explanations are written from, `[N]`."""
    span = slice(int(indices.min()), int(indices.max()) + 1)
    top = run.array(site, "top.activations", span)[indices - span.start]
    ranks = EXPLANATION_RANKS[top.shape[1] > EXPLANATION_RANKS]
    return widen(top[:, ranks, run.skip :]).max(axis=(1, 2))


def measured_of(
    true: np.ndarray, simulated: np.ndarray, places: Places, scales: np.ndarray, wanted: np.ndarray
) -> list[list[Measured]]:
    """The rows of N neurons, of activations `[N, E, T]`; `wanted` are the excerpts drawn `[N]`."""
    true = np.where(np.isnan(true), np.nan, np.maximum(true, 0))
    with np.errstate(invalid="ignore"):
        active = true >= _ACTIVE * scales[:, None, None]
    active &= (scales > 0)[:, None, None]
    estimates = {
        CORRELATION: correlations(true, simulated, places),
        _AUPRC: average_precisions(active, simulated, places),
    }
    why = {CORRELATION: "one side has no variance", _AUPRC: "no token is active"}
    counts = (places.strata >= 0).sum(axis=1)
    rows: list[list[Measured]] = []
    for neuron, covered in enumerate(places.covered):
        lacks = None
        if counts[neuron] < wanted[neuron]:
            lacks = (
                f"{wanted[neuron] - counts[neuron]} of {wanted[neuron]} excerpts have no simulation"
            )
        rows.append(
            [
                _row(
                    name, each, neuron, int(counts[neuron]), why[name] if covered else lacks, lacks
                )
                for name, each in estimates.items()
            ]
        )
    return rows


def _row(
    measure: str, found: Estimates, neuron: int, count: int, why: str | None, lacks: str | None
) -> Measured:
    """One measure of one neuron, with the reason why it is undefined, or what it lacks."""
    value, low, high = (
        None if np.isnan(each[neuron]) else float(each[neuron])
        for each in (found.value, found.low, found.high)
    )
    return Measured(CORPUS, measure, value, count, low, high, why if value is None else lacks)
