"""What a run's ratings say, as plain data: raters, their agreement, scores, explainers; and CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastexplain.errors import RunError
from fastexplain.rating.agreement import BetweenRaters, agreement_on_grades, agreement_on_order
from fastexplain.rating.pairs import counting, pairs
from fastexplain.rating.resampling import Estimate
from fastexplain.rating.scores import missing, score_agreement
from fastexplain.rating.strengths import strengths
from fastexplain.run.directory import Run
from fastexplain.run.ratings import GRADES, RANKING, SKIPPED, Rating, Ratings

_COLUMNS = (
    "rating", "neuron", "rater", "created", "withdrawn", "replaces", "kind", "place", "value",
    "explanation", "method", "model", "version", "text", "seed",
)  # fmt: skip


def ratings_data(run: Run) -> dict[str, Any]:
    """All that follows from a run's ratings, as `--json` gives it.

    Returns:
        `raters`; `between_raters`, the alphas of `order` and of `grades`; `scores`, the agreement
        of each automatic score with people; `explainers`, by strength; `missing`, how many of the
        explanations that were compared are no longer there, so that their scores are not known.

    Raises:
        RunError: the database can't be used, or is damaged.
    """
    with run.database(read_only=True) as database:
        ratings = Ratings(database).all()
        judged = counting(ratings)
        compared = pairs(judged)
        scores = score_agreement(database, compared)
        absent = missing(database, compared)
    return {
        "run": str(run.path),
        "raters": _raters(ratings),
        "neurons": len({rating.neuron for rating in judged}),
        "between_raters": {
            "order": _between(agreement_on_order(judged)),
            "grades": _between(agreement_on_grades(judged)),
        },
        "scores": [
            each.kind._asdict()
            | _ends("alike", each.alike)
            | _ends("tau", each.tau)
            | {"pairs": each.pairs, "neurons": each.neurons}
            for each in scores
        ],
        "explainers": [
            dict(zip(("method", "model", "version"), each.explainer, strict=True))
            | _ends("strength", each.strength)
            | {
                name: getattr(each, name)
                for name in ("preferred", "wins", "ties", "losses", "neurons", "group")
            }
            for each in strengths(compared)
        ],
        "missing": absent,
    }


def write_csv(run: Run, path: Path) -> int:
    """Write all ratings, withdrawn ones too, a row for each explanation; returns how many ratings.

    Texts stand as they were shown. A skip is one row, without an explanation.

    Raises:
        RunError: the file can't be written, or the database can't be used.
    """
    with run.database(read_only=True) as database:
        ratings = Ratings(database).all()
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            for rating in ratings:
                writer.writerows(_csv_rows(rating))
    except (OSError, ValueError) as error:  # ValueError of a name with NUL
        raise RunError(
            f"can't write {path}: {getattr(error, 'strerror', None) or error}"
        ) from error
    return len(ratings)


def _csv_rows(rating: Rating) -> list[tuple[object, ...]]:
    kind, values = rating.judgement
    head = (
        rating.id, str(rating.neuron), rating.rater, rating.created, rating.withdrawn or "",
        rating.replaces or "", kind,
    )  # fmt: skip
    if kind == SKIPPED:
        return [(*head, *[""] * 7, rating.seed)]
    return [
        (*head, place, value, *source, shown.text, rating.seed)
        for place, (shown, value) in enumerate(zip(rating.shown, values, strict=True), start=1)
        for source in shown.sources
    ]


def _raters(ratings: Sequence[Rating]) -> list[dict[str, Any]]:
    """Of each rater how many ratings count, by kind, and how many were withdrawn."""
    found = []
    for rater in sorted({rating.rater for rating in ratings}):
        own = [rating for rating in ratings if rating.rater == rater]
        kinds = [rating.judgement.kind for rating in own if rating.withdrawn is None]
        found.append(
            {
                "rater": rater,
                "rankings": kinds.count(RANKING),
                "grades": kinds.count(GRADES),
                "skipped": kinds.count(SKIPPED),
                "withdrawn": len(own) - len(kinds),
                "first": own[0].created,
                "last": own[-1].created,
            }
        )
    return found


def _between(found: BetweenRaters) -> dict[str, Any]:
    return _ends("alpha", found.alpha) | {"units": found.units, "neurons": found.neurons}


def _ends(name: str, found: Estimate) -> dict[str, float | None]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
