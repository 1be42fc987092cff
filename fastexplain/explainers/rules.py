"""The rule explainer: what drives a neuron in a short phrase, without a language model.

A rule is a default and up to four terms, such as "a digit after an opening bracket", each with a
value that it adds. All are estimated for all neurons of a layer at once from the sweep's tables
(`kernels/cpu/rules.py`), without the neuron's test and validation excerpts; so the rule is a
simulator of its own and has a held-out score. Where it predicts the validation excerpts better
than a list of the lookup explanation's length that is chosen without these too, it comes first of
the neuron's explanations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from fastexplain.errors import UsageError
from fastexplain.explainers.features import Features
from fastexplain.explainers.lists import ENTRIES, check_entries, second_rows, shortened
from fastexplain.explainers.lookup import METHOD as LOOKUP
from fastexplain.explainers.lookup import (
    layer_tables,
    leave_out_tested,
    split_excerpts,
    version_of,
)
from fastexplain.kernels import excerpt_sums, measures
from fastexplain.kernels.cpu.lists import choose
from fastexplain.kernels.cpu.rules import feature_sums, grow, predict
from fastexplain.kernels.measuring import MEASURES
from fastexplain.kernels.summary import HeldOut, LookupTables
from fastexplain.records import NeuronId
from fastexplain.results import CORRELATION, ExplanationRow, Scores, StoredExplanation
from fastexplain.run.agreement import Agreement, Means, agreement
from fastexplain.run.directory import Run
from fastexplain.run.reading import Reading

METHOD = "rule"
# 1 had terms that meant two things, families of fragments, and exceptions of nothing; its list for
# comparison had 8 entries whatever the lookup's have.
VERSION = "rule-2"

TERMS = 4
"""Of a rule at the most."""

_NOTHING = "nothing: no class of tokens that drives it more than others"
_MEASURES = (CORRELATION,)
_LITTLE = 0.25  # of what holds around an exception: with less the rule says "not"


class Rules(NamedTuple):
    """Rules of F neurons; see `kernels.cpu.rules.grow`."""

    chosen: np.ndarray
    values: np.ndarray
    default: np.ndarray
    counts: np.ndarray
    means: np.ndarray


class Held(NamedTuple):
    """What rules are grown without: excerpts of the test and then of the validation split.

    Attributes:
        ids: int32 `[F, E]`, no excerpt twice for a neuron; -1 for none.
        activations: float32 `[F, E, tokens]`.
        top: bool `[F, E]`.
        tests: how many of E are of the test split.
    """

    ids: np.ndarray
    activations: np.ndarray
    top: np.ndarray
    tests: int


def held_excerpts(run: Run, layer: int) -> Held:
    """A layer's excerpts of both splits; of the validation's those that are no test's."""
    test = split_excerpts(run, layer)
    validation = split_excerpts(run, layer, split="validation")
    leave_out_tested(validation[0], test[0])
    ids, activations, top = (
        np.concatenate(each, axis=1) for each in zip(test, validation, strict=True)
    )
    return Held(ids, activations, top, test[0].shape[1])


def grow_rules(run: Run, layer: int, tables: LookupTables, held: Held, features: Features) -> Rules:
    """The rules of a layer's neurons, without their test and validation excerpts."""
    positive, count = tables.positive_sums, tables.count
    parts = [tables.token_sums, tables.pair_sums]
    if len(run.tables.situations):
        parts.append(run.array(layer, "tables.situations"))
    sums = np.zeros((len(features.phrases), len(positive)))
    begin = 0
    for part in parts:
        rows = features.rows[begin : begin + len(part)]
        feature_sums(part, rows, features.starts, features.members, sums)
        begin += len(part)
    return Rules(
        *grow(
            np.ascontiguousarray(sums.T), positive, count, features.counts, features.shared,
            features.token_of, features.first_pair,
            held.ids, np.ascontiguousarray(held.activations[:, :, run.skip :]),
            features.known, features.starts, features.members, TERMS,
        )
    )  # fmt: skip


def predict_rules(rules: Rules, features: Features, excerpts: np.ndarray) -> np.ndarray:
    """What rules say of excerpts, int32 `[F, E]` with -1 for none: float32 `[F, E, counted]`."""
    return predict(
        rules.chosen, rules.values, rules.default, excerpts,
        features.keys, features.starts, features.members,
    )  # fmt: skip


def simulate_rule(run: Run, features: Features, row: StoredExplanation) -> dict[int, np.ndarray]:
    """What a stored rule predicts of its neuron's test excerpts: by id float32 `[tokens]`.

    Tokens that are not counted are NaN.

    Raises:
        UsageError: the rule is of another version, or a term's phrase is that of several tokens.
    """
    if row.version != VERSION:
        raise UsageError(
            f"the rule of {row.neuron} is by another version; run: fastexplain explain {run.path}"
        )
    ids = split_excerpts(run, row.neuron.layer, slice(row.neuron.index, row.neuron.index + 1))[0]
    chosen = np.full((1, max(len(row.data), 1)), -1, np.int32)
    for place, term in enumerate(row.data):
        chosen[0, place] = features.named(term["term"])
    values = np.zeros(chosen.shape)
    values[0, : len(row.data)] = [term["value"] for term in row.data]
    rules = Rules(chosen, values, np.array([row.parameters["default"]]), values, values)
    counted = predict_rules(rules, features, ids)[0]
    whole = np.pad(counted, ((0, 0), (run.skip, 0)), constant_values=np.nan)
    return {int(id_): own for id_, own in zip(ids[0], whole, strict=True) if id_ >= 0}


