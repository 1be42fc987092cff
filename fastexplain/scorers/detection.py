"""Detection: which of these excerpts activate a neuron of this explanation?

The excerpts are those held out from the explanation: as many of each quantile of their strongest
activation, at the most three, and random ones on which the neuron is silent, as many or, where
there are fewer, as many fives as there are. They are shuffled, and asked about five at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastexplain.prompts import judges
from fastexplain.results import Measured, Sample
from fastexplain.run.directory import Run
from fastexplain.scorers import accuracy
from fastexplain.scorers.judging import (
    SILENT,
    Judge,
    Judged,
    Question,
    activating,
    fives,
    in_questions,
    silent,
)
from fastexplain.scorers.registry import Connect


def make(run: Run, connect: Connect) -> Detection:
    """See `registry`."""
    return Detection(connect(Detection.name))


class Detection(Judge):
    """Asks which excerpts activate the neuron; see `Judge`."""

    name = "detection"
    measures = accuracy.MEASURES
    version = "detection-1"
    most_requests = 6

    def questions(
        self,
        explanation: str,
        excerpts: Sequence[Sample],
        order: np.random.Generator,
        *,
        held: bool,
    ) -> list[Question]:
        right = activating(excerpts, order)
        others = fives(silent(excerpts, order)[: len(right)])
        deck = [*right, *((each, SILENT) for each in others)]
        result = []
        for part in in_questions([deck[place] for place in order.permutation(len(deck))]):
            texts = [judges.plain(each.tokens) for each, _ in part]
            shown = [Judged(each.excerpt, quantile != SILENT, quantile) for each, quantile in part]
            chat = judges.detection(explanation, texts, held=held)
            result.append(Question(chat, shown, judges.read_yes_or_no))
        return result

    def measured(self, judged: Sequence[Judged], lacks: str | None) -> list[Measured]:
        return accuracy.of_yes_and_no(judged, lacks)
