"""All neurons at once on a GPU: Numba CUDA.

Counted for 300,000 neurons with 10 excerpts of 64 tokens, on a chip that reads 4 TB/s and issues
9e11 instructions of a warp a second; none of it is measured:
- `discretize`: a block a neuron, threads along its tokens. 0.8 GB in, 0.2 GB out: 0.3 ms.
- `correlate`: a thread a neuron, which adds its tokens up in their order, so that the result does
  not depend on how the device schedules. A neuron's tokens lie side by side, so that 32 threads
  would read from 32 rows at a time: a block copies tiles of 32 neurons by 32 tokens to shared
  memory first, a row of a tile being 128 bytes in one piece. Both arrays, 1.5 GB, are read three
  times, for the means, the products and the absolute deviations: 1.1 ms, and about as long to add.
- `lookup`: a block a neuron, a thread a token. What a neuron's own excerpts put into a token's rows
  is found by comparing it with all tokens of the neuron in shared memory, which takes no array as
  long as the tables: 640 * 640 comparisons of two rows, seven instructions for a warp's 32, 30 ms.
  The tables have neurons side by side, and a block reads an entry of two rows for each token, 32
  bytes for the 4 it wants: 12 GB at most, 3 ms. Threads along the neurons would read no less, for
  each neuron has top excerpts of its own; the random ones, which neurons share, come from the
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

    def each(kernel: Any, name: str, *more: Any) -> Any:
        x, y = getattr(a, name), getattr(b, name)
        result = queue.empty(x.shape, x.dtype)
        flat = (array.reshape(x.size) for array in (x, y, result))
        queue.run(kernel, -(-x.size // _THREADS), _THREADS, *flat, *more)
        return result

    def best(end: str) -> tuple[Any, Any, Any]:
        names = [f"{end}_{what}" for what in ("keys", "ids", "acts")]
        own, other = ([getattr(summary, name) for name in names] for summary in (a, b))
        result = [queue.empty(x.shape, x.dtype) for x in own]
        neurons, slots = result[0].shape
        bits = np.dtype(f"u{result[2].dtype.itemsize}")
        rows = (x[2].view(bits) for x in (own, other, result))
        queue.run(
            _best(slots), neurons if slots else 0, _THREADS,
            own[0], own[1], other[0], other[1], result[0], result[1], *rows,
        )  # fmt: skip
        return tuple(result)

    seed = np.uint64(a.seed)
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
        histogram_ids=each(_smaller_hash, "histogram_ids", seed),
        token_sums=each(_sum, "token_sums"),
        pair_sums=each(_sum, "pair_sums"),
        fault=each(_lesser, "fault"),
        seed=a.seed,
    )


@cuda.jit
def _sum(a, b, result):
    place = cuda.grid(1)
    if place < result.shape[0]:
        result[place] = a[place] + b[place]


@cuda.jit
def _lesser(a, b, result):
    place = cuda.grid(1)
    if place < result.shape[0]:
        result[place] = min(a[place], b[place])


@cuda.jit
def _greater(a, b, result):
    place = cuda.grid(1)
    if place < result.shape[0]:
        result[place] = max(a[place], b[place])


@cuda.jit
def _smaller_hash(a, b, result, seed):
    """Of two ids in each place the one with the smaller hash; any id before an empty place."""
    place = cuda.grid(1)
    if place < result.shape[0]:
        x, y = a[place], b[place]
        other = x == NO_ID or (y != NO_ID and _hash(np.uint64(y), seed) < _hash(np.uint64(x), seed))
        result[place] = y if other else x


@functools.cache
def _best(slots: int) -> Any:
    """The kernel that finds the first K of two sets of K exemplars, in order; `slots` is K.

    Equal exemplars, which are empty slots, keep their order, those of `a` first.
    """

    @cuda.jit
    def best(keys_a, ids_a, keys_b, ids_b, keys, ids, acts_a, acts_b, acts):
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
    """Fill one slot with the random excerpt whose hash has that rank, a block for each token."""
    source = cuda.shared.array(1, int32)
    slot, t, slots = cuda.blockIdx.x, cuda.blockIdx.y, ids.shape[0]
    if cuda.threadIdx.x == 0:
        source[0] = -1
    cuda.syncthreads()
    for place in range(cuda.threadIdx.x, 2 * slots, cuda.blockDim.x):
        excerpt = ids_a[place] if place < slots else ids_b[place - slots]
        if excerpt != NO_ID:
            own = _hash(np.uint64(excerpt), seed)
            rank = 0
            for other_place in range(2 * slots):
                other = ids_a[other_place] if other_place < slots else ids_b[other_place - slots]
                if other != NO_ID:
                    hashed = _hash(np.uint64(other), seed)
                    rank += int(hashed < own or (hashed == own and other < excerpt))
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
        """Copy the tile from token `start` on, of the block's neurons; all threads call it."""
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
        # On lines of their own, by which the simulator tells shared arrays apart.
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
            own_low_x, own_high_x, own_low_y, own_high_y = infinity, -infinity, infinity, -infinity
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
                        own_low_x, own_high_x = min(own_low_x, x), max(own_high_x, x)
                        own_low_y, own_high_y = min(own_low_y, y), max(own_high_y, y)
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
            own = (count, mean_x, mean_y, xx, xy, yy)
            if there:
                # Not by the variance: that of a constant can come out above 0 by rounding.
                varies = own_low_x < own_high_x and own_low_y < own_high_y
                by_excerpt[neuron, excerpt] = _pearson(own) if varies else nan
            if count > 0:
                total = _pooled_moments(total, own)
            low_x, high_x = min(low_x, own_low_x), max(high_x, own_high_x)
            low_y, high_y = min(low_y, own_low_y), max(high_y, own_high_y)
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
def _lookup(own: int) -> Any:
    """The kernel for neurons with `own` tokens each: as many as their excerpts have in all."""
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
        own_tokens = cuda.shared.array(own, int32)
        own_pairs = cuda.shared.array(own, int32)
        own_acts = cuda.shared.array(own, float32)
        neuron, tokens = cuda.blockIdx.x, activations.shape[2]
        for place in range(cuda.threadIdx.x, own, cuda.blockDim.x):
            number, t = place // tokens, place % tokens
            excerpt = ids[neuron, number]
            if excerpt < 0 or t < skip:
                own_tokens[place], own_pairs[place] = _NOT_COUNTED, _NOT_COUNTED
                own_acts[place] = 0.0
                result[neuron, number, t] = nan
            else:
                own_tokens[place] = token_rows[excerpt, t]
                own_pairs[place] = pair_rows[excerpt, t]
                own_acts[place] = max(activations[neuron, number, t], np.float32(0))
        cuda.syncthreads()

        # An unsigned index can't count from the end: seven instructions a comparison, not forty.
        own_sum, own_count, other = 0.0, 0, np.uint64(0)
        while other < np.uint64(own):
            own_sum += own_acts[other]
            own_count += int(own_tokens[other] != _NOT_COUNTED)
            other += np.uint64(1)
        rest = total_count - own_count
        mean = _remaining(positive_sums[neuron], own_sum, rest) / max(rest, 1)

        for place in range(cuda.threadIdx.x, own, cuda.blockDim.x):
            token, pair = own_tokens[place], own_pairs[place]
            if token == _NOT_COUNTED:
                continue
            token_sum, pair_sum, token_count, pair_count = 0.0, 0.0, 0, 0
            other = np.uint64(0)
            while other < np.uint64(own):
                if own_tokens[other] == token:
                    token_sum += own_acts[other]
                    token_count += 1
                if own_pairs[other] == pair:
                    pair_sum += own_acts[other]
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
