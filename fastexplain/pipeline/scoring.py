"""Scoring what a run has already: lookup explanations and stored simulations. Nothing is asked.

1. Explanations by lookup are predicted from the tables, all neurons of a layer at once; by scorers
   of the user's own, one by one. Two scorers run the subject for it: `corpus` and `documents`.
2. Others are scored by each of their stored simulations; those without any are counted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from fastexplain.errors import UsageError
from fastexplain.explainers.lookup import (
    METHOD,
    predict_layer,
    predict_texts,
    simulate_by_lookup,
    version_of,
)
from fastexplain.kernels.summary import widen
from fastexplain.pipeline.protocols import OtherText, Scorer
from fastexplain.pipeline.sides import ONE_SIDED
from fastexplain.progress import Report, reported
from fastexplain.records import NeuronId, NeuronRecord
from fastexplain.results import CORRELATION, DOCUMENTS, LIST, TOP, Mean, Measured, side_of
from fastexplain.run.agreement import CALIBRATED, Means
from fastexplain.run.database import Database
from fastexplain.run.directory import Run
from fastexplain.run.selection import select_neurons
from fastexplain.run.sides import of_side
from fastexplain.scorers import registry
from fastexplain.scorers.correlation import Correlation
from fastexplain.scorers.simulation import NAME as SIMULATION
from fastexplain.scorers.simulation import Simulation

if TYPE_CHECKING:
    from fastexplain.subject.model import Subject

SCORERS = (CORRELATION, SIMULATION)
CORPUS = "corpus"
"""A scorer which, of lookup explanations, is one pass of the subject for all neurons."""

# A mean of the calibrated ones, which have no lower bound, tells of its worst neuron alone: R² gave
# -26 million.
_MEASURES = (CORRELATION,)
_AVERAGED = tuple(name for name in Simulation.measures if name not in CALIBRATED)


@dataclass(frozen=True)
class Scored:
    """What a call of `score` has come to.

    Attributes:
        scored: explanations that it scored, each counted once for each of its simulators.
        lacking: explanations that have no simulations, which only a model could give.
        means: over the neurons explained by lookup, where these are all of the run.
        text_means: the same of the texts of these explanations.
        document_means: the same of their tables with whole documents left out, by that scorer.
    """

    scored: int
    lacking: int
    means: list[Mean]
    text_means: list[Mean]
    document_means: list[Mean]


def score(
    run: Run,
    neurons: str | NeuronId | Iterable[str | NeuronId] = "all",
    *,
    scorers: Sequence[Scorer | str] = SCORERS,
    subject: Subject | str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    progress: bool | Report = False,
) -> Scored:
    """Score the explanations that a run has, by what is stored; no model is asked.

    Scores by the same scorers are replaced.

    Args:
        run: from `sweep` or `open_run`.
        neurons: as for `explain`.
        scorers: names, or objects, as for `explain`; of those that go by simulations. "documents"
            scores lookup's tables without the documents of the random excerpts that test them; see
            `lookup_documents`.
        subject: for "corpus" and "documents" a loaded one, or where it is now, if not where it was
            swept from.
        device: of the subject; the best that is there if None.
        trust_remote_code: run the subject's own code.
        progress: True shows a bar. A function is called with the number of layers done.

    Raises:
        UsageError: a neuron or scorer does not exist, or a scorer asks a model.
        RunError: the database can't be written, or tables are gone.
        SubjectError: the subject can't be loaded, or is not the one that was swept.
    """
    names = [neurons] if isinstance(neurons, str | NeuronId) else neurons
    chosen = select_neurons(run, [str(name) for name in names])
    if isinstance(scorers, str) or not isinstance(scorers, Sequence):
        raise UsageError(f"`scorers` is {scorers!r}; give a list of scorers")
    made = registry.make([each for each in scorers if each != DOCUMENTS], run, _nobody)

    @functools.cache
    def load() -> Subject:
        from fastexplain.run.subjects import check_subject, load_subject_of  # they import torch

        if subject is None or isinstance(subject, str):
            return load_subject_of(
                run, name=subject, device=device, trust_remote_code=trust_remote_code
            )
        check_subject(run, subject)
        return subject

    if not {CORPUS, DOCUMENTS}.intersection(each for each in scorers if isinstance(each, str)):
        for name, given in (("subject", subject), ("device", device)):
            if given is not None:
                raise UsageError(f"`{name}` is for the scorers {CORPUS} and {DOCUMENTS}")
    for scorer in made:
        if not isinstance(scorer, Scorer):
            raise UsageError(f"the scorer {scorer!r} can't be used; give a name or a scorer")
        if scorer.judge is not None or isinstance(scorer, OtherText):
            raise UsageError(
                f"the scorer '{scorer.name}' asks a model; name it in `explain`'s `scorers`"
            )
    wanted: dict[int, set[int]] = {}
    for neuron in chosen:
        wanted.setdefault(neuron.layer, set()).add(neuron.index)
    scored = 0
    means: dict[str, dict[str, Means]] = {}
    with (
        run.database() as database,
        reported(progress, "Scoring", len(wanted), "layers") as report,
    ):
        for scorer in made:
            if scorer.name == CORPUS:
                scorer.load = load
                _score_corpus(run, database, wanted, scorer)
        if DOCUMENTS in scorers:
            means[DOCUMENTS] = {METHOD: _score_documents(run, database, wanted, load)}
        for done, (layer, indices) in enumerate(sorted(wanted.items()), start=1):
            lookups = {
                index: key
                for index, key in database.explanation_ids(str(layer), METHOD)
                if index in indices
            }
            for scorer in made:
                if isinstance(scorer, Simulation) and lookups:
                    own = means.setdefault(scorer.name, {})
                    _score_layer(run, database, layer, lookups, scorer, own)
            others = [
                each
                for each in made
                if not isinstance(each, Simulation | Correlation) and each.name != CORPUS
            ]
            for index, key in lookups.items() if others else ():
                record = run.neuron(NeuronId(layer, index))
                values = simulate_by_lookup(run, record)
                _score_one(database, record, key, "", METHOD, version_of(run), values, others)
            scored += len(lookups)
            simulated = database.simulations_of(str(layer)) if made else []
            for index, key, method, text, judge, version in simulated:
                side = side_of(method)
                able = [each for each in made if side == TOP or each.name not in ONE_SIDED]
                if index in indices and able:
                    record = of_side(run.neuron(NeuronId(layer, index)), side)
                    values = database.simulated(key, judge, version)
                    _score_one(database, record, key, text, judge, version, values, able)
                    scored += 1
            report(done)
        everything = len(chosen) == sum(site.units for site in run.sites.values())
        found = {
            (judge, name): own.rows(_MEASURES if name == DOCUMENTS else _AVERAGED)
            for name, judges in means.items()
            for judge, own in judges.items()
            if everything
        }
        for (judge, name), rows in found.items():
            database.add_means(judge, name, rows)
        lacking = sum(
            index in wanted[layer]
            for layer in (wanted if made else ())
            for index in database.unsimulated(str(layer))
        )
    documents = found.pop((METHOD, DOCUMENTS), [])
    rows_of = {
        of: [row for (judge, _), rows in found.items() if judge == of for row in rows]
        for of in (METHOD, LIST)
    }
    return Scored(scored, lacking, rows_of[METHOD], rows_of[LIST], documents)


def _nobody(purpose: str) -> NoReturn:
    """What a scorer is connected to that would ask a model."""
    raise UsageError("a scorer asks a model; name it in `explain`'s `scorers`")


def _score_corpus(run: Run, database: Database, wanted: dict[int, set[int]], scorer: Any) -> None:
    """Score lookup explanations over the whole corpus, by layer and index, in one pass of it."""
    from fastexplain.pipeline.lookup_corpus import score_lookup  # it imports torch

    keys = {
        NeuronId(layer, index): key
        for layer, indices in wanted.items()
        for index, key in database.explanation_ids(str(layer), METHOD)
        if index in indices
    }
    found = score_lookup(run, list(keys), scorer.subject) if keys else []
    scores = dict(zip(keys.values(), found, strict=True))
    database.add_scores(scorer.name, METHOD, version_of(run), scores)


def _score_documents(
    run: Run, database: Database, wanted: dict[int, set[int]], load: Callable[[], Subject]
) -> Means:
    """Score lookup explanations without whole documents, by layer and index; gives the means.

    The subject is loaded only where there are such explanations.
    """
    keys: dict[int, dict[int, int]] = {}
    for layer, indices in wanted.items():
        found = dict(database.explanation_ids(str(layer), METHOD))
        if own := {index: key for index, key in found.items() if index in indices}:
            keys[layer] = own
    means = Means()
    if keys:
        from fastexplain.pipeline.lookup_documents import score_without_documents

        for layer, over, top in score_without_documents(run, list(keys), load()):
            means.add(str(layer), [over], top)
            scores = {key: over.measured(index, _MEASURES) for index, key in keys[layer].items()}
            database.add_scores(DOCUMENTS, METHOD, version_of(run), scores)
    return means


def _score_layer(
    run: Run,
    database: Database,
    layer: int,
    lookups: dict[int, int],
    scorer: Simulation,
    means: dict[str, Means],
) -> None:
    """Score a layer's lookup explanations, given by index as their ids, all at once.

    Args:
        means: by judge; those of the texts are added where the texts are of this version.
    """
    rows = run.tables.rows(run.excerpts)
    predicted = {METHOD: [predict_layer(run, layer, rows, s) for s in ("test", "calibration")]}
    if entries := database.list_length(METHOD, version_of(run)):
        predicted[LIST] = predict_texts(run, layer, rows, entries)
    # The strongest exemplar is among those that an explanation is written from.
    strongest = widen(run.array(layer, "top.activations")[:, :1, run.skip :])
    scale = strongest.max(axis=(1, 2), initial=-np.inf)
    for judge, (test, fitted_on) in predicted.items():
        found = scorer.measure(test, (fitted_on.true, fitted_on.simulated), scale)
        means.setdefault(judge, Means()).add(str(layer), found.sets, test.top)
        scores = {key: found.measured(index) for index, key in lookups.items()}
        database.add_scores(scorer.name, judge, version_of(run), scores)


def _score_one(
    database: Database,
    record: NeuronRecord,
    explanation: int,
    text: str,
    judge: str,
    version: str,
    values: dict[int, np.ndarray],
    scorers: Sequence[Scorer],
) -> None:
    """Score one explanation by its simulations `[tokens]`, which are by excerpt id."""
    own = {excerpt: each[record.skip :] for excerpt, each in values.items()}
    for scorer in scorers:
        excerpts = [replace(e, simulated=own.get(e.excerpt)) for e in scorer.excerpts(record)]
        measured = scorer.score(record, text, excerpts)
        if not isinstance(measured, list):
            raise UsageError(f"the scorer '{scorer.name}' has to give a list, and at once")
        rows: list[Measured] = measured
        database.add_scores(scorer.name, judge, version, {explanation: rows})
