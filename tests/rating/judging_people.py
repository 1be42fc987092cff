"""People of known preferences: raters that are simulated, and ratings made by hand."""

from __future__ import annotations

import numpy as np

from fastexplain.records import NeuronId
from fastexplain.run.ratings import GRADES, RANKING, Judgement, Rating, ShownText, Source


def rated(neuron, rater, judgement, explainers):
    """A rating of one text by each explainer, which is shown under its name."""
    shown = tuple(
        ShownText(f"{neuron} {name}", (Source(number, "model", name, "1"),))
        for number, name in enumerate(explainers)
    )
    return Rating(NeuronId(0, neuron), rater, judgement, shown, {"top": [], "random": []}, 0)


def ranked(neuron, rater, ranks, explainers="abcdefgh"):
    return rated(neuron, rater, Judgement(RANKING, tuple(ranks)), explainers[: len(ranks)])


def graded(neuron, rater, grades, explainers="abcdefgh"):
    return rated(neuron, rater, Judgement(GRADES, tuple(grades)), explainers[: len(grades)])


def ranking_by(rng, log_strengths):
    """Ranks drawn from Plackett and Luce's model, whose pairs follow Bradley and Terry's."""
    noisy = np.asarray(log_strengths) + rng.gumbel(size=len(log_strengths))
    return (1 + np.argsort(np.argsort(-noisy))).tolist()
