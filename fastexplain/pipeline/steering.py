"""Steering: which tokens a model says more often where a neuron is raised.

For every neuron, on some of the run's random excerpts, all its counted activations are raised to
each tenth of its largest activation in the sweep; those above it stay. The rise of each token's
probability is averaged over the counted tokens of these excerpts; the tokens that rise most say
what the neuron writes, where an explanation says what it reads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastexplain.kernels.summary import widen
from fastexplain.records import NeuronId
from fastexplain.results import Raised, Steering
from fastexplain.run.directory import Run
from fastexplain.subject.divergence import jensen_shannon
from fastexplain.subject.interventions import Intervention, intervene
from fastexplain.subject.model import Subject

TENTHS = range(1, 11)
_EXCERPTS = 4  # random ones: of a layer's neurons the same
_TOKENS = 10  # that rise most, as many as a reader takes in


def steer_layer(run: Run, subject: Subject, neurons: Sequence[NeuronId]) -> list[list[Steering]]:
    """Raise neurons of one layer, all in the same batches.

    Returns:
        For each neuron its steps, by ascending activation; none where its largest activation is not
        above 0, or the run kept no random excerpts.

    Raises:
        SubjectError: see `intervene`.
    """
    if not neurons:
        return []
    layer, skip = neurons[0].layer, run.skip
    excerpts = run.array(layer, "random.ids").tolist()[:_EXCERPTS]
    excerpts = [excerpt for excerpt in excerpts if excerpt >= 0]  # the missing ones are the last
    activations = [
        widen(run.array(layer, "random.activations", each.index)) for each in neurons
    ]  # as many times `[random excerpts, tokens]`
    largest = run.array(layer, "maximum")[[each.index for each in neurons]].tolist()
    steps = [
        (place, tenths)
        for place, most in enumerate(largest)
        for tenths in TENTHS
        if most > 0 and excerpts
    ]
    if not steps:
        return [[] for _ in neurons]
    ids = np.stack([run.excerpt(excerpt) for excerpt in excerpts])
    changes = []
    for excerpt in range(len(excerpts)):
        for place, tenths in steps:
            value = tenths / 10 * largest[place]
            below = activations[place][excerpt] < value
            below[:skip] = False
            values = np.where(below, np.float32(value), np.float32(np.nan))
            changes.append(Intervention(neurons[place].index, excerpt, values))
    # One row for each step, whatever the number of excerpts.
    rises: list[Tensor | None] = [None] * len(steps)
    divergences: list[Tensor | float] = [0.0] * len(steps)
    means: dict[int, Tensor] = {}

    def visit(number: int, before: Tensor, after: Tensor) -> None:
        excerpt, step = divmod(number, len(steps))
        before, after = before[skip:], after[skip:]
        if excerpt not in means:
            means[excerpt] = before.exp().mean(0)
        rise = after.exp().mean(0).sub_(means[excerpt])
        own = rises[step]
        rises[step] = rise if own is None else own.add_(rise)
        divergences[step] = divergences[step] + jensen_shannon(before, after).mean()

    intervene(subject, layer, torch.from_numpy(ids), changes, visit)
    usual = torch.stack(list(means.values())).mean(0)
    found: list[list[Steering]] = [[] for _ in neurons]
    for (place, tenths), rise, divergence in zip(steps, rises, divergences, strict=True):
        assert rise is not None
        most, tokens = (rise / len(excerpts)).topk(min(_TOKENS, len(rise)))
        rows = zip(tokens.tolist(), most.tolist(), usual[tokens].tolist(), strict=True)
        found[place].append(
            Steering(
                tenths,
                tenths / 10 * largest[place],
                float(divergence) / len(excerpts),
                len(excerpts),
                [Raised(t, run.token_text(t), up, was) for t, up, was in rows if up > 0],
            )
        )
    return found
