"""All neurons at once on a GPU: Numba CUDA.

Counted for 300,000 neurons with 10 excerpts of 64 tokens, on a chip that reads 4 TB/s and issues
9e11 instructions of a warp a second; none of it is measured:
- `discretize`: a block a neuron, threads along its tokens. 0.8 GB in, 0.2 GB out: 0.3 ms.
- `correlate`: a thread a neuron, which adds its tokens up in their order, so that the result does
  not depend on how the device schedules. A neuron's tokens lie side by side, so that 32 threads
  would read from 32 rows at a time: a block copies tiles of 32 neurons by 32 tokens to shared
  memory first, a row of a tile being 128 bytes in one piece. Both arrays, 1.5 GB, are read three
  times, for the means, the products and the absolute deviations: 1.1 ms, and about as long to add.
- `lookup`: a block a neuron, a thread a token. What a neuron's excerpts put into a token's rows
  is found by comparing it with all tokens of the neuron in shared memory, which takes no array as
  long as the tables: 640 * 640 comparisons of two rows, seven instructions for a warp's 32, 30 ms.
  The tables have neurons side by side, and a block reads an entry of two rows for each token, 32
  bytes for the 4 it wants: 12 GB at most, 3 ms. Threads along the neurons would read no less, for
  top excerpts differ from neuron to neuron; the random ones, which neurons share, come from the
  second-level cache, since neighbours run at the same time.
- `merge`: bound by memory. A block a neuron ranks the exemplars, each thread one by counting those
  that precede it, and copies their activations side by side.
"""

# mypy: no-check-untyped-defs
# (compiled code has no annotations; Numba infers its types)
from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda, float32, float64, int32

from fastexplain.kernels import scalars
from fastexplain.kernels.cuda.capture import queue_of, view
from fastexplain.kernels.scalars import NO_ID
from fastexplain.kernels.summary import Agreement, HeldOut, LookupTables, Summary, moved

# Numba warns of every launch of fewer than 128 blocks.
warnings.filterwarnings("ignore", "Grid size .* low occupancy")

_THREADS = 128
"""Threads of a block."""
_TILE = 32
"""Threads of a block of `correlate`, which is a warp, and so the sides of its tiles."""
_MOST_TOKENS = 4096
"""Tokens of a neuron that `lookup` takes: at 12 bytes each they fill 48 KB of shared memory, what
every device has for a block."""
_NOT_COUNTED = np.int32(-2)
"""Table row of a token that `lookup` leaves out; -1 is that of one that the tables don't have."""

_precedes = cuda.jit(device=True)(scalars.precedes)
_hash = cuda.jit(device=True)(scalars.excerpt_hash)
_discretize_one = cuda.jit(device=True)(scalars.discretize_one)
_remaining = cuda.jit(device=True)(scalars.remaining)
_token_estimate = cuda.jit(device=True)(scalars.token_estimate)
_pair_estimate = cuda.jit(device=True)(scalars.pair_estimate)
_pooled_moments = cuda.jit(device=True)(scalars.pooled_moments)
_pearson = cuda.jit(device=True)(scalars.pearson)
_line = cuda.jit(device=True)(scalars.line)


class _Queue:
    """Work on one stream, and the arrays that it needs.

    Nothing waits for the device, but Numba does when it frees arrays, ten or more at a time.
    """

    def __init__(self, stream: int) -> None:
        self._stream = queue_of(stream)

    def empty(self, shape: Any, dtype: Any) -> Any:
        return cuda.device_array(shape, dtype, stream=self._stream)

    def run(self, kernel: Any, blocks: Any, threads: int, *arguments: Any) -> None:
        """Launch a kernel, unless there is nothing to do."""
        if np.prod(blocks) > 0:
            kernel[blocks, threads, self._stream](*arguments)


