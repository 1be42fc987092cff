"""The lookup explainer: what drives a neuron, read off the sweep's tables without a language model.

It is the token-lookup baseline of Bills et al. 2023 ("Assessing explanation quality") made strong:
tables over the whole corpus instead of over the exemplars, with triples that back off to pairs and
these to tokens, and the excerpts that score it held out. For every layer:

1. The explanation is the whole table. Its text is a short list of entries (`lists.py`): the tokens,
   and tokens after a given token, that say most of the neuron, with their mean activations.
2. The test excerpts are predicted from the tables (`fastexplain.kernels.lookup`), with a regression
   under them where the run has one (`regression.py`), and from the text alone.
3. The scores are the correlations of these with the truth, as for any explanation, but over all
   random excerpts of the split: predicting one is free here. Those of the text have the judge
   "list".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from fastexplain.errors import RunError
from fastexplain.explainers.lists import (
    ENTRIES,
    check_entries,
    entry_maker,
    second_rows,
    shortened,
    text_of,
)
from fastexplain.explainers.regression import predict
from fastexplain.kernels.cpu.lists import choose
from fastexplain.kernels.summary import HeldOut, LookupTables, widen
from fastexplain.records import NeuronId, NeuronRecord
from fastexplain.results import CORRELATION, LIST, ExplanationRow, Scores
from fastexplain.run.agreement import Agreement, Means, agreement
from fastexplain.run.directory import Run
from fastexplain.run.splits import held_out

_NOTHING = "nothing: no token that the tables know drives it more than others"

METHOD = "lookup"
# 1 scored on five random excerpts; 2 listed the strongest entries, unscored, and had no triples.
VERSION = "lookup-3"
# The same with a regression under the tables, where the sweep summed for one.
WITH_REGRESSION = "lookup-4"

_MEASURES = (CORRELATION,)


def version_of(run: Run) -> str:
    """The version of the method, as it explains a run."""
    return VERSION if run.regression is None else WITH_REGRESSION


def explain_by_lookup(run: Run, *, entries: int = ENTRIES) -> Iterator[list[ExplanationRow]]:
    """Explain and score every neuron of a run, layer by layer, a row a neuron; stores nothing.

    A row's `data` are its list's entries in the order in which they were chosen: `token`,
    `previous` (of a pair, else None), their `ids`, `mean` (of max(activation, 0) there, without the
    test excerpts) and `count` (the tokens that it rests on). In `parameters` are `entries`, as
    given, and `default`, what the list says of everything else.

    Raises:
        UsageError: no list has so many entries.
        RunError: the sweep kept no tables.
    """
    for explained in _layers(run, check_entries(entries)):
        yield explained.rows


class _Layer(NamedTuple):
    """A layer's explanations, what the scores of table and text are from, and the top excerpts."""

    rows: list[ExplanationRow]
    by_table: list[Agreement]
    by_text: list[Agreement]
    top: np.ndarray


def _layers(run: Run, entries: int) -> Iterator[_Layer]:
    rows = run.tables.rows(run.excerpts)
    second, entries_of = second_rows(run.tables), entry_maker(run)
    for layer in run.layers:
        tables = layer_tables(run, layer)
        ids, activations, top = split_excerpts(run, layer)
        excerpts = HeldOut(ids, activations, *rows, run.skip)
        lists = shortened(choose(tables, excerpts, second, count=entries), entries)
        true = activations[:, :, run.skip :]
        by_table, by_text = (
            agreement(true, simulated[:, :, run.skip :], top)
            for simulated in (
                predict(run, layer, tables, excerpts),
                lists.predict(excerpts, tables),
            )
        )
        defaults = lists.default.tolist()
        explanations = [
            ExplanationRow(
                NeuronId(layer, index),
                METHOD,
                METHOD,
                version_of(run),
                text_of(own, defaults[index]) if own else _NOTHING,
                data=own,
                parameters={"entries": entries, "default": defaults[index]},
                scores=_scores(by_table, index),
                text_scores=_scores(by_text, index),
            )
            for index, own in enumerate(entries_of(lists))
        ]
        yield _Layer(explanations, by_table, by_text, top)


def _scores(found: list[Agreement], index: int) -> Scores:
    return Scores.of([m for each in found for m in each.measured(index, _MEASURES)])


class Predicted(NamedTuple):
    """Predictions of one split of N neurons, E excerpts each.

    Attributes:
        true, simulated: float32 `[N, E, counted]`; NaN where there is no such excerpt.
        top: bool `[N, E]`, whether it is a top one.
    """

    true: np.ndarray
    simulated: np.ndarray
    top: np.ndarray


