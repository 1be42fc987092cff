"""How good a judge's answers are: accuracies, precision, recall and F1, with 95% intervals.

Sources: Wilson 1927 for the interval of a proportion; Zou and Donner 2008, "Construction of
confidence limits about effect measures", for that of the mean of two. F1 = 2J / (1 + J) rises with
J = TP / (TP + FP + FN), a proportion, so that the ends of its interval are those of J's.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot, sqrt

from fastexplain.results import Measured
from fastexplain.scorers.judging import HELD_OUT, QUANTILES, Judged

# Of the yes and no of `detection` and `fuzzing`.
MEASURES = ("balanced_accuracy", "accuracy", "f1", "precision", "recall", "specificity")

_Z = 1.959963984540054  # standard deviations to either side that hold 95% of a normal distribution


def wilson(right: float, count: float) -> tuple[float, float]:
    """The 95% interval of a proportion of which `right` of `count`, at least 1, were seen.

    Neither needs to be whole: `count` may be what dependent observations are worth.
    """
    share, z2 = right / count, _Z**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z * sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    # Exactly 0 and 1 at the ends, where rounding would miss them.
    low = 0.0 if right == 0 else middle - half
    return low, 1.0 if right == count else middle + half


def proportion(
    split: str, measure: str, right: int, count: int, why_none: str, lacks: str | None = None
) -> Measured:
    """A proportion of excerpts, with its interval; undefined, with the reason, of none."""
    if not count:
        return Measured(split, measure, None, 0, reason=why_none)
    return Measured(split, measure, right / count, count, *wilson(right, count), lacks)


def of_yes_and_no(judged: Sequence[Judged], lacks: str | None) -> list[Measured]:
    """All measures over the excerpts that have an answer, and recall by quantile.

    Args:
        lacks: what the answers lack, which becomes each row's reason.
    """
    answered = [each for each in judged if each.prediction is not None]
    count = len(answered)
    right = [each for each in answered if each.activating]
    others = [each for each in answered if not each.activating]
    true_yes = sum(each.prediction is True for each in right)
    false_yes = sum(each.prediction is True for each in others)
    true_no = len(others) - false_yes
    no_right, no_others = "no answer is about a right one", "no answer is about a wrong one"
    recall = proportion(HELD_OUT, "recall", true_yes, len(right), no_right, lacks)
    specificity = proportion(HELD_OUT, "specificity", true_no, len(others), no_others, lacks)
    rows = [
        _balanced(recall, specificity, count, lacks),
        proportion(HELD_OUT, "accuracy", true_yes + true_no, count, "no answer", lacks),
        _f1(true_yes, len(right) + false_yes, count, lacks),
        proportion(
            HELD_OUT,
            "precision",
            true_yes,
            true_yes + false_yes,
            "the judge said yes to none",
            lacks,
        ),
        recall,
        specificity,
    ]
    for quantile in range(1, QUANTILES + 1):
        said = [each.prediction for each in right if each.distance == quantile]
        rows.append(
            proportion(
                f"quantile_{quantile}", "recall", sum(map(bool, said)), len(said), no_right, lacks
            )
        )
    return rows


def _balanced(recall: Measured, specificity: Measured, count: int, lacks: str | None) -> Measured:
    """The mean of both."""
    values = recall.value, specificity.value
    if values[0] is None or values[1] is None:
        reason = recall.reason if values[0] is None else specificity.reason
        return Measured(HELD_OUT, MEASURES[0], None, count, reason=reason)
    assert recall.low is not None and specificity.low is not None
    assert recall.high is not None and specificity.high is not None
    mean = (values[0] + values[1]) / 2
    low = mean - hypot(values[0] - recall.low, values[1] - specificity.low) / 2
    high = mean + hypot(recall.high - values[0], specificity.high - values[1]) / 2
    return Measured(HELD_OUT, MEASURES[0], mean, count, low, high, lacks)


def _f1(true_yes: int, counted: int, count: int, lacks: str | None) -> Measured:
    """Of the right ones and those that were taken for right, `counted`, the `true_yes` are both."""
    if not counted:
        return Measured(HELD_OUT, "f1", None, count, reason="none is right, and the judge said so")
    value, low, high = (
        2 * share / (1 + share) for share in (true_yes / counted, *wilson(true_yes, counted))
    )
    return Measured(HELD_OUT, "f1", value, count, low, high, lacks)
