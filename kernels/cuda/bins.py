"""The histogram of a `capture` on a GPU, and the excerpts that its bins keep."""

# mypy: no-check-untyped-defs
# (compiled code has no annotations; Numba infers its types)
from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import cuda, int32, uint8, uint16, uint32, uint64

from fastexplain.kernels import scalars
from fastexplain.kernels.scalars import BINS, NO_ID
from fastexplain.kernels.summary import KEPT_A_BIN

_AHEAD = 16
"""Bins that a thread loads at a time."""

_hash = cuda.jit(device=True)(scalars.excerpt_hash)


@functools.cache
def bins_kernel(neurons: int, threads: int, tile: int) -> Any:
    """The kernel that counts excerpts by bin and keeps those with the smallest hashes of each bin.

    A block has some neurons. It takes the excerpts a tile at a time, in the order of their hashes,
    so that the first few of a bin are the only ones that it may keep: a thread, which has one
    neuron, counts, and notes the first few, without a look at what is kept. Then all threads,
    each of which has some bins, merge what was noted into what is kept. Where each excerpt was
    compared with what is kept as soon as it was read, the threads of a warp went separate ways in
    the middle of `fold` and stayed apart: it ran eight times as long on an H200.

    Args:
        neurons, threads: of a block; there are at least as many threads as neurons.
        tile: excerpts, 256 at most: the number of one is kept in a byte.
    """

    @cuda.jit(device=True)
    def rank(ids, start, count, seed, hashes, order):
        """Put the numbers of a tile's excerpts into `order`, uint8 `[tile]`, by their hashes."""
        thread = cuda.threadIdx.x
        for place in range(thread, count, threads):
            hashes[place] = _hash(np.uint64(ids[start + place]), seed)
        cuda.syncthreads()
        for place in range(thread, count, threads):
            own, before = hashes[place], 0
            for other in range(count):
                before += int32(hashes[other] < own)
            order[before] = place

    @cuda.jit(device=True)
    def note(b, which, column, counts, first):
        """Count an excerpt, and keep its number if it is among the first of its bin.

        `counts` is uint16 `[H, neurons]`, `first` uint32 of the same shape: a byte for each.
        """
        b = min(int32(b), BINS - 1)  # of an excerpt that is not finite none was written
        count = counts[b, column]
        if count < KEPT_A_BIN:
            shift = uint32(8) * uint32(count)
            earlier = first[b, column] if count else uint32(0)
            first[b, column] = earlier | uint32(which) << shift
        counts[b, column] = count + uint16(1)

    @cuda.jit(device=True)
    def merge(count, noted, start, ids, seed, neuron, b, histogram_ids, kept, kept_hashes):
        """Merge the first excerpts of a bin into what it keeps.

        `count` is that of the tile and `noted` their numbers; `kept` and `kept_hashes` are int32
        and uint64 `[D]`, for use here.
        """
        for slot in range(KEPT_A_BIN):
            kept[slot] = histogram_ids[slot, neuron, b]
        for number in range(min(count, KEPT_A_BIN)):
            excerpt = ids[start + int32(noted >> uint32(8 * number) & uint32(0xFF))]
            excerpt_hash = _hash(np.uint64(excerpt), seed)
            last = kept[KEPT_A_BIN - 1]
            if last != NO_ID and excerpt_hash >= _hash(np.uint64(last), seed):
                return  # neither is any that follows it
            if number == 0:
                for slot in range(KEPT_A_BIN):
                    kept_hashes[slot] = _hash(np.uint64(kept[slot]), seed)
            for slot in range(KEPT_A_BIN):
                other, other_hash = kept[slot], kept_hashes[slot]
                if other == NO_ID or excerpt_hash < other_hash:
                    kept[slot], kept_hashes[slot] = excerpt, excerpt_hash
                    excerpt, excerpt_hash = other, other_hash
                histogram_ids[slot, neuron, b] = kept[slot]

    @cuda.jit(cache=True)
    def sort_into_bins(bins, ids, seed, histogram, histogram_ids):
        """Add a batch to the histogram, and to what its bins keep.

        Args:
            bins: uint8 `[B, F]`, as `fold` leaves them.
            ids, seed: int32 `[B]`, and the uint64 of the hash.
            histogram, histogram_ids: int32 `[F, H]` and `[D, F, H]`, changed in place.
        """
        # On separate lines, by which the simulator tells shared arrays apart.
        hashes = cuda.shared.array(tile, uint64)
        order = cuda.shared.array(tile, uint8)
        counts = cuda.shared.array((BINS, neurons), uint16)
        first = cuda.shared.array((BINS, neurons), uint32)
        loaded, numbers = cuda.local.array(_AHEAD, uint8), cuda.local.array(_AHEAD, uint8)
        kept = cuda.local.array(KEPT_A_BIN, int32)
        kept_hashes = cuda.local.array(KEPT_A_BIN, uint64)
        thread, first_neuron = cuda.threadIdx.x, cuda.blockIdx.x * neurons
        here = min(neurons, histogram.shape[0] - first_neuron)
        for start in range(0, bins.shape[0], tile):
            count = min(tile, bins.shape[0] - start)
            for place in range(thread, BINS * neurons, threads):
                counts[place // neurons, place % neurons] = 0
            rank(ids, start, count, seed, hashes, order)
            cuda.syncthreads()
            if thread < here:
                for at in range(0, count, _AHEAD):
                    for ahead in range(_AHEAD):  # not guarded, so that none waits for another
                        numbers[ahead] = order[min(at + ahead, count - 1)]
                        loaded[ahead] = bins[start + numbers[ahead], first_neuron + thread]
                    for ahead in range(_AHEAD):
                        if at + ahead < count:
                            note(loaded[ahead], numbers[ahead], thread, counts, first)
            cuda.syncthreads()
            # Neurons side by side: of one bin most have excerpts, or none has.
            for place in range(thread, BINS * neurons, threads):
                b, column = place // neurons, place % neurons
                found = int32(counts[b, column])
                if found:
                    neuron = first_neuron + column
                    histogram[neuron, b] += found
                    merge(found, first[b, column], start, ids, seed, neuron, b, histogram_ids,
                          kept, kept_hashes)  # fmt: skip
            cuda.syncthreads()

    return sort_into_bins