def predict_layer(
    run: Run, layer: int, rows: tuple[np.ndarray, ...], split: str = "test"
) -> Predicted:
    """Predict one split of a layer's neurons from the tables, held out from them.

    Args:
        rows: `run.tables.rows(run.excerpts)`.
        split: "test"; or "calibration", from which the test split is held out too.

    Raises:
        RunError: the sweep kept no tables.
    """
    tables = layer_tables(run, layer)
    ids, activations, top = split_excerpts(run, layer, split=split)
    own = ids.shape[1]
    if split != "test":
        tested, tested_acts, _ = split_excerpts(run, layer)
        leave_out_tested(ids, tested)
        ids = np.concatenate([ids, tested], axis=1)
        activations = np.concatenate([activations, tested_acts], axis=1)
    excerpts = HeldOut(ids, activations, *rows, run.skip)
    simulated = predict(run, layer, tables, excerpts, splits=_held(split))
    return Predicted(activations[:, :own, run.skip :], simulated[:, :own, run.skip :], top)


def predict_texts(
    run: Run, layer: int, rows: tuple[np.ndarray, ...], entries: int
) -> list[Predicted]:
    """What the texts of a layer's explanations predict, of the test and the calibration split.

    Texts are chosen again, as they are stored, which have not seen the test split. From the
    calibration split only what is in the test split is left out.

    Raises:
        RunError: the sweep kept no tables.
    """
    tables = layer_tables(run, layer)
    tested, acts, top = split_excerpts(run, layer)
    excerpts = HeldOut(tested, acts, *rows, run.skip)
    lists = shortened(choose(tables, excerpts, second_rows(run.tables), count=entries), entries)
    others, other_acts, other_top = split_excerpts(run, layer, split="calibration")
    leave_out_tested(others, tested)
    return [
        Predicted(
            own.activations[:, :, run.skip :], lists.predict(own, tables)[:, :, run.skip :], tops
        )
        for own, tops in (
            (excerpts, top),
            (HeldOut(others, other_acts, *rows, run.skip), other_top),
        )
    ]


def store_lookup(
    run: Run, progress: Callable[[int], None] | None = None, *, entries: int | None = None
) -> int:
    """Explain every neuron of a run by lookup and store it in the run; returns the neurons.

    Former lookup explanations are replaced.

    Args:
        progress: called with the number of layers done, after each.
        entries: of a list, at most; `lists.ENTRIES` if None.

    Raises:
        UsageError: no list has so many entries.
        RunError: the sweep kept no tables, or the database can't be written.
    """
    count = check_entries(ENTRIES if entries is None else entries)
    neurons, by_table, by_text = 0, Means(), Means()
    with run.database() as database:
        for done, layer in enumerate(_layers(run, count), start=1):
            database.add_explanations(layer.rows)
            site = layer.rows[0].neuron.site if layer.rows else ""
            by_table.add(site, layer.by_table, layer.top)
            by_text.add(site, layer.by_text, layer.top)
            neurons += len(layer.rows)
            if progress is not None:
                progress(done)
        database.add_means(METHOD, CORRELATION, by_table.rows(_MEASURES))
        database.add_means(LIST, CORRELATION, by_text.rows(_MEASURES))
    return neurons


def lookup_is_stored(run: Run, entries: int | None = None) -> bool:
    """Whether `store_lookup` was done, with lists of so many entries (of any length if None).

    Raises RunError if the database can't be read.
    """
    with run.database(read_only=True) as database:
        stored = database.explained(METHOD, version_of(run), entries=entries)
    return stored == run.manifest["sweep"]["neurons"]


def simulate_by_lookup(
    run: Run, record: NeuronRecord, split: str = "test"
) -> dict[int, np.ndarray]:
    """The predictions for one split of a neuron, held out: excerpt id to float32 `[tokens]`.

    From others than the test split that is held out too: what is fitted on them has not seen it.
    """
    neuron = record.id
    one = slice(neuron.index, neuron.index + 1)
    tables = layer_tables(run, neuron.layer, one)
    ids, activations, _ = split_excerpts(run, neuron.layer, one, split)
    wanted = ids[0]
    if split != "test":
        tested, tested_acts, _ = split_excerpts(run, neuron.layer, one)
        leave_out_tested(ids, tested)
        ids = np.concatenate([ids, tested], axis=1)
        activations = np.concatenate([activations, tested_acts], axis=1)
    # The rows of these few excerpts alone, so that places take the part of ids.
    known = np.maximum(ids[0], 0)
    rows = run.tables.rows(run.excerpts_of(known))
    places = np.where(ids >= 0, np.arange(ids.shape[1], dtype=np.int32), np.int32(-1))
    excerpts = HeldOut(places, activations, *rows, run.skip)
    predicted = predict(
        run, neuron.layer, tables, excerpts, neurons=one, splits=_held(split), ids=known
    )
    return {int(i): own for i, own in zip(wanted, predicted[0], strict=False) if i >= 0}


