"""What is tried on a run: a text of one's own, and an explanation of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastexplain.explainers.lists import simulate_list, text_of
from fastexplain.explainers.typed import read_list
from fastexplain.records import NeuronId
from fastexplain.report.excerpts import four_digits
from fastexplain.report.neuron import MODELS_FULL, explanations_data
from fastexplain.results import Sample
from fastexplain.run.directory import Run
from fastexplain.run.splits import held_out
from fastexplain.scorers.correlation import Correlation

if TYPE_CHECKING:
    from fastexplain.pipeline.trying import Tried


def followed_data(
    run: Run, neuron: NeuronId, tokens: list[str], values: np.ndarray
) -> dict[str, Any]:
    """One neuron on a text.

    Args:
        tokens, values: of the text, as `Ranker.follow` gives them.

    Returns:
        `neuron`, `tokens`, `counted` (the first token that counts), `values` (a number, or null
        where one is not counted, for each token), `lowest` and `highest` (of the sweep).
    """
    statistics = run.neuron(neuron).statistics
    return {
        "neuron": str(neuron),
        "tokens": tokens,
        "counted": run.skip,
        "values": _numbers(values),
        "lowest": statistics.minimum,
        "highest": statistics.maximum,
    }


def simulated_data(run: Run, neuron: NeuronId, text: str) -> dict[str, Any]:
    """A list that somebody typed, simulated on a neuron's test excerpts and scored.

    Its excerpts are those of the stored lists' scores: the top ones of the test split and all of
    its random ones.

    Returns:
        `neuron`; `text`, the list as it was understood; `scores`, `results.Measured` by name;
        `excerpts`, each with `excerpt`, `top`, `tokens`, `activations` and `simulated` of its
        counted tokens; `lowest` and `highest` of the neuron; `explanations`, those that are stored,
        as `report.neuron.explanations_data`.

    Raises:
        UsageError: the text is no list.
        RunError: a file is missing or damaged.
    """
    typed = read_list(run, text)
    record = run.neuron(neuron)
    [ranks], [slots] = held_out(
        np.array([[e.excerpt for e in record.top]], np.int64),
        np.array([e.excerpt for e in record.random], np.int64),
        every=True,
    )
    chosen = [(record.top[rank], True) for rank in ranks if rank >= 0]
    chosen += [(record.random[slot], False) for slot in slots if slot >= 0]
    samples = [
        Sample(
            each.excerpt,
            top,
            each.activations[run.skip :],
            simulate_list(typed.entries, typed.default, each.token_ids)[run.skip :],
            each.tokens[run.skip :],
        )
        for each, top in chosen
    ]
    with run.database(read_only=True) as database:
        stored = database.explanations(neuron)
    return {
        "neuron": str(neuron),
        "text": text_of(typed.entries, typed.default),
        "scores": [row._asdict() for row in Correlation().score(record, text, samples)],
        "excerpts": [
            {
                "excerpt": each.excerpt,
                "top": each.top,
                "tokens": list(each.tokens),
                "activations": _numbers(each.true),
                "simulated": None if each.simulated is None else _numbers(each.simulated),
            }
            for each in samples
        ],
        "lowest": record.statistics.minimum,
        "highest": record.statistics.maximum,
        "explanations": explanations_data(run, stored),
    }


def tried_data(run: Run, neuron: NeuronId, tried: Tried) -> dict[str, Any]:
    """A text that somebody typed, simulated by a language model and scored.

    Returns:
        `neuron`; `text`; `scores`, `results.Measured` by name; `simulation`, as a page of the
        neuron has them (`report.page.page_data`); `failures`, a line each; `explanations`, those
        that are stored, as `report.neuron.explanations_data`.
    """
    with run.database(read_only=True) as database:
        stored = database.explanations(neuron)
    before = np.full(run.skip, np.nan, np.float32)  # values stand beside tokens
    return {
        "neuron": str(neuron),
        "text": tried.text,
        "scores": [row._asdict() for row in tried.scores],
        "simulation": {
            "simulator": tried.simulator,
            "version": tried.version,
            "full": MODELS_FULL,
            "sign": 1,
            "values": {
                str(excerpt): four_digits(np.concatenate([before, values]))
                for excerpt, values in tried.values.items()
            },
        },
        "failures": tried.failures,
        "explanations": explanations_data(run, stored),
    }


def _numbers(values: np.ndarray) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]
