"""What explains by a language model, and what its explanations are chosen by.

Candidates and revisions are chosen by simulations of the validation split.

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
from fastexplain.explainers.evidence import Source
from fastexplain.explainers.exemplars import CHOICES, TOP, ByQuantile, Choose, choose_top
from fastexplain.explainers.model import ModelExplainer
from fastexplain.explainers.revise import Activate, Parent, Reviser
from fastexplain.explainers.validation import Predict
from fastexplain.ledger.budget import Budget
from fastexplain.llm import Connection
from fastexplain.llm.requests import Capabilities
from fastexplain.pipeline.protocols import Explainer, Scorer, Simulator
from fastexplain.pipeline.sides import check_settings
from fastexplain.pipeline.simulating import simulate
from fastexplain.prompts.wordings import PROMPTS, choose
from fastexplain.run.database import Database
from fastexplain.run.directory import Run
from fastexplain.run.splits import HELD_OUT
from fastexplain.scorers.registry import check_names
from fastexplain.simulators.model import READOUTS, check_way

if TYPE_CHECKING:
    from fastexplain.pipeline.models import Settings
    from fastexplain.subject.model import Subject

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


def check_choice(run: Run, settings: Settings) -> None:
    """Raise UsageError for names that there are not, and for choices that exclude each other.

    It is called before a model is reached, so that what is wrong in the settings is said first.
    """
    Budget(settings.max_cost, settings.max_requests, max_minutes=settings.max_minutes)
    check_way(settings.mode, settings.readout or READOUTS[0])
    check_names(settings.scorers, run)
    if not isinstance(settings.explainer, Explainer):
        choose(settings.prompt, thinks=False)
    for name, least in (("candidates", 1), ("revise", 0), ("meanings", 1)):
        given = getattr(settings, name)
        if not isinstance(given, int) or given < least:
            raise UsageError(f"`{name}` is {given!r}; give a whole number from {least} on")
        if given > least and isinstance(settings.explainer, Explainer):
            raise UsageError(f"`{name}` is for language models that explain; leave it out")
    if settings.exemplars not in CHOICES:
        raise UsageError(
            f"`exemplars` is {settings.exemplars!r}; choose one of {', '.join(CHOICES)}"
        )
    if settings.exemplars != TOP and isinstance(settings.explainer, Explainer):
        raise UsageError("`exemplars` is for language models that explain; leave it out")
    prompt = PROMPTS.get(settings.prompt or "")
    if (
        prompt
        and "texts" not in prompt.shows
        and (settings.exemplars, settings.meanings) != (TOP, 1)
    ):
        raise UsageError(
            f"`prompt={prompt.name!r}` shows no texts, of which `exemplars` and `meanings` choose; "
            "leave these out, or choose another prompt"
        )
    if settings.meanings > 1 and settings.revise:
        raise UsageError(
            "`meanings` and `revise` exclude each other: a revision is of one phrase; leave out "
            "one of them"
        )
    if settings.controls and not settings.revise:
        raise UsageError("`controls` are those of a revision; give `revise` too")
    check_settings(run, settings)


def choosing_exemplars(run: Run, settings: Settings) -> Choose:
    """What chooses the exemplars to show; it loads the run's subject when it first has to."""
    if settings.exemplars == TOP:
        return choose_top

    def load() -> Subject:
        from fastexplain.run.subjects import load_subject_of  # imports torch

        return load_subject_of(run, name=settings.subject)

    return ByQuantile(run, load)


def explainer_of(
    connection: Connection,
    can: Capabilities,
    settings: Settings,
    source: Source,
    shown: Choose,
) -> ModelExplainer:
    """What explains by a language model, with the prompt that the settings or its probe name.

    Args:
        shown: chooses the exemplars.

    Raises:
        UsageError: there is no such prompt, or nothing that it could show.
    """
    prompt = choose(settings.prompt, thinks=can.thinks)
    if prompt.shows == {"entries"} and not source.has_entries:
        raise UsageError(
            f"`prompt={prompt.name!r}` puts the tokens of a sweep's tables into words, and this "
            "run was swept without tables; choose another"
        )
    return ModelExplainer(connection, prompt, source, shown, settings.exemplars, settings.meanings)


def best_of(
    explainer: Sampling, simulator: Simulator | None, settings: Settings, *, hopeful: bool = False
) -> Sampling | BestOf:
    """The explainer, or what takes the best of its candidates.

    Args:
        simulator: simulates the validation split.
        hopeful: as in `BestOf`.
    """
    if settings.candidates == 1:
        return explainer
    assert simulator is not None
    return BestOf(
        explainer, predicting(simulator), described(simulator), settings.candidates, hopeful=hopeful
    )


def arms(
    explainer: Any,
    ask: Callable[[str], Connection],
    simulator: Simulator | None,
    settings: Settings,
    scorers: Sequence[Scorer],
    activate: Callable[[], Activate],
    parent: Callable[[Explainer], Parent],
    *,
    hopeful: bool = False,
) -> list[Arm]:
    """The ways to explain that a call goes through, the one that it is made for last.

    Args:
        explainer: as `best_of` gives it, where something is to be revised.
        ask: gives connections to the explainer, by what they are for.
        simulator: simulates the validation split.
        scorers: score what is explained.
        activate: makes what gives the subject's activations.
        parent: finds what an explainer has said.
        hopeful: as in `BestOf` and `Reviser`.
    """
    if not settings.revise:
        return [Arm("", explainer, scorers)]
    assert simulator is not None
    predict, by = predicting(simulator), described(simulator)

    def reviser(activations: Activate | None) -> Reviser:
        return Reviser(
            explainer, ask(SENTENCES), ask(REVISION), predict, by, activations,
            parent(explainer), settings.revise, hopeful=hopeful,
        )  # fmt: skip

    revised = Arm(REVISED_ARM, reviser(activate()), scorers)
    if not settings.controls:
        return [Arm(FIRST_ARM, explainer, []), revised]
    samples = settings.candidates + settings.revise
    plain = explainer.inner if isinstance(explainer, BestOf) else explainer
    return [
        Arm(FIRST_ARM, explainer, scorers),
        Arm(FRESH_ARM, BestOf(plain, predict, by, samples, first=None, hopeful=hopeful), scorers),
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
    asked = settings.candidates * settings.meanings
    simulated = most_simulations(settings.candidates, FIRST, HELD_OUT) * settings.meanings
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
