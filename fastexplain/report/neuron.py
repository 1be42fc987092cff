"""One neuron: statistics, explanations, exemplars and simulations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fastexplain.explainers.lists import simulate_list
from fastexplain.explainers.lookup import simulate_by_lookup
from fastexplain.records import Exemplar, NeuronRecord, SignClass
from fastexplain.report.baselines import baselines_data
from fastexplain.report.entries import whole_words
from fastexplain.report.judged import judged_of
from fastexplain.report.ruled import is_rule
from fastexplain.results import LIST, Steering, StoredExplanation
from fastexplain.run.database import Database
from fastexplain.run.directory import Run
from fastexplain.run.sides import of_side
from fastexplain.run.splits import held_out
from fastexplain.run.weights import NEIGHBOURS, NeuronWeights, Side

Simulated = tuple[StoredExplanation, dict[int, np.ndarray]]
"""An explanation, and by excerpt id what was predicted from it, float32 `[tokens]`."""

MODELS_FULL = 10
"""The highest value that a language model gives in a simulation."""


def neuron_data(run: Run, record: NeuronRecord, count: int) -> dict[str, Any]:
    """A neuron as `--json` gives it: activations as numbers, NaN as null."""
    rows, simulated = explanations_of(run, record)
    with run.database(read_only=True) as database:
        steering = database.steering(record.id)
    statistics = {
        name: value.tolist() if isinstance(value, np.ndarray) else _number(value)
        for name, value in vars(record.statistics).items()
    }
    return {
        "neuron": str(record.id),
        "skip": record.skip,
        "statistics": statistics,
        "explanations": explanations_data(run, rows),
        "baselines": baselines_data(run, record.id)["baselines"],
        "judged": _judged_data(run, record, rows),
        "steering": steering_data(steering),
        "weights": weights_data(run.weights(record.id)),
        "signs": signs_data(run.signs(record.id), count),
        **{
            kind: [_exemplar_data(exemplar) for exemplar in getattr(record, kind)[:count]]
            for kind in ("top", "bottom", "random")
        },
        "simulations": [
            {
                "explanation": row.id,
                "simulator": row.simulator,
                "excerpt": excerpt,
                "activations": [_number(float(value)) for value in values],
            }
            for row, excerpts in simulated
            for excerpt, values in excerpts.items()
        ],
    }


def signs_data(classes: Sequence[SignClass] | None, count: int) -> list[dict[str, Any]] | None:
    """A neuron's sign classes as `--json` gives them, with so many exemplars each."""
    if classes is None:
        return None
    return [
        {
            "signs": each.name,
            "tokens": each.tokens,
            **{
                name: _number(getattr(each, name))
                for name in ("share", "mean", "variance", "mass", "extreme")
            },
            "exemplars": [
                _exemplar_data(exemplar) | {"members": members.tolist()}
                for exemplar, members in zip(
                    each.exemplars[:count], each.members[:count], strict=True
                )
            ],
        }
        for each in classes
    ]


def _judged_data(
    run: Run, record: NeuronRecord, rows: Sequence[StoredExplanation]
) -> list[dict[str, object]]:
    """What judges said of each excerpt."""
    data: list[dict[str, object]] = []
    with run.database(read_only=True) as database:
        for id_, text, side in dict.fromkeys((r.id, r.text, r.side) for r in rows if r.text):
            seen = of_side(record, side)
            found = judged_of(run, database, seen, text or "", database.scores(id_))
            for (scorer, judge, version), answers in found.items():
                asked = {"explanation": id_, "scorer": scorer, "judge": judge, "version": version}
                data += [asked | each._asdict() | {"correct": each.correct} for each in answers]
    return data


def explanations_data(run: Run, rows: Sequence[StoredExplanation]) -> list[dict[str, object]]:
    """Explanations as `--json` gives them, each with all of its scores."""
    words = whole_words(run, rows)
    with run.database(read_only=True) as database:
        return [
            explanation_data(row, words.get(row.id))
            | {
                "scores": [
                    {"scorer": score.scorer, "judge": score.judge, "version": score.version}
                    | score.measured._asdict()
                    for score in database.scores(row.id)
                ]
            }
            for row in rows
        ]


def steering_data(steps: Sequence[Steering]) -> list[dict[str, Any]]:
    """What raising a neuron does, as `--json` gives it."""
    return [
        step._asdict() | {"tokens": [token._asdict() for token in step.tokens]} for step in steps
    ]


