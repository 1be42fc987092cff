"""What the kernels pass around: plain records of arrays, all on one device.

Letters in shapes are those of `fastexplain.kernels`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from fastexplain.kernels.scalars import BINS, NO_ID, excerpt_hash

_Record = TypeVar("_Record", "Summary", "Batch")

MOMENTS = 5
"""Rows of `Summary.sums`: x, x**2, x**3, x**4 and max(x, 0)."""


@dataclass
class Summary:
    """What a sweep keeps of one layer; a mergeable summary of the excerpts seen.

    Attributes:
        top_keys: float32 `[F, K]`, an exemplar's largest counted activation; -inf where empty.
            While a sweep runs, slot 0 holds the worst and the others are in no order.
        top_ids: int32 `[F, K]`, excerpt ids; `NO_ID` where empty.
        top_acts: `[F, K, T]`, all activations of the exemplar, in the subject's dtype.
        bottom_keys, bottom_ids, bottom_acts: the same by *negated* smallest activation; K is 0
            where the sweep doesn't keep them.
        random_ids: int32 `[R]`, those of the summary's own excerpts with the smallest hash, in that
            order; `NO_ID` where there are fewer.
        random_acts: `[R, T, F]`.
        sums: float64 `[5, F]`, over counted tokens: x, x**2, x**3, x**4, max(x, 0).
        positive: int64 `[F]`, counted tokens with x > 0.
        minimum, maximum: float32 `[F]`.
        histogram: int32 `[F, H]`, excerpts by the bin of their largest activation.
        histogram_ids: int32 `[F, H]`, per bin the excerpt with the smallest hash; else `NO_ID`.
        token_sums, pair_sums: float32 `[V, F]` and `[P, F]`, sums of max(x, 0).
        fault: int32 `[1]`, the id of an excerpt with NaN or infinity, else `NO_ID`.
        seed: of the hash.
    """

    top_keys: Any
    top_ids: Any
    top_acts: Any
    bottom_keys: Any
    bottom_ids: Any
    bottom_acts: Any
    random_ids: Any
    random_acts: Any
    sums: Any
    positive: Any
    minimum: Any
    maximum: Any
    histogram: Any
    histogram_ids: Any
    token_sums: Any
    pair_sums: Any
    fault: Any
    seed: int

    @classmethod
    def empty(
        cls,
        neurons: int,
        tokens: int,
        dtype: np.dtype,
        *,
        top: int,
        bottom: int,
        random_ids: np.ndarray,
        table_rows: tuple[int, int],
        seed: int,
    ) -> Summary:
        """The summary of no excerpts, in host memory.

        Args:
            dtype: of the activations; uint16 for bfloat16.
            random_ids: int32 `[R]`, the excerpts to keep as random, from `smallest_hashes`.
            table_rows: V and P.
        """

        def slots(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            return (
                np.full((neurons, count), -np.inf, np.float32),
                np.full((neurons, count), NO_ID, np.int32),
                np.zeros((neurons, count, tokens), dtype),
            )

        return cls(
            *slots(top),
            *slots(bottom),
            random_ids=random_ids,
            random_acts=np.zeros((len(random_ids), tokens, neurons), dtype),
            sums=np.zeros((MOMENTS, neurons)),
            positive=np.zeros(neurons, np.int64),
            minimum=np.full(neurons, np.inf, np.float32),
            maximum=np.full(neurons, -np.inf, np.float32),
            histogram=np.zeros((neurons, BINS), np.int32),
            histogram_ids=np.full((neurons, BINS), NO_ID, np.int32),
            token_sums=np.zeros((table_rows[0], neurons), np.float32),
            pair_sums=np.zeros((table_rows[1], neurons), np.float32),
            fault=np.full(1, NO_ID, np.int32),
            seed=seed,
        )


@dataclass
class Batch:
    """What all layers share about one batch of excerpts; made once on the host.

    The tables' work is laid out as *runs*: tokens of the batch with the same token row and the
    same pair row, those of one token row next to each other, so that a table row is touched once.

    Attributes:
        ids: int32 `[B]`, excerpt ids.
        random_slots: int32 `[B]`, the slot in `random_acts` that the excerpt fills, else -1.
        skip: first counted token.
        positions: int32, counted tokens of the batch as B * T indices, sorted into runs.
        run_starts: int32 `[runs + 1]`, where each run begins in `positions`.
        run_tokens, run_pairs: int32 `[runs]`, table rows; -1 for a token or pair not in the tables.
    """

    ids: Any
    random_slots: Any
    skip: int
    positions: Any
    run_starts: Any
    run_tokens: Any
    run_pairs: Any

    @classmethod
    def make(
        cls,
        ids: np.ndarray,
        token_rows: np.ndarray,
        pair_rows: np.ndarray,
        *,
        skip: int,
        random_ids: np.ndarray,
    ) -> Batch:
        """Lay out a batch.

        Args:
            ids: int32 `[B]`.
            token_rows, pair_rows: int32 `[B, T]`, the tables' rows, -1 where there is none.
            random_ids: int32 `[R]`, as in the summary.
        """
        counted = np.zeros(token_rows.shape, bool)
        counted[:, skip:] = True
        positions = np.flatnonzero(counted & ((token_rows >= 0) | (pair_rows >= 0)))
        tokens, pairs = token_rows.ravel()[positions], pair_rows.ravel()[positions]
        order = np.lexsort((pairs, tokens))
        positions, tokens, pairs = positions[order], tokens[order], pairs[order]
        changes = (np.diff(tokens) != 0) | (np.diff(pairs) != 0)
        starts = np.concatenate([[0], np.flatnonzero(changes) + 1, [len(positions)]])
        if len(positions) == 0:
            starts = np.zeros(1, np.int64)
        hits = ids[:, None] == random_ids[None, :]
        return cls(
            ids=np.ascontiguousarray(ids, np.int32),
            random_slots=np.where(hits.any(1), hits.argmax(1), -1).astype(np.int32)
            if len(random_ids)
            else np.full(len(ids), -1, np.int32),
            skip=skip,
            positions=positions.astype(np.int32),
            run_starts=starts.astype(np.int32),
            run_tokens=tokens[starts[:-1]].astype(np.int32),
            run_pairs=pairs[starts[:-1]].astype(np.int32),
        )


@dataclass
class Preactivations:
    """What an MLP's elementwise part makes activations of: f(gate), times up where there is one.

    Attributes:
        nonlinearity: f; one of `scalars.NONLINEARITIES`.
        gate: `[B, L, W]`, contiguous, in the dtype of the activations; W >= F. Neuron j's is in
            column `gate_start + j`.
        up: `[B, L, W]`, the same for the factor, or None; may be the gate's own array where both
            come out of one projection.
        gate_start, up_start: the first column of each.
    """

    nonlinearity: str
    gate: Any
    up: Any | None = None
    gate_start: int = 0
    up_start: int = 0


@dataclass
class LookupTables:
    """One layer's tables, as `lookup` needs them.

    Attributes:
        token_sums, pair_sums: float32 `[V, F]`, `[P, F]`.
        token_counts, pair_counts: int64 `[V]`, `[P]`, counted tokens behind each row.
        positive_sums: float64 `[F]`, sums of max(activation, 0) over all counted tokens.
        count: counted tokens.
    """

    token_sums: Any
    pair_sums: Any
    token_counts: Any
    pair_counts: Any
    positive_sums: Any
    count: int


@dataclass
class HeldOut:
    """Per neuron the excerpts to predict, which the tables must forget first.

    Attributes:
        ids: int32 `[F, E]`, rows of `token_rows`; -1 for none. No id twice in a row of it.
        activations: float32 `[F, E, T]`, the true ones.
        token_rows, pair_rows: int32 `[excerpts, T]`, the tables' rows of every excerpt's tokens.
        skip: first counted token.
    """

    ids: Any
    activations: Any
    token_rows: Any
    pair_rows: Any
    skip: int


def moved(record: _Record, move: Callable[[Any], Any]) -> _Record:
    """The record with `move` applied to each of its arrays: to a device, to the host, to views."""
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    arrays = {name: move(value) for name, value in values.items() if np.ndim(value) > 0}
    return dataclasses.replace(record, **arrays)


def smallest_hashes(ids: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The `count` ids with the smallest hash, in that order; int32 `[count]`, padded by `NO_ID`."""
    ids = ids[ids != NO_ID]
    with np.errstate(over="ignore"):
        hashes = excerpt_hash(ids.astype(np.uint64), np.uint64(seed))
    chosen = np.full(count, NO_ID, np.int32)
    order = np.lexsort((ids, hashes))[:count]
    chosen[: len(order)] = ids[order]
    return chosen


def widen(acts: np.ndarray) -> np.ndarray:
    """Host activations of any supported dtype as float32; uint16 means bfloat16."""
    if acts.dtype == np.uint16:
        return (acts.astype(np.uint32) << 16).view(np.float32)
    return acts.astype(np.float32, copy=False)


def narrow(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Host values rounded to a supported dtype, ties to even; undoes `widen`."""
    if dtype != np.uint16:
        return values.astype(dtype)
    bits = values.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)
