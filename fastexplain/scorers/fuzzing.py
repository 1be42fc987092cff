"""Fuzzing: are the marked tokens those at which a neuron of this explanation reacts?

Each excerpt that activates the neuron is shown twice: with its right tokens marked, and with the
marks moved together to tokens at which the neuron is silent, so that their number and pattern tell
nothing. The two are never part of one question. Marks can't be moved in an excerpt that has no such
room, which is left out, and so are others until they are fives.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastexplain.prompts import judges
from fastexplain.results import Measured, Sample
from fastexplain.run.directory import Run
from fastexplain.scorers import accuracy
from fastexplain.scorers.judging import (
    ACTIVATING,
    QUANTILES,
    Judge,
    Judged,
    Question,
    TooFewError,
    activating,
    fives,
    in_questions,
    marks,
)
from fastexplain.scorers.registry import Connect


def make(run: Run, connect: Connect) -> Fuzzing:
    """See `registry`."""
    return Fuzzing(connect(Fuzzing.name))


class Fuzzing(Judge):
    """Asks in which excerpts the right tokens are marked; see `Judge`."""

    name = "fuzzing"
    measures = accuracy.MEASURES
    version = "fuzzing-1"
    most_requests = 6

    def questions(
        self,
        explanation: str,
        excerpts: Sequence[Sample],
        order: np.random.Generator,
        *,
        held: bool,
    ) -> list[Question]:
        both = []
        for each, quantile in activating(excerpts, order):
            other = moved(each, order)
            if other is not None:
                both.append((each, quantile, {True: marks(each), False: other}))
        if len(both) < QUANTILES:
            raise TooFewError(
                f"only {len(both)} excerpts that activate it have room for marks elsewhere, of "
                f"{QUANTILES} needed"
            )
        both = fives([both[place] for place in order.permutation(len(both))])
        # Two decks, each with all of the excerpts, of which half are right; the other half is in
        # the other one.
        first = order.permutation(len(both)) % 2 == 0
        result = []
        for rights in (first, ~first):
            deck = [(*both[place], bool(rights[place])) for place in order.permutation(len(both))]
            for part in in_questions(deck):
                texts = [judges.marked(each.tokens, own[right]) for each, _, own, right in part]
                shown = [Judged(each.excerpt, right, quantile) for each, quantile, _, right in part]
                chat = judges.fuzzing(explanation, texts, held=held)
                result.append(Question(chat, shown, judges.read_yes_or_no))
        return result

    def measured(self, judged: Sequence[Judged], lacks: str | None) -> list[Measured]:
        return accuracy.of_yes_and_no(judged, lacks)


def moved(excerpt: Sample, order: np.random.Generator) -> np.ndarray | None:
    """The marks moved on, past the end to the beginning, to tokens where the neuron is silent.

    Returns:
        bool `[counted]`; None where they fit nowhere.
    """
    right = marks(excerpt)
    loud = np.asarray(excerpt.true) > ACTIVATING * np.max(excerpt.true)
    fitting = [by for by in range(1, len(right)) if not (np.roll(right, by) & loud).any()]
    return np.roll(right, int(order.choice(fitting))) if fitting else None
