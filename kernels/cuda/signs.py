"""`capture_signs` on a GPU: three launches on one stream, after `capture`'s.

1. `fold` reads every activation and its factor. A thread has the neurons of one machine word and a
   chunk of the excerpts. It leaves the chunk's counts and sums in scratch, and marks the excerpts
   that pass a class's gate as it stood before the batch, with their keys.
2. `add_up` adds the chunks' counts and sums in order.
3. `insert`, a block for each class of a neuron, takes the marked excerpts. Past the first batches
   hardly any are marked.

All launches depend on shapes alone, as `capture`'s do.
"""

# mypy: no-check-untyped-defs
# (compiled code has no annotations; Numba infers its types)
from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numba import cuda, float32, float64, int32, uint32

from fastexplain.kernels import scalars
from fastexplain.kernels.cuda.queue import kept_scratch, queue_of, view
from fastexplain.kernels.cuda.words import lane_reader, lanes_of
from fastexplain.kernels.signs import CLASSES, Signs
from fastexplain.kernels.summary import MOST_ON_DEVICE, Batch, Preactivations, moved

_THREADS = 128
"""Threads of a block."""
_INSERT_THREADS = 32
"""The same where a block has one class of a neuron: a warp."""
_WORD_BYTES = 4
"""What a thread loads at once. Its neurons' classes have 40 registers each: two neurons of 16 bits
leave room for as many threads as `capture`'s fold has with four."""
_CHUNK = (4, 32)
"""Fewest and most excerpts of a chunk; 32 is the number of bits of a mark."""
_WANTED_THREADS = 61_000
"""Threads that fill a large GPU once, as in `capture.py`: excerpts are cut by this number."""

_COUNT = len(CLASSES)
_precedes = cuda.jit(device=True)(scalars.precedes)


class _Scratch(NamedTuple):
    """What `fold` leaves for the launches that follow it; C are the chunks.

    Attributes:
        sums: float64 `[C, 2, 4, F]`.
        tokens: int32 `[C, 4, F]`.
        marks: uint32 `[C, 4, F]`, a bit for each excerpt that passed the gate.
        keys: float32 `[B, 4, F]`, written where there is a mark.
    """

    sums: Any
    tokens: Any
    marks: Any
    keys: Any

    @classmethod
    def make(cls, empty: Callable[..., Any], excerpts: int, chunks: int, neurons: int) -> _Scratch:
        """Allocate by `empty(shape, dtype)`."""
        return cls(
            sums=empty((chunks, 2, _COUNT, neurons), np.float64),
            tokens=empty((chunks, _COUNT, neurons), np.int32),
            marks=empty((chunks, _COUNT, neurons), np.uint32),
            keys=empty((excerpts, _COUNT, neurons), np.float32),
        )


def capture_signs(
    acts: Any, batch: Batch, signs: Signs, pre: Preactivations, *, stream: int = 0
) -> None:
    """See `fastexplain.kernels.capture_signs`; devices and streams are as in `capture`."""
    acts, up = view(acts), view(pre.up)
    batch, signs = moved(batch, view), moved(signs, view)
    queue = queue_of(stream)
    launches = _launches(
        acts, batch, signs, up, pre.up_start, functools.partial(kept_scratch, _Scratch)
    )
    for kernel, blocks, threads, arguments in launches:
        kernel[blocks, threads, queue](*arguments)


