"""The score over the whole corpus of lookup explanations, for many neurons at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastexplain.explainers.lookup import predict_by_lookup
from fastexplain.records import NeuronId
from fastexplain.results import Measured
from fastexplain.run.directory import Run
from fastexplain.run.strata import drawn
from fastexplain.run.subjects import load_subject_of
from fastexplain.scorers.corpus import measured_of, scales_of
from fastexplain.scorers.stratified import Places
from fastexplain.subject.activations import activations_at
from fastexplain.subject.model import Subject


def score_lookup(
    run: Run, neurons: Sequence[NeuronId], subject: Subject | None = None
) -> list[list[Measured]]:
    """Score the lookup's predictions over the whole corpus, of many MLP neurons at once.

    Each excerpt is predicted from tables that forget it. All neurons' excerpts are run through the
    subject together, each once.

    Args:
        subject: the run's; loaded by the manifest if None.

    Returns:
        What `Corpus.score` gives, for each neuron.

    Raises:
        RunError, SubjectError: as `Corpus.excerpts`; or the sweep kept no tables.
    """
    subject = load_subject_of(run) if subject is None else subject
    found: list[list[Measured]] = [[] for _ in neurons]
    layers = np.array([neuron.layer for neuron in neurons])
    indices = np.array([neuron.index for neuron in neurons])
    groups = {int(layer): np.flatnonzero(layers == layer) for layer in np.unique(layers)}
    draws = {layer: drawn(run, layer, indices[own]) for layer, own in groups.items()}
    width = max(each.ids.shape[1] for each in draws.values())
    ids = np.full((len(neurons), width), -1, np.int32)
    for layer, own in groups.items():
        ids[own, : draws[layer].ids.shape[1]] = draws[layer].ids
    union = np.unique(ids[ids >= 0])
    places = np.where(ids >= 0, np.searchsorted(union, ids), -1)
    true = activations_at(subject, run.excerpts[union], neurons, places)
    for layer, own in groups.items():
        count = draws[layer].ids.shape[1]
        known = np.ascontiguousarray(true[own, :count])
        predicted = predict_by_lookup(run, layer, indices[own], ids[own, :count], known)
        rows = measured_of(
            known[:, :, run.skip :],
            predicted[:, :, run.skip :],
            Places(draws[layer].strata, draws[layer].sizes),
            scales_of(run, layer, indices[own]),
            (ids[own] >= 0).sum(axis=1),
        )
        for neuron, measured in zip(own, rows, strict=True):
            found[neuron] = measured
    return found