def explain_by_rules(run: Run, *, entries: int = ENTRIES) -> Iterator[list[ExplanationRow]]:
    """Explain and score every neuron of a run, layer by layer, a row a neuron; stores nothing.

    A row's `data` are its terms, strongest first: `term` (the phrase), `value` (what it adds),
    `mean` (of max(activation, 0) there) and `count` (the counted tokens that both rest on, held-out
    excerpts left out). Its `parameters` have the `default`, `entries`, and whether it comes
    `first`.

    Args:
        entries: of the lists that rules are compared with, at most.

    Raises:
        UsageError: no list has so many entries.
        RunError: the sweep kept no tables.
    """
    for rows, _, _ in _layers(run, check_entries(entries)):
        yield rows


def _layers(
    run: Run, entries: int
) -> Iterator[tuple[list[ExplanationRow], list[Agreement], np.ndarray]]:
    """By layer the explanations, what their scores are from, and which excerpts are top ones."""
    if run.layers:
        layer_tables(run, run.layers[0], slice(0, 1))  # raises before features are made of none
    rows, second = run.tables.rows(run.excerpts), second_rows(run.tables)
    features = Features(run, rows)
    for layer in run.layers:
        tables, held = layer_tables(run, layer), held_excerpts(run, layer)
        rules = grow_rules(run, layer, tables, held, features)
        true, tests = held.activations[:, :, run.skip :], held.tests
        simulated = predict_rules(rules, features, held.ids)
        found = agreement(true[:, :tests], simulated[:, :tests], held.top[:, :tests])

        excerpts = HeldOut(held.ids, held.activations, *rows, run.skip)
        lists = shortened(choose(tables, excerpts, second, count=entries), entries)
        listed = lists.predict(excerpts, tables)[:, tests:, run.skip :]
        by_rule, by_list = (
            measures(excerpt_sums(true[:, tests:], own))[:, MEASURES.index(CORRELATION)]
            for own in (simulated[:, tests:], listed)
        )
        # An undefined correlation, which is NaN, is no better than another.
        first = (by_rule > by_list) | (~np.isnan(by_rule) & np.isnan(by_list))
        explained = [
            ExplanationRow(
                NeuronId(layer, index),
                METHOD,
                METHOD,
                VERSION,
                text_of(rules, features, index),
                data=_terms(rules, features, index),
                parameters={
                    "default": float(rules.default[index]),
                    "first": bool(first[index]),
                    "entries": entries,
                },
                scores=Scores.of([m for each in found for m in each.measured(index, _MEASURES)]),
            )
            for index in range(len(rules.default))
        ]
        yield explained, found, held.top[:, :tests]


def _terms(rules: Rules, features: Features, neuron: int) -> list[dict[str, Any]]:
    return [
        {"term": features.phrases[feature], "value": value, "mean": mean, "count": count}
        for feature, value, mean, count in zip(
            *(own[neuron].tolist() for own in (rules.chosen, rules.values, rules.means,
                                               rules.counts)),
            strict=True,
        )
        if feature >= 0
    ]  # fmt: skip


def text_of(rules: Rules, features: Features, neuron: int) -> str:
    """A neuron's rule as a phrase: what raises it, strongest part first, then exceptions.

    A part that lies within a stronger one stands behind that: "a number, above all '7'".
    """
    chosen = [int(f) for f in rules.chosen[neuron] if f >= 0]
    if not chosen:
        return _NOTHING
    values = rules.values[neuron]
    raising: dict[int, list[str]] = {}  # by the place of a part those within it, itself first
    lowering: list[str] = []
    for place, feature in enumerate(chosen):
        phrase = features.phrases[feature]
        around = [
            other
            for other in range(len(chosen))
            if other != place and values[other] > 0 and features.inside(feature, chosen[other])
        ]
        if values[place] > 0:
            stronger = next((other for other in around if other in raising), place)
            raising.setdefault(stronger, []).append(phrase)
        else:
            before = rules.default[neuron] + sum(values[other] for other in around)
            little = bool(around) and before + values[place] < _LITTLE * before
            lowering.append(f"{'not' if little else 'weaker on'} {phrase}")
    parts = (
        f"{part}, above all {' and '.join(within)}" if within else part
        for part, *within in raising.values()
    )
    return ", but ".join(part for part in ("; ".join(parts), ", ".join(lowering)) if part)


def store_rules(run: Run, progress: Callable[[int], None] | None = None) -> int:
    """Explain every neuron of a run by a rule and store it in the run; returns the neurons.

    Former rules are replaced. They are compared with lists of as many entries as those have that
    are stored, or `lists.ENTRIES` without any.

    Args:
        progress: called with the number of layers done, after each.

    Raises:
        RunError: the sweep kept no tables, or the database can't be written.
    """
    neurons, means = 0, Means()
    with run.database() as database:
        layers = _layers(run, _entries_of(run, database))
        for done, (layer, found, top) in enumerate(layers, start=1):
            database.add_explanations(layer)
            means.add(layer[0].neuron.site if layer else "", found, top)
            neurons += len(layer)
            if progress is not None:
                progress(done)
        database.add_means(METHOD, CORRELATION, means.rows(_MEASURES))
    return neurons


def rules_are_stored(run: Run) -> bool:
    """Whether `store_rules` was done, beside lists as they are stored now.

    Raises RunError if the database can't be read.
    """
    with run.database(read_only=True) as database:
        stored = database.explained(METHOD, VERSION, entries=_entries_of(run, database))
    return stored == run.manifest["sweep"]["neurons"]


def _entries_of(run: Run, database: Reading) -> int:
    """How many entries the lists have that are stored."""
    return database.list_length(LOOKUP, version_of(run)) or ENTRIES
