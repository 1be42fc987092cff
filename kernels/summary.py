"""What the kernels pass around: plain records of arrays, all on one device.

They are named tuples, which compiled code takes whole. Letters in shapes are those of
`fastexplain.kernels`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np

from fastexplain.kernels.scalars import BINS, NO_ID, excerpt_hash

_Record = TypeVar("_Record", bound=tuple[Any, ...])

MOMENTS = 5
"""Rows of `Summary.sums`: x, x**2, x**3, x**4 and max(x, 0)."""

KEPT_A_BIN = 4
"""Excerpts that a bin of the histogram keeps: with 96 bins 1.5 KB a neuron."""

MOST_ON_DEVICE = 2048
"""Top exemplars a neuron that a GPU's `capture` keeps: their keys lie in shared memory."""


class Summary(NamedTuple):
    """What a sweep keeps of one layer; a mergeable summary of the excerpts seen.

    Attributes:
        top_keys: float32 `[F, K]`, an exemplar's largest counted activation; -inf where empty.
            While a sweep runs, slot 0 holds the worst and the others are in no order.
        top_ids: int32 `[F, K]`, excerpt ids; `NO_ID` where empty.
        top_acts: `[F, K, T]`, all activations of the exemplar, in the subject's dtype.
        bottom_keys, bottom_ids, bottom_acts: the same by *negated* smallest activation; K is 0
            where the sweep doesn't keep them.
        random_ids: int32 `[R]`, those of the summary's excerpts with the smallest hash, in that
            order; `NO_ID` where there are fewer.
        random_acts: `[R, T, F]`.
        sums: float64 `[5, F]`, over counted tokens: x, x**2, x**3, x**4, max(x, 0).
        positive: int64 `[F]`, counted tokens with x > 0.
        minimum, maximum: float32 `[F]`.
        histogram: int32 `[F, H]`, excerpts by the bin of their largest activation.
        histogram_ids: int32 `[D, F, H]`, per bin its excerpts with the smallest hashes, in that
            order; `NO_ID` where it has fewer.
        token_sums, pair_sums, triple_sums: float32 `[V, F]`, `[P, F]` and `[Q, F]`, sums of
            max(x, 0). A sweep has its situations' rows behind those of the pairs, and behind these
            its sums for a regression, which no kernel adds to: P counts all three.
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
    triple_sums: Any
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
        table_rows: tuple[int, int, int],
        seed: int,
    ) -> Summary:
        """The summary of no excerpts, in host memory.

        Args:
            dtype: of the activations; uint16 for bfloat16.
            random_ids: int32 `[R]`, the excerpts to keep as random, from `smallest_hashes`.
            table_rows: V, P and Q.
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
            histogram_ids=np.full((KEPT_A_BIN, neurons, BINS), NO_ID, np.int32),
            token_sums=np.zeros((table_rows[0], neurons), np.float32),
            pair_sums=np.zeros((table_rows[1], neurons), np.float32),
            triple_sums=np.zeros((table_rows[2], neurons), np.float32),
            fault=np.full(1, NO_ID, np.int32),
            seed=seed,
        )

    @property
    def table_rows(self) -> tuple[int, int, int]:
        """V, P and Q."""
        return len(self.token_sums), len(self.pair_sums), len(self.triple_sums)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays together."""
        return sum(value.nbytes for value in self if hasattr(value, "nbytes"))


class Batch(NamedTuple):
    """What all layers share about one batch of excerpts; made once on the host.

    The tables' work is laid out as *segments*: the counted tokens of the batch that belong to one
    table row, so that a row is touched once. Shapes depend on the batch's and the tables' size
    alone, not on the text, so that a batch can take another's place in a CUDA graph.

    Attributes:
        ids: int32 `[B]`, excerpt ids.
        random_slots: int32 `[B]`, the slot in `random_acts` that the excerpt fills, else -1.
        skip: first counted token.
        positions: int32 `[N]`, counted tokens of the batch as B * T indices, segment by segment; a
            token is in its token's, in its pair's, in its triple's, and in one for each of its
            situations. N is B T times the most segments that a token can be in; the tail is not
            used.
        segment_starts: int32 `[S + 1]`, where each segment begins in `positions`; the longest come
            first, those at the end may be empty. S = min(V + P + Q, N).
        segment_rows: int32 `[S]`, table rows: the V tokens', then the P pairs', then the Q
            triples'.
    """

    ids: Any
    random_slots: Any
    skip: int
    positions: Any
    segment_starts: Any
    segment_rows: Any

    @classmethod
    def make(
        cls,
        ids: np.ndarray,
        token_rows: np.ndarray,
        pair_rows: np.ndarray,
        triple_rows: np.ndarray,
        *,
        skip: int,
        random_ids: np.ndarray,
        table_rows: tuple[int, int, int],
        situation_rows: np.ndarray | None = None,
    ) -> Batch:
        """Lay out a batch.

        Args:
            ids: int32 `[B]`.
            token_rows, pair_rows, triple_rows: int32 `[B, T]`, the tables' rows, -1 where there is
                none.
            situation_rows: int32 `[B, T, aspects]`, rows of the pairs' table too, behind theirs.
            random_ids: int32 `[R]`, as in the summary.
            table_rows: V, P and Q.

        Raises:
            ValueError: shapes do not fit together, or an id or a row is none.
        """
        in_range("ids", ids, 0, int(NO_ID))
        named = {"token_rows": token_rows, "pair_rows": pair_rows, "triple_rows": triple_rows}
        families, before = [], 0
        for (name, rows), count in zip(named.items(), table_rows, strict=True):
            in_range(name, rows, -1, count)
            if rows.shape != (*ids.shape, *token_rows.shape[1:2]):
                raise ValueError(
                    f"{name} is {list(rows.shape)}, for ids {list(ids.shape)} and token_rows "
                    f"{list(token_rows.shape)}: the arrays do not fit together"
                )
            families.append(np.where(rows >= 0, rows + before, -1))
            before += count
        if situation_rows is not None:
            in_range("situation_rows", situation_rows, -1, table_rows[1])
            shifted = np.where(situation_rows >= 0, situation_rows + table_rows[0], -1)
            families.extend(np.moveaxis(shifted, 2, 0))
        place = np.arange(token_rows.size, dtype=np.int32).reshape(token_rows.shape)[:, skip:]
        rows = np.concatenate([own[:, skip:].ravel() for own in families])
        known = np.flatnonzero(rows >= 0)
        # Of 16 bits NumPy sorts by their digits, four times as fast.
        digits = np.uint16 if sum(table_rows) <= 2**16 else rows.dtype
        order = known[np.argsort(rows[known].astype(digits), kind="stable")]
        positions = np.zeros(len(families) * token_rows.size, np.int32)
        sizes = np.bincount(rows[known], minlength=1)
        filled_rows = np.flatnonzero(sizes)
        sizes = sizes[filled_rows]
        longest = np.argsort(-sizes, kind="stable")
        starts = np.cumsum(sizes) - sizes

        segments = min(sum(table_rows), len(positions))
        segment_rows = np.full(segments, -1, np.int32)
        segment_rows[: len(longest)] = filled_rows[longest]
        segment_starts = np.full(segments + 1, len(order), np.int32)
        segment_starts[0] = 0
        segment_starts[1 : len(longest) + 1] = np.cumsum(sizes[longest])
        # The sorted positions again, segment by segment in their new order.
        moves = np.repeat(starts[longest] - segment_starts[: len(longest)], sizes[longest])
        repeated = np.tile(place.ravel(), len(families))
        positions[: len(order)] = repeated[order[np.arange(len(order)) + moves]]

        hits = ids[:, None] == random_ids[None, :]
        return cls(
            ids=np.ascontiguousarray(ids, np.int32),
            random_slots=np.where(hits.any(1), hits.argmax(1), -1).astype(np.int32)
            if len(random_ids)
            else np.full(len(ids), -1, np.int32),
            skip=skip,
            positions=positions,
            segment_starts=segment_starts,
            segment_rows=segment_rows,
        )


class Preactivations(NamedTuple):
    """What an MLP's elementwise part makes activations of: f(gate), times up where there is one.

    Attributes:
        nonlinearity: f; one of `scalars.NONLINEARITIES`.
        gate: `[B, L, W]`, contiguous, in the dtype of the activations; W >= F. Neuron j's is in
            column `gate_start + j`.
        up: `[B, L, W]`, the same for the factor, or None; may be the gate's array where both
            come out of one projection.
        gate_start, up_start: the first column of each.
    """

    nonlinearity: str
    gate: Any
    up: Any | None = None
    gate_start: int = 0
    up_start: int = 0


class LookupTables(NamedTuple):
    """One layer's tables, as `lookup` needs them.

    Attributes:
        token_sums, pair_sums, triple_sums: float32 `[V, F]`, `[P, F]`, `[Q, F]`.
        token_counts, pair_counts, triple_counts: int64 `[V]`, `[P]`, `[Q]`, counted tokens behind
            each row.
        positive_sums: float64 `[F]`, sums of max(activation, 0) over all counted tokens.
        count: counted tokens.
    """

    token_sums: Any
    pair_sums: Any
    triple_sums: Any
    token_counts: Any
    pair_counts: Any
    triple_counts: Any
    positive_sums: Any
    count: int  # type: ignore[assignment]  # a tuple's method of that name is not used


class HeldOut(NamedTuple):
    """Per neuron the excerpts to predict, which the tables must forget first.

    Attributes:
        ids: int32 `[F, E]`, rows of `token_rows`; -1 for none. No id twice in a row of it.
        activations: float32 `[F, E, T]`, the true ones.
        token_rows, pair_rows, triple_rows: int32 `[excerpts, T]`, the tables' rows of every
            excerpt's tokens.
        skip: first counted token.
    """

    ids: Any
    activations: Any
    token_rows: Any
    pair_rows: Any
    triple_rows: Any
    skip: int


class Agreement(NamedTuple):
    """How well simulated activations s follow the true ones t, N neurons with E excerpts each.

    All but `by_excerpt` is over the tokens of a neuron's excerpts pooled together. Sums run over
    the tokens at which both are known. A value is NaN where it is undefined.

    Attributes:
        tokens: int64 `[N]`, tokens at which both are known.
        correlation: float64 `[N]`, Pearson's. Undefined with fewer than two tokens, or where t or s
            does not vary.
        by_excerpt: float64 `[N, E]`, the same over the tokens of each excerpt alone.
        r_squared: float64 `[N]`, 1 - sum (t - s)**2 / sum (t - mean t)**2; 1 at best, below 0 where
            the mean of t predicts better. Undefined with fewer than two tokens, or where t does not
            vary.
        deviation_explained: float64 `[N]`, 1 - sum |t - s| / sum |t - mean t|; undefined as
            `r_squared`. It is the absolute deviation explained of Bills et al. 2023, whose code
            measures both from 0 in place of the mean.
        intercept, slope: float64 `[N]`, of the least-squares line of t on s. Undefined with fewer
            than two tokens, or where s does not vary.
    """

    tokens: Any
    correlation: Any
    by_excerpt: Any
    r_squared: Any
    deviation_explained: Any
    intercept: Any
    slope: Any


def in_range(name: str, values: np.ndarray, least: int, end: int) -> None:
    """Raise ValueError unless all values, signed integers, are from `least` to `end` - 1."""
    # As unsigned numbers those below are the largest: one pass.
    shifted = (values - values.dtype.type(least)).view(f"u{values.dtype.itemsize}")
    if values.size and shifted.max() >= end - least:
        raise ValueError(
            f"{name} has values from {values.min()} to {values.max()}; expected {least} to "
            f"{end - 1}"
        )


def moved(record: _Record, move: Callable[[Any], Any]) -> _Record:
    """The record with `move` applied to each of its arrays: to a device, to the host, to views."""
    values: tuple[Any, ...] = record
    return type(record)(*(move(value) if np.ndim(value) > 0 else value for value in values))


def smallest_hashes(ids: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Of int32 `[n]` ids the `count` with the smallest hash, in that order; padded by `NO_ID`."""
    ids = ids[ids != NO_ID]
    with np.errstate(over="ignore"):
        hashes = excerpt_hash(ids.astype(np.uint64), np.uint64(seed))
    chosen = np.full(count, NO_ID, np.int32)
    order = np.lexsort((ids, hashes))[:count]
    chosen[: len(order)] = ids[order]
    return chosen


def widen(acts: np.ndarray) -> np.ndarray:
    """Host activations of any shape and supported dtype as float32; uint16 means bfloat16."""
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
