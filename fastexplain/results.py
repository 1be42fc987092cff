"""What explainers and scorers give, and what is stored of it: explanations, scores, means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from fastexplain.notebook import explanation_html
from fastexplain.records import NeuronId


@dataclass(frozen=True)
class Scores:
    """How well simulated activations follow the true ones; Pearson's correlation, None undefined.

    Attributes:
        random_only: over the random excerpts of the test split.
        top_and_random: over all of its excerpts; the headline.
        top_only: over its top excerpts.
        excerpts_random, excerpts_top: how many excerpts of each kind the headline rests on; those
            without a simulation don't count.
        reason: what the scores lack: that the simulations have too few of the tokens; else None.
        low, high: the ends of the headline's 95% interval; None if there is none.
        given: what a scorer gave, where they are from one.
    """

    random_only: float | None
    top_and_random: float | None
    top_only: float | None
    excerpts_random: int
    excerpts_top: int
    reason: str | None = None
    low: float | None = None
    high: float | None = None
    given: tuple[Measured, ...] = field(default=(), repr=False, compare=False)

    @classmethod
    def of(cls, measured: Sequence[Measured]) -> Scores:
        """The correlations among what a scorer gave."""
        found = {m.split: m for m in measured if m.measure == CORRELATION}
        random_only, both, top_only = (
            found[split] for split in ("random_only", "top_and_random", "top_only")
        )
        return cls(
            random_only.value,
            both.value,
            top_only.value,
            both.excerpts - top_only.excerpts,
            top_only.excerpts,
            None if both.value is None else both.reason,
            both.low,
            both.high,
            tuple(found.values()),
        )

    def measured(self) -> list[Measured]:
        """The same, as a scorer gives it."""
        if self.given:
            return list(self.given)
        values = {
            "random_only": (self.random_only, self.excerpts_random),
            "top_and_random": (self.top_and_random, self.excerpts_random + self.excerpts_top),
            "top_only": (self.top_only, self.excerpts_top),
        }
        return [
            Measured(
                split,
                CORRELATION,
                value,
                excerpts,
                reason=_why_undefined(value, excerpts) or self.reason,
            )
            for split, (value, excerpts) in values.items()
        ]


CORRELATION = "correlation"
"""The scorer of Bills et al. 2023, and its measure: Pearson's correlation."""

SIDES = TOP, BOTTOM = "top", "bottom"
"""A neuron's sides, of which an explanation is: where it is above 0, or below; see `run.sides`."""

_FROM_BELOW = "_bottom"  # a method's end; the database looks for it too


def method_of(method: str, side: str) -> str:
    """The method under which explanations of a side are stored: `model_bottom` for `model`."""
    return method if side == TOP else f"{method}{_FROM_BELOW}"


def side_of(method: str) -> str:
    """The side that a stored method explains."""
    return BOTTOM if method.endswith(_FROM_BELOW) else TOP


LIST = "list"
"""The judge of a lookup explanation's text, which is scored as it stands beside its table."""

DOCUMENTS = "documents"
"""The scorer of lookup's tables with whole documents left out; see `pipeline.lookup_documents`."""


class Measured(NamedTuple):
    """One number that a scorer gives an explanation.

    Attributes:
        split: the excerpts that it is over, such as "top_and_random".
        measure: what it is, such as "correlation".
        value: None where it is undefined.
        excerpts: how many excerpts it rests on.
        low, high: the ends of its confidence interval; None if there is none.
        reason: why the value is undefined, or what it lacks.
    """

    split: str
    measure: str
    value: float | None
    excerpts: int
    low: float | None = None
    high: float | None = None
    reason: str | None = None


class Raised(NamedTuple):
    """A token that becomes likelier.

    Attributes:
        token_id: the token.
        token: the same, as text.
        rise: of its probability as the next token, a mean over tokens and excerpts.
        before: its mean probability there, as it is.
    """

    token_id: int
    token: str
    rise: float
    before: float


class Steering(NamedTuple):
    """What a model says more often where a neuron is raised.

    Attributes:
        tenths: of the neuron's largest activation in the sweep, 1 to 10, to which it is raised.
        activation: that value.
        divergence: Jensen-Shannon, in nats, a mean over tokens and excerpts.
        excerpts: how many random excerpts it is over.
        tokens: those that rise most, the first one most.
    """

    tenths: int
    activation: float
    divergence: float
    excerpts: int
    tokens: list[Raised]


