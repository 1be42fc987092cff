"""Explanations that are chosen by simulations of the validation split: candidates and revisions.

To revise, a call goes through several ways to explain in turn, the arms: the explanation that is
revised comes first. For a comparison, controls come between: as many fresh samples, of which the
best is taken, and revisions with texts chosen at random in the place of counter-examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastexplain.errors import UsageError
from fastexplain.explainers.candidates import FIRST, BestOf, Sampling, most_simulations
from fastexplain.explainers.revise import Activate, Parent, Reviser
from fastexplain.explainers.validation import Predict
from fastexplain.llm import Connection
from fastexplain.pipeline.protocols import Explainer, Scorer, Simulator
from fastexplain.pipeline.simulating import simulate
from fastexplain.run.database import Database
from fastexplain.run.splits import HELD_OUT

if TYPE_CHECKING:
    from fastexplain.pipeline.models import Settings

VALIDATION = "validation"
"""What simulations of the validation split are for, in the ledger."""


SENTENCES, REVISION = "sentences", "revision"
"""What the explainer is asked for in a revision, in the ledger."""

FIRST_ARM, FRESH_ARM, RANDOM_ARM, REVISED_ARM = (
    "first", "fresh samples", "random texts", "counter-examples"
)  # fmt: skip


class Arm(NamedTuple):
    """One of the ways to explain that a call goes through in turn.

    Attributes:
        name: one of the names above; empty where there is one way alone.
        explainer: explains.
        scorers: score its explanations; none where these are only to be revised.
    """

    name: str
    explainer: Explainer
    scorers: Sequence[Scorer]


def check_choice(settings: Settings) -> None:
    """Raise UsageError where there is nothing to choose from."""
    for name, least in (("candidates", 1), ("revise", 0)):
        given = getattr(settings, name)
        if not isinstance(given, int) or given < least:
            raise UsageError(f"`{name}` is {given!r}; give a whole number from {least} on")
        if given > least and isinstance(settings.explainer, Explainer):
            raise UsageError(f"`{name}` is for language models that explain; leave it out")
    if settings.controls and not settings.revise:
        raise UsageError("`controls` are those of a revision; give `revise` too")


def best_of(
    explainer: Sampling, simulator: Simulator | None, settings: Settings
) -> Sampling | BestOf:
    """The explainer, or what takes the best of its candidates.

    Args:
        simulator: simulates the validation split.
    """
    if settings.candidates == 1:
        return explainer
    assert simulator is not None
    return BestOf(explainer, predicting(simulator), described(simulator), settings.candidates)


def arms(
    explainer: Any,
    ask: Callable[[str], Connection],
    simulator: Simulator | None,
    settings: Settings,
    scorers: Sequence[Scorer],
    activate: Callable[[], Activate],
    parent: Callable[[Explainer], Parent],
    *,
    patient: bool = False,
) -> list[Arm]:
    """The ways to explain that a call goes through, the one that it is made for last.

    Args:
        explainer: as `best_of` gives it, where something is to be revised.
        ask: gives connections to the explainer, by what they are for.
        simulator: simulates the validation split.
        scorers: score what is explained.
        activate: makes what gives the subject's activations.
        parent: finds what an explainer has said.
        patient: as in `Reviser`.
    """
    if not settings.revise:
        return [Arm("", explainer, scorers)]
    assert simulator is not None
    predict, by = predicting(simulator), described(simulator)

    def reviser(activations: Activate | None) -> Reviser:
        return Reviser(
            explainer, ask(SENTENCES), ask(REVISION), predict, by, activations,
            parent(explainer), settings.revise, patient=patient,
        )  # fmt: skip

    revised = Arm(REVISED_ARM, reviser(activate()), scorers)
    if not settings.controls:
        return [Arm(FIRST_ARM, explainer, []), revised]
    samples = settings.candidates + settings.revise
    plain = explainer.inner if isinstance(explainer, BestOf) else explainer
    return [
        Arm(FIRST_ARM, explainer, scorers),
        Arm(FRESH_ARM, BestOf(plain, predict, by, samples, first=None), scorers),
        Arm(RANDOM_ARM, reviser(None), scorers),
        revised,
    ]


def asked_of(explainer: Explainer) -> tuple[str, str, str]:
    """Method, model and version, by which explanations are found again."""
    return explainer.method, explainer.model, explainer.version


def said_by(database: Database) -> Callable[[Explainer], Parent]:
    """Finds what an explainer has said of a neuron."""
    return lambda explainer: lambda neuron: database.find_explanation(neuron, *asked_of(explainer))


def most_requests(settings: Settings) -> tuple[int, int]:
    """Of a neuron at the most: requests to the explainer, and excerpts of the validation split that
    are simulated."""
    asked = settings.candidates
    simulated = most_simulations(settings.candidates, FIRST, HELD_OUT)
    rounds = settings.revise
    if rounds:
        asked += 2 * rounds
        simulated += (1 + rounds) * HELD_OUT
    if settings.controls:
        samples = settings.candidates + rounds
        asked += samples + rounds
        simulated += most_simulations(samples, None, HELD_OUT) + (1 + rounds) * HELD_OUT
    return asked, simulated


def described(simulator: Simulator) -> str:
    """What simulates and how, as a part of the version of what is chosen by it."""
    return f"{simulator.model} {simulator.version}"


def predicting(simulator: Simulator) -> Predict:
    """A simulator as explainers take it."""

    async def predict(explanation: str, tokens: Sequence[str]) -> np.ndarray:
        return (await simulate(simulator, explanation, tokens)).values

    return predict
