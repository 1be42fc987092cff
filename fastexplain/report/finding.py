"""What `find` and `activate` come to, as `--json` gives it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastexplain.finding.results import Hit
from fastexplain.finding.search import best_explanation
from fastexplain.pipeline.activating import Activated, Active
from fastexplain.report.entries import whole_words
from fastexplain.run.directory import Run


def in_whole_words(run: Run, hits: Sequence[Hit]) -> list[Hit]:
    """Neurons that were found, with pieces of words in their words in the explanations."""
    with run.database(read_only=True) as database:
        best = [best_explanation(database.explanations(hit.neuron)) for hit in hits]
    words = whole_words(run, [row for row in best if row is not None])
    return [
        hit if row is None else replace(hit, explanation=words.get(row.id, hit.explanation))
        for hit, row in zip(hits, best, strict=True)
    ]


def hit_data(hit: Hit) -> dict[str, Any]:
    """A neuron that was found; NaN as null."""
    return {
        "neuron": str(hit.neuron),
        "value": hit.value,
        **{name: _known(value) for name, value in hit.details.items()},
        "explanation": hit.explanation,
        "score": hit.score,
        "evidence": [vars(each) for each in hit.evidence],
    }


def activated_data(found: Activated) -> dict[str, Any]:
    """What a text does to neurons; NaN as null."""
    return {
        "tokens": found.tokens,
        "counted": found.counted,
        "over_text": [_active_data(each) for each in found.over_text],
        "by_token": [[_active_data(each) for each in own] for own in found.by_token],
        "values": {
            str(neuron): [_known(value) for value in values.tolist()]
            for neuron, values in found.values.items()
        },
    }


def _active_data(active: Active) -> dict[str, Any]:
    return active._asdict() | {
        "neuron": str(active.neuron),
        "of_largest": _known(active.of_largest),
    }


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
