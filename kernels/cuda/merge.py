"""`merge` on a GPU: bound by memory.

A block a neuron ranks the exemplars, each thread one by counting those that precede it, and copies
their activations side by side.
"""

# mypy: no-check-untyped-defs
# (compiled code has no annotations; Numba infers its types)
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda, int32

from fastexplain.kernels import scalars
from fastexplain.kernels.cuda.queue import Queue, view
from fastexplain.kernels.scalars import NO_ID
from fastexplain.kernels.summary import Summary, moved

_THREADS = 128
"""Threads of a block."""

_precedes = cuda.jit(device=True)(scalars.precedes)
_hash = cuda.jit(device=True)(scalars.excerpt_hash)


@cuda.jit(device=True)
def _hash_precedes(x, y, seed):
    """Whether int32 id x has a smaller hash than y; every id comes before an empty place."""
    return x != NO_ID and (y == NO_ID or _hash(np.uint64(x), seed) < _hash(np.uint64(y), seed))


def merge(a: Summary, b: Summary, *, stream: int = 0) -> Summary:
    """See `fastexplain.kernels.merge`."""
    queue = Queue(stream)
    a, b = moved(a, view), moved(b, view)
    seed = np.uint64(a.seed)

    def each(kernel: Any, name: str) -> Any:
        x, y = getattr(a, name), getattr(b, name)
        result = queue.empty(x.shape, x.dtype)
        flat = (array.reshape(x.size) for array in (x, y, result))
        queue.run(kernel, -(-x.size // _THREADS), _THREADS, *flat, seed)
        return result

    def smallest(name: str) -> Any:
        x, y = getattr(a, name), getattr(b, name)
        result = queue.empty(x.shape, x.dtype)
        bins = x.shape[1] * x.shape[2]
        flat = (array.reshape((len(x), bins)) for array in (x, y, result))
        queue.run(_smallest, -(-bins // _THREADS), _THREADS, *flat, seed)
        return result

    def best(end: str) -> tuple[Any, Any, Any]:
        names = [f"{end}_{what}" for what in ("keys", "ids", "acts")]
        ours, theirs = ([getattr(summary, name) for name in names] for summary in (a, b))
        result = [queue.empty(x.shape, x.dtype) for x in ours]
        neurons, slots = result[0].shape
        bits = np.dtype(f"u{result[2].dtype.itemsize}")
        sets = ((keys, ids, acts.view(bits)) for keys, ids, acts in (ours, theirs, result))
        queue.run(_best(slots), neurons if slots else 0, _THREADS, *sets)
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
        histogram_ids=smallest("histogram_ids"),
        token_sums=each(_sum, "token_sums"),
        pair_sums=each(_sum, "pair_sums"),
        triple_sums=each(_sum, "triple_sums"),
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


_sum = _elementwise("_sum", lambda x, y, seed: x + y)
_lesser = _elementwise("_lesser", lambda x, y, seed: min(x, y))
_greater = _elementwise("_greater", lambda x, y, seed: max(x, y))


@cuda.jit
def _smallest(a, b, result, seed):
    """Of two bins' excerpts those with the smallest hashes, a thread a bin.

    Ids are int32 `[D, F * H]`, each bin's in the order of their hashes; `result` is written.
    """
    place = cuda.grid(1)
    if place >= result.shape[1]:
        return
    ours, theirs = 0, 0
    for slot in range(result.shape[0]):
        if _hash_precedes(b[theirs, place], a[ours, place], seed):
            result[slot, place] = b[theirs, place]
            theirs += 1
        else:
            result[slot, place] = a[ours, place]
            ours += 1


@functools.cache
def _best(slots: int) -> Any:
    """The kernel that finds the first K of two sets of K exemplars, in order; `slots` is K.

    Equal exemplars, which are empty slots, keep their order, those of `a` first.
    """

    @cuda.jit(device=True)
    def candidate(a, b, neuron, place):
        """Key and id of one of the 2 K."""
        if place < slots:
            return a[0][neuron, place], a[1][neuron, place]
        return b[0][neuron, place - slots], b[1][neuron, place - slots]

    @cuda.jit
    def best(a, b, result):
        """Each is keys, float32 `[F, K]`, ids, int32 `[F, K]`, and activations' bits `[F, K, T]`;
        `result` is written."""
        sources = cuda.shared.array(slots, int32)
        acts_a, acts_b, acts = a[2], b[2], result[2]
        neuron, tokens = cuda.blockIdx.x, acts.shape[2]
        for place in range(cuda.threadIdx.x, 2 * slots, cuda.blockDim.x):
            key, excerpt = candidate(a, b, neuron, place)
            rank = 0
            for other in range(2 * slots):
                other_key, other_id = candidate(a, b, neuron, other)
                if other < place:
                    rank += int(not _precedes(key, excerpt, other_key, other_id))
                else:
                    rank += int(_precedes(other_key, other_id, key, excerpt))
            if rank < slots:
                result[0][neuron, rank], result[1][neuron, rank] = key, excerpt
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
        rank = 0
        for other in range(slots):
            rank += int(_hash_precedes(ids_a[other], excerpt, seed))
            rank += int(_hash_precedes(ids_b[other], excerpt, seed))
        if rank == slot and excerpt != NO_ID:
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
