"""What follows `fold` in a `capture` on a GPU: sums, exemplars, random excerpts, tables."""

# mypy: no-check-untyped-defs
# (compiled code has no annotations; Numba infers its types)
from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import cuda, float32, int32, uint32

from fastexplain.kernels import scalars
from fastexplain.kernels.cuda.fold import LOADS
from fastexplain.kernels.cuda.words import lane_reader, word_type_of

_ROWS_AHEAD = 4
"""Exemplars that a thread of `insert` copies at a time: loads that it has in flight."""

_precedes = cuda.jit(device=True)(scalars.precedes)


@cuda.jit(cache=True)
def add_up(
    part_powers, part_positive, part_minimum, part_maximum, sums, positive, minimum, maximum
):
    """Add what the chunks have, in their order: a row of blocks per power, one for the rest.

    Args:
        part_powers, part_positive, part_minimum, part_maximum: as `fold` leaves them.
        sums, positive, minimum, maximum: float64 `[5, F]`, int64, float32 and float32 `[F]`,
            changed in place.
    """
    neuron = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if neuron >= sums.shape[1]:
        return
    power = cuda.blockIdx.y
    if power < sums.shape[0]:
        total = 0.0
        for part in range(part_powers.shape[0]):
            total += part_powers[part, power, neuron]
        sums[power, neuron] += total
        return
    count, low, high = 0, minimum[neuron], maximum[neuron]
    for part in range(part_positive.shape[0]):
        count += part_positive[part, neuron]
        low = min(low, part_minimum[part, neuron])
        high = max(high, part_maximum[part, neuron])
    positive[neuron] += count
    minimum[neuron], maximum[neuron] = low, high


@functools.cache
def insert_kernel(slots: int, threads: int) -> Any:
    """The kernel that puts a neuron's marked excerpts among its K best; slot 0 has the worst.

    A block has one neuron, and `slots` is K. Its threads fetch marks and keys side by side; one of
    them goes through these in the excerpts' order, with all keys in shared memory, and leaves for
    each slot where its activations come from; then all copy what is new, side by side along the
    tokens. What waits for memory so is a handful of rounds, however many excerpts are taken.
    """
    ahead, word_bits = _ROWS_AHEAD, 32
    keep, first_old = -1, -2
    width = threads * word_bits

    @cuda.jit(device=True)
    def take(key, excerpt, position, slot_keys, slot_ids, sources):
        """Put one excerpt in the worst one's place, if it precedes it, and find the next worst.

        `key` is a float32, `excerpt` and `position` int32, and the arrays, float32, int32 and int32
        `[K]`, lie in shared memory.
        """
        if not _precedes(key, excerpt, slot_keys[0], slot_ids[0]):
            return
        worst, worst_key, worst_id = 0, key, excerpt
        for slot in range(1, slots):
            other_key, other_id = slot_keys[slot], slot_ids[slot]
            if _precedes(worst_key, worst_id, other_key, other_id):
                worst, worst_key, worst_id = slot, other_key, other_id
        if worst > 0:
            slot_keys[0], slot_ids[0] = worst_key, worst_id
            source = sources[worst]
            sources[0] = source if source != keep else first_old - worst
        slot_keys[worst], slot_ids[worst], sources[worst] = key, excerpt, position

    @cuda.jit(cache=True)
    def insert(acts, ids, lead, chunk, marks, passed_keys, keys, kept_ids, rows):
        """Insert a neuron's marked excerpts.

        Args:
            acts, lead: the activations' bits `[B, L, F]`, and L - T.
            ids, chunk: int32 `[B]`, and the excerpts of a chunk.
            marks, passed_keys: uint32 `[C, F]` and float32 `[B, F]`, as `fold` leaves them.
            keys, kept_ids, rows: float32 `[F, K]`, int32 `[F, K]` and bits `[F, K, T]`, changed in
                place.
        """
        # On separate lines, by which the simulator tells shared arrays apart.
        slot_keys = cuda.shared.array(slots, float32)
        slot_ids = cuda.shared.array(slots, int32)
        sources = cuda.shared.array(slots, int32)
        part_marks = cuda.shared.array(threads, uint32)
        new_keys = cuda.shared.array(width, float32)
        new_ids = cuda.shared.array(width, int32)
        values = cuda.local.array(ahead, acts.dtype)
        neuron, thread = cuda.blockIdx.x, cuda.threadIdx.x
        parts, tokens = marks.shape[0], rows.shape[2]
        seen = False
        for start in range(0, parts, threads):
            part = start + thread
            mark = marks[part, neuron] if part < parts else np.uint32(0)
            if not cuda.syncthreads_or(int32(mark != 0)):
                continue
            if not seen:
                for slot in range(thread, slots, threads):
                    slot_keys[slot], slot_ids[slot] = keys[neuron, slot], kept_ids[neuron, slot]
                    sources[slot] = keep
                seen = True
            part_marks[thread] = mark
            while mark != 0:
                bit = cuda.ffs(int32(mark)) - 1
                position = part * chunk + bit
                new_keys[thread * word_bits + bit] = passed_keys[position, neuron]
                new_ids[thread * word_bits + bit] = ids[position]
                mark &= np.uint32(mark - np.uint32(1))
            cuda.syncthreads()
            if thread == 0:
                for other in range(min(threads, parts - start)):
                    mark = part_marks[other]
                    while mark != 0:
                        bit = cuda.ffs(int32(mark)) - 1
                        place = other * word_bits + bit
                        position = (start + other) * chunk + bit
                        take(new_keys[place], new_ids[place], position,
                             slot_keys, slot_ids, sources)  # fmt: skip
                        mark &= np.uint32(mark - np.uint32(1))
            cuda.syncthreads()
        if not seen:
            return

        for slot in range(thread, slots, threads):
            keys[neuron, slot], kept_ids[neuron, slot] = slot_keys[slot], slot_ids[slot]
        # A thread has the same tokens of every slot, and only slot 0 takes another's old row: it
        # goes first, and no thread waits for another.
        for t in range(thread, tokens, threads):
            if sources[0] <= first_old:
                rows[neuron, 0, t] = rows[neuron, first_old - sources[0], t]
            for first in range(0, slots, ahead):
                for place in range(ahead):
                    if first + place < slots and sources[first + place] >= 0:
                        values[place] = acts[sources[first + place], lead + t, neuron]
                for place in range(ahead):
                    if first + place < slots and sources[first + place] >= 0:
                        rows[neuron, first + place, t] = values[place]

    return insert