def merge(a: Summary, b: Summary, *, stream: int = 0) -> Summary:
    """See `fastexplain.kernels.merge`."""
    queue = _Queue(stream)
    a, b = moved(a, view), moved(b, view)
    seed = np.uint64(a.seed)

    def each(kernel: Any, name: str) -> Any:
        x, y = getattr(a, name), getattr(b, name)
        result = queue.empty(x.shape, x.dtype)
        flat = (array.reshape(x.size) for array in (x, y, result))
        queue.run(kernel, -(-x.size // _THREADS), _THREADS, *flat, seed)
        return result

    def best(end: str) -> tuple[Any, Any, Any]:
        names = [f"{end}_{what}" for what in ("keys", "ids", "acts")]
        ours, theirs = ([getattr(summary, name) for name in names] for summary in (a, b))
        result = [queue.empty(x.shape, x.dtype) for x in ours]
        neurons, slots = result[0].shape
        bits = np.dtype(f"u{result[2].dtype.itemsize}")
        rows = (x[2].view(bits) for x in (ours, theirs, result))
        queue.run(
            _best(slots), neurons if slots else 0, _THREADS,
            ours[0], ours[1], theirs[0], theirs[1], result[0], result[1], *rows,
        )  # fmt: skip
        return tuple(result)

    bits = np.dtype(f"u{a.random_acts.dtype.itemsize}")
    random_ids = queue.empty(a.random_ids.shape, a.random_ids.dtype)
    random_acts = queue.empty(a.random_acts.shape, a.random_acts.dtype)
    queue.run(
        _random, a.random_acts.shape[:2], _THREADS,
        a.random_ids, b.random_ids, seed, random_ids,
        a.random_acts.view(bits), b.random_acts.view(bits), random_acts.view(bits),
    )  # fmt: skip
    return Summary(
        *best("top"),
        *best("bottom"),
        random_ids=random_ids,
        random_acts=random_acts,
        sums=each(_sum, "sums"),
        positive=each(_sum, "positive"),
        minimum=each(_lesser, "minimum"),
        maximum=each(_greater, "maximum"),
        histogram=each(_sum, "histogram"),
        histogram_ids=each(_smaller_hash, "histogram_ids"),
        token_sums=each(_sum, "token_sums"),
        pair_sums=each(_sum, "pair_sums"),
        fault=each(_lesser, "fault"),
        seed=a.seed,
    )


def _elementwise(name: str, combine: Callable[..., Any]) -> Any:
    """The kernel of that name, which makes one flat array of two, of the same size and dtype."""
    combined = cuda.jit(device=True)(combine)

    def elementwise(a, b, result, seed):
        place = cuda.grid(1)
        if place < result.shape[0]:
            result[place] = combined(a[place], b[place], seed)

    elementwise.__name__ = elementwise.__qualname__ = name
    return cuda.jit(elementwise)


def _of_smaller_hash(x, y, seed):
    """Of two int32 ids the one with the smaller hash; any id before an empty place."""
    other = x == NO_ID or (y != NO_ID and _hash(np.uint64(y), seed) < _hash(np.uint64(x), seed))
    return y if other else x


_sum = _elementwise("_sum", lambda x, y, seed: x + y)
_lesser = _elementwise("_lesser", lambda x, y, seed: min(x, y))
_greater = _elementwise("_greater", lambda x, y, seed: max(x, y))
_smaller_hash = _elementwise("_smaller_hash", _of_smaller_hash)


@functools.cache
def _best(slots: int) -> Any:
    """The kernel that finds the first K of two sets of K exemplars, in order; `slots` is K.

    Equal exemplars, which are empty slots, keep their order, those of `a` first.
    """

    @cuda.jit
    def best(keys_a, ids_a, keys_b, ids_b, keys, ids, acts_a, acts_b, acts):
        """Keys are float32 `[F, K]`, ids int32 `[F, K]`, activations their bits `[F, K, T]`; those
        without a letter are written."""
        sources = cuda.shared.array(slots, int32)
        neuron, tokens = cuda.blockIdx.x, acts.shape[2]
        for place in range(cuda.threadIdx.x, 2 * slots, cuda.blockDim.x):
            if place < slots:
                key, excerpt = keys_a[neuron, place], ids_a[neuron, place]
            else:
                key, excerpt = keys_b[neuron, place - slots], ids_b[neuron, place - slots]
            rank = 0
            for slot in range(slots):
                other_key, other = keys_a[neuron, slot], ids_a[neuron, slot]
                if slot < place:
                    rank += int(not _precedes(key, excerpt, other_key, other))
                else:
                    rank += int(_precedes(other_key, other, key, excerpt))
                other_key, other = keys_b[neuron, slot], ids_b[neuron, slot]
                if slots + slot < place:
                    rank += int(not _precedes(key, excerpt, other_key, other))
                else:
                    rank += int(_precedes(other_key, other, key, excerpt))
            if rank < slots:
                keys[neuron, rank], ids[neuron, rank] = key, excerpt
                sources[rank] = place
        cuda.syncthreads()
        for place in range(cuda.threadIdx.x, slots * tokens, cuda.blockDim.x):
            slot, t = np.uint32(place) // np.uint32(tokens), np.uint32(place) % np.uint32(tokens)
            source = sources[slot]
            if source < slots:
                acts[neuron, slot, t] = acts_a[neuron, source, t]
            else:
                acts[neuron, slot, t] = acts_b[neuron, source - slots, t]

    return best


@cuda.jit
def _random(ids_a, ids_b, seed, ids, acts_a, acts_b, acts):
    """Fill one slot with the random excerpt whose hash has that rank, a block for each token.

    Ids are int32 `[R]`, activations their bits `[R, T, F]`, the seed is a uint64; `ids` and `acts`
    are written.
    """
    source = cuda.shared.array(1, int32)
    slot, t, slots = cuda.blockIdx.x, cuda.blockIdx.y, ids.shape[0]
    if cuda.threadIdx.x == 0:
        source[0] = -1
    cuda.syncthreads()
    for place in range(cuda.threadIdx.x, 2 * slots, cuda.blockDim.x):
        excerpt = ids_a[place] if place < slots else ids_b[place - slots]
        if excerpt != NO_ID:
            hash_here = _hash(np.uint64(excerpt), seed)
            rank = 0
            for other_place in range(2 * slots):
                other = ids_a[other_place] if other_place < slots else ids_b[other_place - slots]
                if other != NO_ID:
                    hashed = _hash(np.uint64(other), seed)
                    rank += int(hashed < hash_here or (hashed == hash_here and other < excerpt))
            if rank == slot:
                source[0] = place
    cuda.syncthreads()
    found = source[0]
    if t == 0 and cuda.threadIdx.x == 0:
        if found < 0:
            ids[slot] = NO_ID
        else:
            ids[slot] = ids_a[found] if found < slots else ids_b[found - slots]
    for neuron in range(cuda.threadIdx.x, acts.shape[2], cuda.blockDim.x):
        if found < 0:
            acts[slot, t, neuron] = 0
        elif found < slots:
            acts[slot, t, neuron] = acts_a[found, t, neuron]
        else:
            acts[slot, t, neuron] = acts_b[found - slots, t, neuron]


@functools.cache
def _reader(name: str) -> Callable[..., Any]:
    """The device function that makes a float64 of an activation of a dtype."""

    def of_float(x):
        return np.float64(x)

    def of_float16(x):
        return np.float64(np.float32(x))

    def of_bfloat16(x):
        return np.float64(np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32))

    readers = {"float16": of_float16, "uint16": of_bfloat16}
    return cuda.jit(device=True)(readers.get(name, of_float))


def discretize(activations: Any, scale: Any, *, stream: int = 0) -> Any:
    """See `fastexplain.kernels.discretize`."""
    queue = _Queue(stream)
    activations, scale = view(activations), view(scale)
    result = queue.empty(activations.shape, np.uint8)
    rows = (activations.shape[0], math.prod(activations.shape[1:]))
    queue.run(
        _discretize(activations.dtype.name), rows[0] if rows[1] else 0, _THREADS,
        activations.reshape(rows), scale, result.reshape(rows),
    )  # fmt: skip
    return result


@functools.cache
def _discretize(name: str) -> Any:
    """The kernel that discretises activations of a dtype."""
    value_of = _reader(name)

    @cuda.jit
    def discretize(activations, scale, result):
        """Discretise `[N, n]` by floating `[N]` into uint8 `[N, n]`."""
        neuron = cuda.blockIdx.x
        limit = np.float64(scale[neuron])
        for place in range(cuda.threadIdx.x, activations.shape[1], cuda.blockDim.x):
            result[neuron, place] = _discretize_one(value_of(activations[neuron, place]), limit)

    return discretize


def correlate(true: Any, simulated: Any, *, stream: int = 0) -> Agreement:
    """See `fastexplain.kernels.correlate`."""
    queue = _Queue(stream)
    true, simulated = (
        x.reshape((x.shape[0], 1, x.shape[1])) if len(x.shape) == 2 else x
        for x in (view(true), view(simulated))
    )
    neurons, excerpts, _ = true.shape
    result = Agreement(
        queue.empty(neurons, np.int64),
        queue.empty(neurons, np.float64),
        queue.empty((neurons, excerpts), np.float64),
        *(queue.empty(neurons, np.float64) for _ in range(4)),
    )
    queue.run(
        _correlate(true.dtype.name, simulated.dtype.name, _TILE), -(-neurons // _TILE), _TILE,
        true, simulated, result.tokens, result.correlation, result.by_excerpt, result.r_squared,
        result.deviation_explained, result.intercept, result.slope,
    )  # fmt: skip
    return result


@functools.cache
def _correlate(name: str, simulated_name: str, side: int) -> Any:
    """The kernel that correlates arrays of two dtypes; `side` is that of its tiles.

    x stands for `true`, y for `simulated`, as in `cpu/neurons.py`.
    """
    value_of, simulated_value_of = _reader(name), _reader(simulated_name)
    nan, infinity = math.nan, math.inf
    # A column more, so that threads that read down a column of the tile find separate banks.
    shape = (side, side + 1)
    tile_types = [float64 if each == "float64" else float32 for each in (name, simulated_name)]
    tile_type, simulated_tile_type = tile_types

    @cuda.jit(device=True)
    def load(true, simulated, excerpt, start, xs, ys):
        """Copy the tile from token `start` on, of the block's neurons; all threads call it.

        `true` and `simulated` are `[N, E, T]`, the tiles `[side, side + 1]` in shared memory.
        """
        thread, first = cuda.threadIdx.x, cuda.blockIdx.x * side
        cuda.syncthreads()
        t = start + thread
        if t < true.shape[2]:
            for row in range(min(side, true.shape[0] - first)):
                xs[row, thread] = value_of(true[first + row, excerpt, t])
                ys[row, thread] = simulated_value_of(simulated[first + row, excerpt, t])
        cuda.syncthreads()

    @cuda.jit
    def correlate(
        true,
        simulated,
        tokens,
        correlation,
        by_excerpt,
        r_squared,
        deviation_explained,
        intercept,
        slope,
    ):
        """Correlate `side` neurons, a thread each, and write an `Agreement`'s arrays.

        Args:
            true, simulated: `[N, E, T]`; 16-bit integers are bfloat16.
            tokens: int64 `[N]`.
            by_excerpt: float64 `[N, E]`.
            correlation, r_squared, deviation_explained, intercept, slope: float64 `[N]`.
        """
        # On separate lines, by which the simulator tells shared arrays apart.
        xs = cuda.shared.array(shape, tile_type)
        ys = cuda.shared.array(shape, simulated_tile_type)
        thread, length = cuda.threadIdx.x, true.shape[2]
        neuron = cuda.blockIdx.x * side + thread
        # Every thread takes part in the copying; past the last neuron it adds up what it finds.
        there = neuron < true.shape[0]
        total = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        squares, distances, deviation = 0.0, 0.0, 0.0
        low_x, high_x, low_y, high_y = infinity, -infinity, infinity, -infinity
        for excerpt in range(true.shape[1]):
            count, sum_x, sum_y = 0.0, 0.0, 0.0
            excerpt_low_x, excerpt_high_x, excerpt_low_y, excerpt_high_y = (
                infinity,
                -infinity,
                infinity,
                -infinity,
            )
            for start in range(0, length, side):
                load(true, simulated, excerpt, start, xs, ys)
                for place in range(min(side, length - start)):
                    x, y = np.float64(xs[thread, place]), np.float64(ys[thread, place])
                    if x == x and y == y:
                        count += 1.0
                        sum_x += x
                        sum_y += y
                        squares += (x - y) * (x - y)
                        distances += abs(x - y)
                        excerpt_low_x, excerpt_high_x = (
                            min(excerpt_low_x, x),
                            max(excerpt_high_x, x),
                        )
                        excerpt_low_y, excerpt_high_y = (
                            min(excerpt_low_y, y),
                            max(excerpt_high_y, y),
                        )
            mean_x, mean_y = sum_x / max(count, 1.0), sum_y / max(count, 1.0)
            xx, xy, yy = 0.0, 0.0, 0.0
            for start in range(0, length, side):
                load(true, simulated, excerpt, start, xs, ys)
                for place in range(min(side, length - start)):
                    x, y = xs[thread, place] - mean_x, ys[thread, place] - mean_y
                    if x == x and y == y:
                        xx += x * x
                        xy += x * y
                        yy += y * y
            moments = (count, mean_x, mean_y, xx, xy, yy)
            if there:
                # Not by the variance: that of a constant can come out above 0 by rounding.
                varies = excerpt_low_x < excerpt_high_x and excerpt_low_y < excerpt_high_y
                by_excerpt[neuron, excerpt] = _pearson(moments) if varies else nan
            if count > 0:
                total = _pooled_moments(total, moments)
            low_x, high_x = min(low_x, excerpt_low_x), max(high_x, excerpt_high_x)
            low_y, high_y = min(low_y, excerpt_low_y), max(high_y, excerpt_high_y)
        for excerpt in range(true.shape[1]):
            for start in range(0, length, side):
                load(true, simulated, excerpt, start, xs, ys)
                for place in range(min(side, length - start)):
                    x, y = xs[thread, place] - total[1], ys[thread, place]
                    if x == x and y == y:
                        deviation += abs(x)
        if there:
            varies_x, varies_y = low_x < high_x, low_y < high_y
            tokens[neuron] = int(total[0])
            correlation[neuron] = _pearson(total) if varies_x and varies_y else nan
            r_squared[neuron] = 1.0 - squares / total[3] if varies_x else nan
            deviation_explained[neuron] = 1.0 - distances / deviation if varies_x else nan
            if varies_y:
                intercept[neuron], slope[neuron] = _line(total, varies_x)
            else:
                intercept[neuron], slope[neuron] = nan, nan

    return correlate


def lookup(tables: LookupTables, excerpts: HeldOut, *, stream: int = 0) -> Any:
    """See `fastexplain.kernels.lookup`."""
    queue = _Queue(stream)
    tables, excerpts = moved(tables, view), moved(excerpts, view)
    neurons, places, tokens = excerpts.activations.shape
    if places * tokens > _MOST_TOKENS:
        raise ValueError(
            f"on a device, lookup takes {_MOST_TOKENS} tokens a neuron at most, not "
            f"{places} excerpts of {tokens}"
        )
    result = queue.empty((neurons, places, tokens), np.float32)
    queue.run(
        _lookup(places * tokens), neurons if places * tokens else 0, _THREADS,
        tables.token_sums, tables.pair_sums, tables.token_counts, tables.pair_counts,
        tables.positive_sums, tables.count, excerpts.ids, excerpts.activations,
        excerpts.token_rows, excerpts.pair_rows, excerpts.skip, result,
    )  # fmt: skip
    return result


@functools.cache
def _lookup(size: int) -> Any:
    """The kernel for neurons with `size` tokens each, as many as their excerpts have in all."""
    nan = np.float32(np.nan)

    @cuda.jit
    def lookup(
        token_sums,
        pair_sums,
        token_counts,
        pair_counts,
        positive_sums,
        total_count,
        ids,
        activations,
        token_rows,
        pair_rows,
        skip,
        result,
    ):
        """Predict one neuron's excerpts from tables that forget them.

        Args:
            token_sums, pair_sums, token_counts, pair_counts, positive_sums, total_count: as in
                `LookupTables`.
            ids, activations, token_rows, pair_rows, skip: as in `HeldOut`.
            result: float32 `[F, E, T]`, written.
        """
        token_of = cuda.shared.array(size, int32)
        pair_of = cuda.shared.array(size, int32)
        acts_of = cuda.shared.array(size, float32)
        neuron, tokens = cuda.blockIdx.x, activations.shape[2]
        for place in range(cuda.threadIdx.x, size, cuda.blockDim.x):
            number, t = place // tokens, place % tokens
            excerpt = ids[neuron, number]
            if excerpt < 0 or t < skip:
                token_of[place], pair_of[place] = _NOT_COUNTED, _NOT_COUNTED
                acts_of[place] = 0.0
                result[neuron, number, t] = nan
            else:
                token_of[place] = token_rows[excerpt, t]
                pair_of[place] = pair_rows[excerpt, t]
                acts_of[place] = max(activations[neuron, number, t], np.float32(0))
        cuda.syncthreads()

        # An unsigned index can't count from the end: seven instructions a comparison, not forty.
        held_out_sum, held_out_count, other = 0.0, 0, np.uint64(0)
        while other < np.uint64(size):
            held_out_sum += acts_of[other]
            held_out_count += int(token_of[other] != _NOT_COUNTED)
            other += np.uint64(1)
        rest = total_count - held_out_count
        mean = _remaining(positive_sums[neuron], held_out_sum, rest) / max(rest, 1)

        for place in range(cuda.threadIdx.x, size, cuda.blockDim.x):
            token, pair = token_of[place], pair_of[place]
            if token == _NOT_COUNTED:
                continue
            token_sum, pair_sum, token_count, pair_count = 0.0, 0.0, 0, 0
            other = np.uint64(0)
            while other < np.uint64(size):
                if token_of[other] == token:
                    token_sum += acts_of[other]
                    token_count += 1
                if pair_of[other] == pair:
                    pair_sum += acts_of[other]
                    pair_count += 1
                other += np.uint64(1)
            estimate = mean
            if token >= 0:
                left = token_counts[token] - token_count
                total = np.float64(token_sums[token, neuron])
                estimate = _token_estimate(_remaining(total, token_sum, left), left, mean)
            if pair >= 0:
                left = pair_counts[pair] - pair_count
                total = np.float64(pair_sums[pair, neuron])
                estimate = _pair_estimate(_remaining(total, pair_sum, left), left, estimate)
            result[neuron, place // tokens, place % tokens] = estimate

    return lookup
