"""Intruder: which of five excerpts does not belong to the others?

Four activate the neuron and have the tokens marked at which it does; on the fifth, a random one, it
is silent, and the marks of one that activates it stand there, moved. No explanation is shown: it
measures whether there is one thing to explain, so a neuron's explanations all get the same score,
from the same stored answers. By chance it is 1 in 5.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastexplain.llm.requests import Answer
from fastexplain.prompts import judges
from fastexplain.results import Measured, Sample
from fastexplain.run.directory import Run
from fastexplain.scorers import accuracy
from fastexplain.scorers.judging import (
    HELD_OUT,
    SHOWN,
    SILENT,
    Judge,
    Judged,
    Question,
    activating,
    marks,
    silent,
)
from fastexplain.scorers.registry import Connect

# Questions about a neuron; an excerpt may be in several. With ten an accuracy of .2 is known to
# within about .25.
_QUESTIONS = 10


def make(run: Run, connect: Connect) -> Intruder:
    """See `registry`."""
    return Intruder(connect(Intruder.name))


class Intruder(Judge):
    """Asks which excerpt is the intruder; see `Judge`."""

    name = "intruder"
    measures = ("accuracy",)
    version = "intruder-1"
    most_requests = _QUESTIONS

    def questions(
        self,
        explanation: str,
        excerpts: Sequence[Sample],
        order: np.random.Generator,
        *,
        held: bool,
    ) -> list[Question]:
        belonging = activating(excerpts, order)
        others = silent(excerpts, order)
        result = []
        for number in range(_QUESTIONS):
            drawn = order.choice(len(belonging), SHOWN - 1, replace=False)
            chosen = [belonging[place] for place in drawn]
            pattern = marks(belonging[order.integers(len(belonging))][0])
            texts = [judges.marked(each.tokens, marks(each)) for each, _ in chosen]
            shown = [Judged(each.excerpt, True, quantile) for each, quantile in chosen]
            other = others[number % len(others)]
            place = int(order.integers(SHOWN))
            pattern = np.roll(pattern, order.integers(len(pattern)))
            texts.insert(place, judges.marked(other.tokens, pattern))
            shown.insert(place, Judged(other.excerpt, False, SILENT))
            result.append(Question(judges.intruder(texts, held=held), shown, _belongs))
        return result

    def measured(self, judged: Sequence[Judged], lacks: str | None) -> list[Measured]:
        """Its accuracy, over the questions that have an answer; the excerpts are the different."""
        answered = [each for each in judged if each.prediction is not None]
        intruders = [each for each in answered if not each.activating]
        found = accuracy.proportion(
            HELD_OUT,
            "accuracy",
            sum(each.prediction is False for each in intruders),
            len(intruders),
            "no answer",
            lacks,
        )
        return [found._replace(excerpts=len({each.excerpt for each in answered}))]


def _belongs(answer: Answer, count: int) -> list[bool]:
    """Of each text whether it belongs to the others."""
    number = judges.read_intruder(answer, count)
    return [place != number for place in range(1, count + 1)]