def _launches(
    acts: Any,
    batch: Batch,
    signs: Signs,
    up: Any,
    up_start: int,
    scratch_of: Callable[..., _Scratch],
) -> Iterator[tuple[Any, Any, Any, tuple[Any, ...]]]:
    """The launches in their order: kernel, blocks, threads a block, arguments."""
    excerpts, length, neurons = acts.shape
    slots, tokens = signs.acts.shape[2:]
    if slots > MOST_ON_DEVICE:
        raise ValueError(f"on a device, a class keeps {MOST_ON_DEVICE} exemplars at most")
    if excerpts == 0:
        return
    lead = length - tokens
    lanes = lanes_of(neurons | up_start, [acts, up], _WORD_BYTES)
    bits, word = (np.dtype(f"u{acts.dtype.itemsize * count}") for count in (1, lanes))
    words = acts.view(word)
    width = words.shape[2]
    chunk = min(max(excerpts * width // _WANTED_THREADS, _CHUNK[0]), _CHUNK[1])
    chunks = -(-excerpts // chunk)
    scratch = scratch_of(excerpts, chunks, neurons)
    yield (
        fold_kernel(acts.dtype.name, lanes), (-(-width // _THREADS), chunks), _THREADS,
        (
            words, up.view(word), up_start // lanes, batch.ids, lead + batch.skip, chunk,
            signs.keys, signs.ids, *scratch,
        ),
    )  # fmt: skip
    yield (
        add_up, (-(-neurons // _THREADS), _COUNT), _THREADS,
        (scratch.sums, scratch.tokens, signs.sums, signs.tokens),
    )  # fmt: skip
    yield (
        insert_kernel(slots, _INSERT_THREADS, bits.itemsize), (neurons, _COUNT), _INSERT_THREADS,
        (
            acts.view(bits), up.view(bits), up_start, batch.ids, lead, chunk,
            scratch.marks, scratch.keys,
            signs.keys, signs.ids, signs.acts.view(bits), signs.ups,
        ),
    )  # fmt: skip


@functools.cache
def fold_kernel(name: str, lanes: int) -> Any:
    """The kernel that parts activations of a dtype into classes, `lanes` of them a word."""
    value_of = lane_reader(name)
    zero = np.float32(0)

    @cuda.jit(device=True)
    def fold_lane(x, factor, lane, parts, largest, counts):
        """Fold one activation into its class, as `cpu.signs._fold_one` does."""
        above = factor > zero
        on = x if above else zero
        off = zero if above else x
        # The second and the third class are below 0, and so are their sums.
        own = max(on, zero), min(off, zero), min(on, zero), max(off, zero)
        for place in range(_COUNT):
            value = own[place]
            parts[lane, 0, place] += value
            parts[lane, 1, place] += value * value
            largest[lane, place] = max(largest[lane, place], abs(value))
        counts[lane, 0] += int32(own[0] > zero)
        counts[lane, 1] += int32(own[1] < zero)
        counts[lane, 2] += int32(above)

    # Not kept on disk, as `capture`'s fold.
    @cuda.jit
    def fold(
        words, up, up_start, ids, first, chunk, keys, kept_ids,
        part_sums, part_tokens, marks, passed_keys,
    ):  # fmt: skip
        """Fold the block's chunk of excerpts; a thread has the `lanes` neurons of one word.

        Letters are those of `Signs`, C is the number of chunks.

        Args:
            words: `[B, L, width]`, words of `lanes` activations.
            up, up_start: the factors in words, `[B, L, w]`, and the first of a row.
            ids, first: int32 `[B]`, and the first position that is counted.
            chunk: int, excerpts of a chunk, 32 at most.
            keys, kept_ids: float32 and int32 `[F, 4, E]`, read only: slot 0 is what an excerpt must
                precede to be marked.
            part_sums and on: those of `_Scratch`, written.
        """
        place = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        if place >= words.shape[2]:
            return
        part = cuda.blockIdx.y
        start = part * chunk
        stop = min(start + chunk, ids.shape[0])
        neuron, length = place * lanes, words.shape[1]
        # On separate lines, by which the simulator tells arrays apart.
        parts = cuda.local.array((lanes, 2, _COUNT), float32)
        totals = cuda.local.array((lanes, 2, _COUNT), float64)
        largest = cuda.local.array((lanes, _COUNT), float32)
        gate = cuda.local.array((lanes, _COUNT), float32)
        mark = cuda.local.array((lanes, _COUNT), uint32)
        counts = cuda.local.array((lanes, 3), int32)
        for lane in range(lanes):
            for kind in range(3):
                counts[lane, kind] = 0
            for own in range(_COUNT):
                gate[lane, own] = keys[neuron + lane, own, 0]
                mark[lane, own] = 0
                for power in range(2):
                    totals[lane, power, own] = 0.0
        for position in range(start, stop):
            for lane in range(lanes):
                for own in range(_COUNT):
                    largest[lane, own] = zero
                    for power in range(2):
                        parts[lane, power, own] = zero
            for t in range(first, length):
                word, factor = words[position, t, place], up[position, t, up_start + place]
                for lane in range(lanes):
                    fold_lane(
                        value_of(word, lane), value_of(factor, lane), lane, parts, largest, counts
                    )
            bit = np.uint32(1) << np.uint32(position - start)
            for lane in range(lanes):
                column = neuron + lane
                for own in range(_COUNT):
                    for power in range(2):
                        totals[lane, power, own] += float64(parts[lane, power, own])
                    key = largest[lane, own]
                    if key > zero and (
                        key > gate[lane, own]
                        or _precedes(key, ids[position], gate[lane, own], kept_ids[column, own, 0])
                    ):
                        mark[lane, own] |= bit
                        passed_keys[position, own, column] = key
        counted = (stop - start) * (length - first)
        for lane in range(lanes):
            column = neuron + lane
            part_tokens[part, 0, column] = counts[lane, 0]
            part_tokens[part, 1, column] = counts[lane, 1]
            part_tokens[part, 2, column] = counts[lane, 2] - counts[lane, 0]
            part_tokens[part, 3, column] = counted - counts[lane, 2] - counts[lane, 1]
            for own in range(_COUNT):
                marks[part, own, column] = mark[lane, own]
                for power in range(2):
                    part_sums[part, power, own, column] = totals[lane, power, own]

    return fold


@cuda.jit(cache=True)
def add_up(part_sums, part_tokens, sums, tokens):
    """Add what the chunks have, in their order: a row of blocks for each class.

    `part_sums` and `part_tokens` are as `fold` leaves them; `sums`, float64 `[2, 4, F]`, and
    `tokens`, int64 `[4, F]`, are changed in place.
    """
    neuron = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if neuron >= tokens.shape[1]:
        return
    place = cuda.blockIdx.y
    count, first, second = 0, 0.0, 0.0
    for part in range(part_tokens.shape[0]):
        count += part_tokens[part, place, neuron]
        first += part_sums[part, 0, place, neuron]
        second += part_sums[part, 1, place, neuron]
    tokens[place, neuron] += count
    sums[0, place, neuron] += first
    sums[1, place, neuron] += second


@functools.cache
def insert_kernel(slots: int, threads: int, itemsize: int) -> Any:
    """The kernel that puts marked excerpts among a class's E best; slot 0 has the worst.

    One thread goes through the marked excerpts in their order, with all keys in shared memory, and
    says which slot one takes; then all copy its activations, side by side along the tokens.
    Activations have `itemsize` bytes.
    """
    least, negative = np.uint32(0), np.uint32(1 << (8 * itemsize - 1))  # the bits of 0 and of -0

    @cuda.jit(device=True)
    def take(key, excerpt, slot_keys, slot_ids):
        """The slot of an excerpt that precedes the worst, else -1.

        What was in that slot, if it is another than 0, is the worst now, and goes to slot 0.
        """
        if not _precedes(key, excerpt, slot_keys[0], slot_ids[0]):
            return -1
        worst, worst_key, worst_id = 0, key, excerpt
        for slot in range(1, slots):
            if _precedes(worst_key, worst_id, slot_keys[slot], slot_ids[slot]):
                worst, worst_key, worst_id = slot, slot_keys[slot], slot_ids[slot]
        slot_keys[0], slot_ids[0] = worst_key, worst_id
        slot_keys[worst], slot_ids[worst] = key, excerpt
        return worst

    @cuda.jit(cache=True)
    def insert(
        acts, up, up_start, ids, lead, chunk, marks, passed_keys, keys, kept_ids, rows, kept_ups
    ):
        """Insert the marked excerpts of one class of one neuron.

        Args:
            acts, up, up_start, lead: bits `[B, L, F]` and `[B, L, W]`, the first column of `up`,
                and L - T.
            ids, chunk: int32 `[B]`, and the excerpts of a chunk.
            marks, passed_keys: as `fold` leaves them.
            keys, kept_ids, rows, kept_ups: those of `Signs`, bits for activations; changed in
                place.
        """
        slot_keys = cuda.shared.array(slots, float32)
        slot_ids = cuda.shared.array(slots, int32)
        part_marks = cuda.shared.array(threads, uint32)
        chosen = cuda.shared.array(1, int32)
        neuron, place, thread = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
        parts, tokens = marks.shape[0], rows.shape[3]
        seen = False
        for start in range(0, parts, threads):
            part = start + thread
            mark = marks[part, place, neuron] if part < parts else np.uint32(0)
            if not cuda.syncthreads_or(int32(mark != 0)):
                continue
            if not seen:
                for slot in range(thread, slots, threads):
                    slot_keys[slot] = keys[neuron, place, slot]
                    slot_ids[slot] = kept_ids[neuron, place, slot]
                seen = True
            part_marks[thread] = mark
            cuda.syncthreads()
            for other in range(min(threads, parts - start)):
                left = part_marks[other]
                while left != 0:
                    position = (start + other) * chunk + cuda.ffs(int32(left)) - 1
                    left &= np.uint32(left - np.uint32(1))
                    if thread == 0:
                        key = passed_keys[position, place, neuron]
                        chosen[0] = take(key, ids[position], slot_keys, slot_ids)
                    cuda.syncthreads()
                    slot = chosen[0]
                    if slot >= 0:
                        # A thread has the same tokens of every slot: none waits for another.
                        for t in range(thread, tokens, threads):
                            rows[neuron, place, 0, t] = rows[neuron, place, slot, t]
                            rows[neuron, place, slot, t] = acts[position, lead + t, neuron]
                        for byte in range(thread, kept_ups.shape[3], threads):
                            packed = 0
                            for t in range(8 * byte, min(8 * byte + 8, tokens)):
                                x = np.uint32(up[position, lead + t, up_start + neuron])
                                packed |= int(x > least and x < negative) << (t - 8 * byte)
                            kept_ups[neuron, place, 0, byte] = kept_ups[neuron, place, slot, byte]
                            kept_ups[neuron, place, slot, byte] = packed
                    cuda.syncthreads()
        if not seen:
            return
        for slot in range(thread, slots, threads):
            keys[neuron, place, slot] = slot_keys[slot]
            kept_ids[neuron, place, slot] = slot_ids[slot]

    return insert