@dataclass(frozen=True)
class Score:
    """A stored `Measured`.

    Attributes:
        scorer: such as "correlation".
        judge: the model that the scorer asked: the simulator, for a correlation.
        version: how the judge was asked.
        measured: the number.
    """

    scorer: str
    judge: str
    version: str
    measured: Measured


def _why_undefined(value: float | None, excerpts: int) -> str | None:
    if value is not None:
        return None
    return "one side has no variance" if excerpts else "no excerpt was simulated"


@dataclass(frozen=True)
class Explanation:
    """What an explainer says of a neuron.

    Attributes:
        text: a short phrase.
        data: what there is to say beyond the text; JSON.
        parameters: what it was asked with; JSON.
        parent: id of the stored explanation that it was made from.
    """

    text: str
    data: Any = field(default_factory=dict)
    parameters: Any = field(default_factory=dict)
    parent: int | None = None


@dataclass(frozen=True)
class Sample:
    """An excerpt on which an explanation is scored; it was not written from it.

    Attributes:
        excerpt: its id.
        top: whether it is a top exemplar, not a random one.
        true: float `[counted]`, the activations at its counted tokens.
        simulated: float `[counted]`, NaN where one is missing; None where it is not simulated.
        tokens: its counted tokens, as text.
        split: "calibration", "validation", "test", or "corpus" where it was drawn from all of it.
        weight: how many excerpts of its split it stands for.
    """

    excerpt: int
    top: bool
    true: np.ndarray
    simulated: np.ndarray | None = None
    tokens: Sequence[str] = ()
    split: str = "test"
    weight: float = 1.0


@dataclass(frozen=True)
class ExplanationRow:
    """An explanation to store.

    Attributes:
        neuron: which one.
        method: how it was made: "lookup", "model", "human", "imported", "revised" or another; of
            the bottom with the end that `method_of` gives it.
        model: the explainer; a language model's name, a person's, or the method again.
        version: of its prompt, or of the lookup.
        text: the explanation; None if it failed.
        data: what the method has to say beyond the text; JSON.
        parameters: what it was asked with; JSON.
        failure: why there is no text.
        scores: where the explainer predicts activations by itself, as the lookup does; they are
            stored with the explainer as simulator.
        parent: id of the explanation that this one was made from.
        text_scores: by lookup, where `scores` are those of the whole table: what the text alone
            predicts; stored with `LIST` as simulator.
    """

    neuron: NeuronId
    method: str
    model: str
    version: str
    text: str | None
    data: Any = field(default_factory=dict)
    parameters: Any = field(default_factory=dict)
    failure: str | None = None
    scores: Scores | None = None
    parent: int | None = None
    text_scores: Scores | None = None

    @property
    def side(self) -> str:
        """Which of the neuron's sides it explains. Scores are of that: "top" in their names too."""
        return side_of(self.method)


@dataclass(frozen=True)
class StoredExplanation(ExplanationRow):
    """An explanation as read back, with one simulator's scores.

    Attributes:
        id: what simulations refer to.
        created: UTC, ISO 8601.
        simulator: whose scores these are; None if it was not scored.
        simulation: how it simulated: its prompt's version, mode and readout.
        cost: of the explanation, in US dollars; None if unknown.
    """

    id: int = 0
    created: str = ""
    simulator: str | None = None
    simulation: str | None = None
    cost: float | None = None

    def _repr_html_(self) -> str:
        """The explanation as a notebook shows it."""
        return explanation_html(self)


class Mean(NamedTuple):
    """A mean over neurons of what a scorer gave their explanations by one method.

    Attributes:
        site: whose neurons; empty for all of the run.
        split, measure: as in `Measured`.
        neurons: how many it is over: those where the score is defined.
        value: the mean.
        low, high: its 95% interval over the choice of excerpts, which neurons share; None if there
            is none.
    """

    site: str
    split: str
    measure: str
    neurons: int
    value: float
    low: float | None
    high: float | None


class LayerMeans(NamedTuple):
    """Mean scores of a layer, over the neurons where each is defined; None where it is nowhere."""

    layer: int
    scored: int
    random_only: float | None
    top_and_random: float | None
    top_only: float | None