def weights_data(found: NeuronWeights | None) -> dict[str, Any] | None:
    """What a neuron's weights say of it, as `--json` gives it; None where nobody looked."""
    if found is None:
        return None

    def side(own: Side) -> dict[str, Any]:
        ends = {"most": own.most, "least": own.least}
        return {"spread": own.spread} | {
            end: [token._asdict() for token in tokens] for end, tokens in ends.items()
        }

    return {
        "output": side(found.output),
        "inputs": {part: side(own) for part, own in found.inputs.items()},
        **{
            kind: [
                {"neuron": str(each.neuron), "cosine": each.cosine} for each in getattr(found, kind)
            ]
            for kind in NEIGHBOURS
        },
    }


def explanation_data(row: StoredExplanation, text: str | None = None) -> dict[str, object]:
    """One explanation as `--json` gives it; a list's own text can be typed again as it stands.

    Args:
        text: what `whole_words` makes of it, if anything.
    """
    scores = row.scores
    return {
        "neuron": str(row.neuron),
        "method": row.method,
        "side": row.side,
        "explainer": row.model,
        "simulator": row.simulator,
        "simulation": row.simulation,
        "explanation": row.text,
        "in_words": text or row.text,
        "failure": row.failure,
        "top_and_random": scores and scores.top_and_random,
        "low": scores and scores.low,
        "high": scores and scores.high,
        "random_only": scores and scores.random_only,
        "top_only": scores and scores.top_only,
        "excerpts_top": scores and scores.excerpts_top,
        "excerpts_random": scores and scores.excerpts_random,
        "reason": scores and scores.reason,
        "text_top_and_random": row.text_scores and row.text_scores.top_and_random,
        "text_random_only": row.text_scores and row.text_scores.random_only,
        "id": row.id,
        "data": row.data,
        "parameters": row.parameters,
        "cost": row.cost,
    }


def explanations_of(
    run: Run, record: NeuronRecord
) -> tuple[list[StoredExplanation], list[Simulated]]:
    """What is stored of a neuron, and the predictions of its test excerpts from each of these."""
    with run.database(read_only=True) as database:
        rows = database.explanations(record.id)
        return rows, simulated_of(run, record, rows, database)


def simulated_of(
    run: Run, record: NeuronRecord, rows: Sequence[StoredExplanation], database: Database
) -> list[Simulated]:
    """What was predicted from a neuron's explanations, of those that have predictions."""
    simulated: list[Simulated] = []
    for row in rows:
        if row.method == "lookup":
            simulated.append((row, simulate_by_lookup(run, record)))
        simulated += stored_simulations(run, record, row, database)
    return simulated


def stored_simulations(
    run: Run, record: NeuronRecord, row: StoredExplanation, database: Database
) -> list[Simulated]:
    """What one explanation predicts by its text, or was stored of it; its table is left out."""
    if row.method != "lookup":
        values = database.simulated(row.id, row.simulator, row.simulation)
        return [(row, values)] if values else []
    if row.text_scores is None:
        return []
    return [(replace(row, simulator=LIST), _by_text(run, row, record))]


def full_of(row: StoredExplanation, excerpts: dict[int, np.ndarray], largest: float) -> float:
    """The simulated value that stands for a neuron's largest activation.

    A table predicts activations, a model says integers up to 10; of a contrast, which has no such
    scale, it is the largest value that was simulated.

    Args:
        excerpts: what was simulated; NaN where a value is missing.
        largest: the neuron's largest activation.
    """
    if row.method == "lookup" or is_rule(row):
        return largest
    if any(word.startswith("contrast") for word in (row.simulation or "").split()):
        most = max((float(np.nanmax(own, initial=0)) for own in excerpts.values()), default=0.0)
        return most or MODELS_FULL
    return MODELS_FULL


def _by_text(run: Run, row: StoredExplanation, record: NeuronRecord) -> dict[int, np.ndarray]:
    """What a lookup explanation's text says of the test excerpts, as `Simulated` has it."""
    top, random = (
        np.array([exemplar.excerpt for exemplar in kept], np.int64)
        for kept in (record.top, record.random)
    )
    [ranks], [slots] = held_out(top[None], random, every=True)
    ids = [*top[ranks[ranks >= 0]].tolist(), *random[slots[slots >= 0]].tolist()]
    values = simulate_list(row.data, row.parameters["default"], run.excerpts_of(ids))
    values[:, : run.skip] = np.nan  # not counted
    return dict(zip(ids, values, strict=True))


def _exemplar_data(exemplar: Exemplar) -> dict[str, Any]:
    return {
        "excerpt": exemplar.excerpt,
        "token_ids": exemplar.token_ids.tolist(),
        "tokens": exemplar.tokens,
        "activations": [_number(value) for value in exemplar.activations.tolist()],
    }


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