def predict_by_lookup(
    run: Run, layer: int, indices: np.ndarray, excerpts: np.ndarray, activations: np.ndarray
) -> np.ndarray:
    """Predict excerpts, each held out by itself: the tables forget it, and no other.

    Args:
        indices: int `[N]`, neurons of the layer.
        excerpts: int `[N, E]`, for each neuron; -1 for none.
        activations: float32 `[N, E, T]`, the true ones there.

    Returns:
        float32 `[N, E, T]`, NaN where nothing is predicted.

    Raises:
        RunError: the sweep kept no tables.
    """
    span = slice(int(indices.min()), int(indices.max()) + 1)
    tables = layer_tables(run, layer, span)
    own = indices - span.start
    tables = tables._replace(
        token_sums=np.ascontiguousarray(tables.token_sums[:, own]),
        pair_sums=np.ascontiguousarray(tables.pair_sums[:, own]),
        triple_sums=np.ascontiguousarray(tables.triple_sums[:, own]),
        positive_sums=tables.positive_sums[own],
    )
    union = np.unique(excerpts[excerpts >= 0])
    rows = run.tables.rows(run.excerpts[union])
    places = np.where(excerpts >= 0, np.searchsorted(union, excerpts), -1).astype(np.int32)
    predicted = np.full(activations.shape, np.nan, np.float32)
    for place in range(excerpts.shape[1]):
        one = slice(place, place + 1)
        ids, true = (np.ascontiguousarray(x[:, one]) for x in (places, activations))
        held = HeldOut(ids, true, *rows, run.skip)
        predicted[:, one] = predict(run, layer, tables, held, neurons=indices, splits=(), ids=union)
    return predicted


def _held(split: str) -> tuple[str, ...]:
    """The splits that are held out where one is predicted."""
    return (split,) if split == "test" else (split, "test")


def layer_tables(run: Run, layer: int, neurons: slice = slice(None)) -> LookupTables:
    """A layer's tables, for some of its neurons. Raises RunError if the sweep kept none."""
    known = run.tables
    if len(known.tokens) == 0:
        why = "on more text: no token occurs twice in it"
        if run.manifest["settings"]["table_rows"] == 0:
            why = "without `table_bytes=0`"
        raise RunError(
            f"{run.path} has no tables to look up in; sweep again {why}, or name a language model "
            "with `explainer`"
        )
    return LookupTables(
        run.array(layer, "tables.tokens", neurons),
        run.array(layer, "tables.pairs", neurons),
        run.array(layer, "tables.triples", neurons),
        known.token_counts,
        known.pair_counts,
        known.triple_counts,
        run.array(layer, "sums", neurons)[4],
        run.sites[str(layer)].counted_tokens,
    )


def split_excerpts(
    run: Run, layer: int, neurons: slice = slice(None), split: str = "test"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A split's excerpts, top then all random: ids, activations, which are top.

    int32 `[neurons, E]`, float32 `[neurons, E, tokens]`, bool `[neurons, E]`.
    """
    top_ids, random_ids = run.array(layer, "top.ids", neurons), run.array(layer, "random.ids")
    ranks, slots = held_out(top_ids, random_ids, split, every=True)
    top_acts = widen(run.array(layer, "top.activations", neurons))
    random_acts = widen(run.array(layer, "random.activations", neurons)).transpose(2, 0, 1)
    every = np.arange(len(top_ids))[:, None]
    ids = np.concatenate([top_ids[every, ranks], random_ids[slots]], axis=1)
    ids[np.concatenate([ranks, slots], axis=1) < 0] = -1
    activations = np.concatenate([top_acts[every, ranks], random_acts[every, slots]], axis=1)
    top = np.zeros(ids.shape, bool)
    top[:, : ranks.shape[1]] = True
    return ids.astype(np.int32), np.ascontiguousarray(activations, np.float32), top


def leave_out_tested(ids: np.ndarray, tested: np.ndarray) -> None:
    """Make -1 of the excerpts that are of the test split too: what scores isn't what is fitted on.

    Args:
        ids: int32 `[neurons, E]` of another split, changed in place.
        tested: the same of the test split.
    """
    ids[(ids[:, :, None] == tested[:, None, :]).any(axis=2)] = -1
