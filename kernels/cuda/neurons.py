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
"""

# mypy: no-check-untyped-defs
# (compiled code has no annotations; Numba infers its types)
from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda, float32, float64, int32

from fastexplain.kernels import scalars
from fastexplain.kernels.cuda.merge import merge
from fastexplain.kernels.cuda.queue import Queue, view
from fastexplain.kernels.summary import Agreement, HeldOut, LookupTables, moved

__all__ = ["correlate", "discretize", "lookup", "merge"]

_THREADS = 128
"""Threads of a block."""
_TILE = 32
"""Threads of a block of `correlate`, which is a warp, and so the sides of its tiles."""
_MOST_TOKENS = 3072
"""Tokens of a neuron that `lookup` takes: at 16 bytes each they fill 48 KB of shared memory, what
every device has for a block."""
_NOT_COUNTED = np.int32(-2)
"""Table row of a token that `lookup` leaves out; -1 is that of one that the tables don't have."""

_discretize_one = cuda.jit(device=True)(scalars.discretize_one)
_counted = cuda.jit(device=True)(scalars.counted)
_remaining = cuda.jit(device=True)(scalars.remaining)
_token_estimate = cuda.jit(device=True)(scalars.token_estimate)
_pair_estimate = cuda.jit(device=True)(scalars.pair_estimate)
_pooled_moments = cuda.jit(device=True)(scalars.pooled_moments)
_pearson = cuda.jit(device=True)(scalars.pearson)
_line = cuda.jit(device=True)(scalars.line)


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
    queue = Queue(stream)
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
    queue = Queue(stream)
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
        true, simulated, *result,
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
        true, simulated,
        tokens, correlation, by_excerpt, r_squared, deviation_explained, intercept, slope,
    ):  # fmt: skip
        """Correlate `side` neurons, a thread each, and write an `Agreement`'s arrays.

        `true` and `simulated` are `[N, E, T]`; 16-bit integers are bfloat16.
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
            excerpt_low_x, excerpt_high_x = infinity, -infinity
            excerpt_low_y, excerpt_high_y = infinity, -infinity
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
                        excerpt_low_x = min(excerpt_low_x, x)
                        excerpt_high_x = max(excerpt_high_x, x)
                        excerpt_low_y = min(excerpt_low_y, y)
                        excerpt_high_y = max(excerpt_high_y, y)
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


def lookup(
    tables: LookupTables, excerpts: HeldOut, signed: bool = False, *, stream: int = 0
) -> Any:
    """See `fastexplain.kernels.lookup`."""
    queue = Queue(stream)
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
        tables, excerpts, signed, result,
    )  # fmt: skip
    return result


@functools.cache
def _lookup(size: int) -> Any:
    """The kernel for neurons with `size` tokens each, as many as their excerpts have in all."""
    nan = np.float32(np.nan)

    @cuda.jit
    def lookup(tables, excerpts, signed, result):
        """Predict one neuron's excerpts from tables that forget them.

        `tables` and `excerpts` are `LookupTables` and `HeldOut`, `signed` a bool; `result`, float32
        `[F, E, T]`, is written.
        """
        token_counts, pair_counts = tables.token_counts, tables.pair_counts
        triple_counts = tables.triple_counts
        ids, activations, skip = excerpts.ids, excerpts.activations, excerpts.skip
        token_of = cuda.shared.array(size, int32)
        pair_of = cuda.shared.array(size, int32)
        triple_of = cuda.shared.array(size, int32)
        acts_of = cuda.shared.array(size, float32)
        neuron, tokens = cuda.blockIdx.x, activations.shape[2]
        for place in range(cuda.threadIdx.x, size, cuda.blockDim.x):
            number, t = place // tokens, place % tokens
            excerpt = ids[neuron, number]
            if excerpt < 0 or t < skip:
                token_of[place], pair_of[place] = _NOT_COUNTED, _NOT_COUNTED
                triple_of[place] = _NOT_COUNTED
                acts_of[place] = 0.0
                result[neuron, number, t] = nan
            else:
                token_of[place] = excerpts.token_rows[excerpt, t]
                pair_of[place] = excerpts.pair_rows[excerpt, t]
                triple_of[place] = excerpts.triple_rows[excerpt, t]
                acts_of[place] = _counted(activations[neuron, number, t], signed)
        cuda.syncthreads()

        # An unsigned index can't count from the end: seven instructions a comparison, not forty.
        held_out_sum, held_out_count, other = 0.0, 0, np.uint64(0)
        while other < np.uint64(size):
            held_out_sum += acts_of[other]
            held_out_count += int(token_of[other] != _NOT_COUNTED)
            other += np.uint64(1)
        rest = tables.count - held_out_count
        mean = _remaining(tables.positive_sums[neuron], held_out_sum, rest, signed) / max(rest, 1)

        for place in range(cuda.threadIdx.x, size, cuda.blockDim.x):
            token, pair, triple = token_of[place], pair_of[place], triple_of[place]
            if token == _NOT_COUNTED:
                continue
            token_sum, pair_sum, token_count, pair_count = 0.0, 0.0, 0, 0
            triple_sum, triple_count = 0.0, 0
            other = np.uint64(0)
            while other < np.uint64(size):
                if token_of[other] == token:
                    token_sum += acts_of[other]
                    token_count += 1
                if pair_of[other] == pair:
                    pair_sum += acts_of[other]
                    pair_count += 1
                if triple_of[other] == triple:
                    triple_sum += acts_of[other]
                    triple_count += 1
                other += np.uint64(1)
            estimate = mean
            if token >= 0:
                left = token_counts[token] - token_count
                total = np.float64(tables.token_sums[token, neuron])
                estimate = _token_estimate(_remaining(total, token_sum, left, signed), left, mean)
            if pair >= 0:
                left = pair_counts[pair] - pair_count
                total = np.float64(tables.pair_sums[pair, neuron])
                estimate = _pair_estimate(_remaining(total, pair_sum, left, signed), left, estimate)
            if triple >= 0:
                left = triple_counts[triple] - triple_count
                total = np.float64(tables.triple_sums[triple, neuron])
                estimate = _pair_estimate(
                    _remaining(total, triple_sum, left, signed), left, estimate
                )
            result[neuron, place // tokens, place % tokens] = estimate

    return lookup