@cuda.jit(cache=True)
def copy(words, lead, random_slots, random_words):
    """Copy the excerpts that have a slot among the random ones.

    `words` is `[B, L, width]`, `lead` L - T, `random_slots` int32 `[B]`, `random_words`
    `[R, T, width]`.
    """
    position = cuda.blockIdx.x
    slot = random_slots[position]
    if slot < 0:
        return
    for t in range(cuda.blockIdx.y, random_words.shape[1], cuda.gridDim.y):
        for place in range(cuda.threadIdx.x, words.shape[2], cuda.blockDim.x):
            random_words[slot, t, place] = words[position, lead + t, place]


@functools.cache
def tables_kernel(name: str, lanes: int, tokens: int, threads: tuple[int, int], alone: int) -> Any:
    """The kernel that adds a batch to the tables; `tokens` is a constant of it, for its divisions.

    A block has the neurons of `threads[0]` words and `threads[1]` segments: one of the longest, and
    shorter and shorter ones. Those of more than `alone` tokens are taken one after another, their
    tokens dealt out to all rows of threads, whose sums are added in order: the commonest token of a
    text, a twentieth of it, would keep one row busy for longer than all the rest. Of the others
    each row of threads has one, at the same time: a block with a segment of a few tokens did
    nothing but wait for four loads, each for the one before, 1.7 us on an H200.
    """
    value_of = lane_reader(name)
    zero = np.float32(0)
    loads, word_type = LOADS // 2, word_type_of(name, lanes)
    across, along = threads

    @cuda.jit(device=True)
    def word_at(words, lead, position, place):
        position = np.uint32(position)
        return words[position // np.uint32(tokens), lead + position % np.uint32(tokens), place]

    @cuda.jit(device=True)
    def add_word(word, total):
        for lane in range(lanes):
            total[lane] += max(value_of(word, lane), zero)

    @cuda.jit(device=True)
    def add_tokens(words, lead, positions, at, stop, step, place, loaded, total):
        """Set `total`, float32 `[lanes]`, to the sums of every `step`-th token from `at` on."""
        for lane in range(lanes):
            total[lane] = zero
        while at + (loads - 1) * step < stop:
            for ahead in range(loads):
                loaded[ahead] = word_at(words, lead, positions[at + ahead * step], place)
            for ahead in range(loads):
                add_word(loaded[ahead], total)
            at += loads * step
        while at < stop:
            add_word(word_at(words, lead, positions[at], place), total)
            at += step

    @cuda.jit(device=True)
    def add_to_row(row, neuron, added, token_sums, pair_sums, triple_sums):
        pair = row - token_sums.shape[0]
        triple = pair - pair_sums.shape[0]
        if pair < 0:
            token_sums[row, neuron] += added
        elif triple < 0:
            pair_sums[pair, neuron] += added
        else:
            triple_sums[triple, neuron] += added

    @cuda.jit(cache=True)
    def add_to_tables(
        words, lead, positions, segment_starts, segment_rows, token_sums, pair_sums, triple_sums
    ):
        """Add the block's segments up: every one of as many as there are blocks along x.

        `words` is `[B, L, width]` and `lead` L - T; `positions`, `segment_starts` and
        `segment_rows` are those of `Batch`; `token_sums`, `pair_sums` and `triple_sums`, float32
        `[V, F]`, `[P, F]` and `[Q, F]`, are changed in place.
        """
        segments, blocks, width = segment_rows.shape[0], cuda.gridDim.x, words.shape[2]
        first = cuda.blockIdx.y * across
        x, y = cuda.threadIdx.x, cuda.threadIdx.y
        place = first + x
        totals = cuda.shared.array((along, lanes, across), float32)
        loaded, total = cuda.local.array(loads, word_type), cuda.local.array(lanes, float32)

        segment = cuda.blockIdx.x
        together = 0
        while together < along and segment < segments:
            start, stop = segment_starts[segment], segment_starts[segment + 1]
            if stop - start <= alone:
                break
            if place < width:
                add_tokens(words, lead, positions, start + y, stop, along, place, loaded, total)
                for lane in range(lanes):
                    totals[y, lane, x] = total[lane]
            cuda.syncthreads()
            row = segment_rows[segment]
            for offset in range(y * across + x, across * lanes, across * along):
                neuron = first * lanes + offset
                if neuron < width * lanes:
                    added = zero
                    for part in range(along):
                        added += totals[part, offset % lanes, offset // lanes]
                    add_to_row(row, neuron, added, token_sums, pair_sums, triple_sums)
            cuda.syncthreads()
            segment += blocks
            together += 1

        segment += y * blocks
        if y < along - together and segment < segments and place < width:
            row = segment_rows[segment]
            if row >= 0:
                start, stop = segment_starts[segment], segment_starts[segment + 1]
                add_tokens(words, lead, positions, start, stop, 1, place, loaded, total)
                for lane in range(lanes):
                    neuron = place * lanes + lane
                    add_to_row(row, neuron, total[lane], token_sums, pair_sums, triple_sums)

    return add_to_tables
