"""The kernels of `capture` on a GPU, which `capture.py` launches and describes."""

# mypy: no-check-untyped-defs
# (compiled code has no annotations; Numba infers its types)
from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import cuda, float32, float64, int32, uint32, uint64

from fastexplain.kernels import scalars
from fastexplain.kernels.cuda import ptx
from fastexplain.kernels.cuda.words import (
    extremes_of,
    lane_reader,
    nonlinearity_of,
    word_maker,
    word_type_of,
)
from fastexplain.kernels.scalars import NO_ID
from fastexplain.kernels.summary import MOMENTS

_LOADS = 8
"""Loads that a thread has in flight. At 4.3 TB/s and 0.8 us of latency 26 KB a multiprocessor must
be under way; 512 threads with 64 bytes each have 32 KB."""
_ROWS_AHEAD = 4
"""Exemplars that a thread of `insert` copies at a time: loads that it has in flight."""

_bin = cuda.jit(device=True)(scalars.histogram_bin)
_precedes = cuda.jit(device=True)(scalars.precedes)
_hash = cuda.jit(device=True)(scalars.excerpt_hash)


@cuda.jit(device=True)
def _represent(histogram_ids, neuron, place, other, excerpt, excerpt_hash, seed):
    """Let an excerpt stand for its bin, where `other` was found, if its hash is the least.

    `histogram_ids` is int32 `[F, H]`, ids are int32, the hash and the seed uint64.
    """
    while other == NO_ID or excerpt_hash < _hash(np.uint64(other), seed):
        found = cuda.atomic.cas(histogram_ids, (neuron, place), other, excerpt)
        if found == other:
            break
        other = found


@functools.cache
def fold_kernel(
    name: str,
    lanes: int,
    nonlinearity: str | None,
    gated: bool,
    ends: tuple[bool, bool],
    packing: bool,
    paired: bool,
    threads: int,
    registers: int,
) -> Any:
    """The kernel that reads activations of a dtype, or makes them, `lanes` of them a word.

    Arrays are flat and indices unsigned: Numba looks for negative ones among the others, two
    instructions an activation. An excerpt is a slice, in which the compiler steps pointers. What is
    added up over a chunk lies in shared memory, since with it in registers there would be room for
    half as many threads; so does what an excerpt must pass to be kept.

    Args:
        ends: whether top and whether bottom exemplars are kept.
        packing: whether two float32 are rounded by one instruction.
        paired: whether bfloat16 are compared and counted by twos.
        threads: of a block.
        registers: of a thread, at most.
    """
    value_of = lane_reader(name)
    zero, infinity = np.float32(0), np.float32(np.inf)
    loads, ups = (_LOADS // 2, _LOADS // 2) if gated else (_LOADS, 1)
    word_type = word_type_of(name, lanes)
    activated = nonlinearity is not None
    f = nonlinearity_of(nonlinearity, name) if activated else None
    make_word = word_maker(name, lanes, packing)
    top, bottom = ends
    gates_kept = max(top + bottom, 1)
    lowest_end = int(top)  # where the gate of bottom exemplars is, after that of top ones
    extremes = extremes_of(name, lanes, paired)
    lowest, highest, none = extremes.lowest, extremes.highest, extremes.none
    slots, extreme_type, count_type = extremes.size, extremes.type, extremes.count_type
    fold_extremes, extreme_of, count_of = extremes.fold, extremes.value, extremes.count

    if activated:

        @cuda.jit(device=True)
        def activate(word, up):
            """A word of activations from a word of pre-activations and one of factors."""
            values = cuda.local.array(lanes, float32)
            for lane in range(lanes):
                x = f(value_of(word, lane))
                if gated:
                    x *= value_of(up, lane)
                values[lane] = x
            return make_word(values)
    else:

        @cuda.jit(device=True)
        def activate(word, up):
            return word

    @cuda.jit(device=True)
    def fold_word(word, largest, smallest, positive, powers):
        fold_extremes(word, largest, smallest, positive)
        for lane in range(lanes):
            x = value_of(word, lane)
            square = x * x
            powers[lane, 0] += x
            powers[lane, 1] += square
            powers[lane, 2] += square * x
            powers[lane, 3] += square * square
            powers[lane, 4] += max(x, zero)

    # Not kept on disk as the others are: Numba tells closures apart by a pickle of what they refer
    # to, which for so many functions differs from process to process, and each would leave 1 MB.
    @cuda.jit(**({} if ptx.SIMULATED else {"max_registers": registers}))
    def fold(
        gate,
        gate_width,
        gate_start,
        up,
        up_width,
        up_start,
        words,
        width,
        length,
        ids,
        first,
        chunk,
        seed,
        top_keys,
        top_ids,
        bottom_keys,
        bottom_ids,
        histogram,
        histogram_ids,
        fault,
        part_powers,
        part_positive,
        part_minimum,
        part_maximum,
        top_marks,
        bottom_marks,
        passed_top_keys,
        passed_bottom_keys,
    ):
        """Fold the block's chunk of excerpts; a thread has the `lanes` neurons of one word.

        Letters are those of `fastexplain.kernels`, C is the number of chunks, and words are
        unsigned integers of `lanes` activations.

        Args:
            gate, gate_width, gate_start: words `[B * L * gate_width]`, and the first of a row that
                is read. They are the activations themselves where there is no nonlinearity.
            up, up_width, up_start: the same for the factor; not read where there is none.
            words, width, length: words `[B * L * width]`, the activations, which are written where
                there is a nonlinearity; width is F / lanes, length L.
            ids, first: int32 `[B]`, and the first position that is counted.
            chunk: int, excerpts of a chunk, 32 at most.
            seed: uint64, of the hash.
            top_keys, top_ids, bottom_keys, bottom_ids: float32 and int32 `[F, K]`, read only: slot
                0 is what an excerpt must precede to be marked.
            histogram, histogram_ids: int32 `[F, H]`, changed by atomics.
            fault: int32 `[1]`, changed by atomics.
            part_powers, part_positive: float64 `[C, 5, F]` and int32 `[C, F]`, written.
            part_minimum, part_maximum: float32 `[C, F]`, written.
            top_marks, bottom_marks: uint32 `[C, F]`, written: a bit for each marked excerpt.
            passed_top_keys, passed_bottom_keys: float32 `[B, F]`, written where there is a mark.
        """
        thread = cuda.threadIdx.x
        place = cuda.blockIdx.x * cuda.blockDim.x + thread
        if place >= width:
            return
        part = cuda.blockIdx.y
        start = part * chunk
        stop = min(start + chunk, ids.shape[0])
        neuron = place * lanes
        # Numba compares unsigned with signed integers as float64.
        gate_step, up_step, step = uint64(gate_width), uint64(up_width), uint64(width)
        end, first = uint32(length), uint32(first)
        # Positions that are not counted are read where activations are made of them.
        begin = uint32(0) if activated else first
        # What full groups leave over comes first, as a group that is guarded.
        head = uint32((end - begin) % uint32(loads))
        if head == uint32(0):
            head = uint32(loads)

        loaded, loaded_up = cuda.local.array(loads, word_type), cuda.local.array(ups, word_type)
        sums = cuda.local.array((lanes, MOMENTS), float32)
        top_mark, bottom_mark = cuda.local.array(lanes, uint32), cuda.local.array(lanes, uint32)
        largest = cuda.local.array(slots, extreme_type)
        smallest = cuda.local.array(slots, extreme_type)
        positive = cuda.local.array(slots, count_type)
        bins, found = cuda.local.array(lanes, int32), cuda.local.array(lanes, int32)
        # On separate lines, by which the simulator tells shared arrays apart.
        powers = cuda.shared.array((lanes, MOMENTS, threads), float64)
        positives = cuda.shared.array((lanes, threads), int32)
        low = cuda.shared.array((lanes, threads), float32)
        high = cuda.shared.array((lanes, threads), float32)
        gate_keys = cuda.shared.array((gates_kept, lanes, threads), float32)
        gate_ids = cuda.shared.array((gates_kept, lanes, threads), int32)
        for lane in range(lanes):
            for power in range(MOMENTS):
                powers[lane, power, thread] = 0.0
            positives[lane, thread] = 0
            low[lane, thread], high[lane, thread] = infinity, -infinity
            top_mark[lane], bottom_mark[lane] = 0, 0
            if top:
                gate_keys[0, lane, thread] = top_keys[neuron + lane, 0]
                gate_ids[0, lane, thread] = top_ids[neuron + lane, 0]
            if bottom:
                gate_keys[lowest_end, lane, thread] = bottom_keys[neuron + lane, 0]
                gate_ids[lowest_end, lane, thread] = bottom_ids[neuron + lane, 0]

        for position in range(start, stop):
            for lane in range(lanes):
                for power in range(MOMENTS):
                    sums[lane, power] = zero
            for slot in range(slots):
                largest[slot], smallest[slot], positive[slot] = lowest, highest, none
            row = uint64(position) * uint64(length)
            gates = gate[row * uint64(gate_width) + uint64(gate_start) + uint64(place) :]
            ups_here = up[row * uint64(up_width) + uint64(up_start) + uint64(place) :]
            here = words[row * uint64(width) + uint64(place) :]
            gate_at, up_at, at = begin * gate_step, begin * up_step, begin * step
            t, size = begin, head
            while t == begin or t < first:
                for ahead in range(loads):
                    if uint32(ahead) < size:
                        loaded[ahead] = gates[gate_at]
                        gate_at += gate_step
                        if gated:
                            loaded_up[ahead] = ups_here[up_at]
                            up_at += up_step
                for ahead in range(loads):
                    if uint32(ahead) < size:
                        word = activate(loaded[ahead], loaded_up[ahead if gated else 0])
                        if activated:
                            here[at] = word
                            at += step
                        if t + uint32(ahead) >= first:
                            fold_word(word, largest, smallest, positive, sums)
                t = uint32(t + size)
                size = uint32(loads)
            while t < end:
                for ahead in range(loads):
                    loaded[ahead] = gates[gate_at]
                    gate_at += gate_step
                    if gated:
                        loaded_up[ahead] = ups_here[up_at]
                        up_at += up_step
                for ahead in range(loads):
                    word = activate(loaded[ahead], loaded_up[ahead if gated else 0])
                    if activated:
                        here[at] = word
                        at += step
                    fold_word(word, largest, smallest, positive, sums)
                t = uint32(t + uint32(loads))

            excerpt = ids[position]
            finite = True
            for lane in range(lanes):
                # max and min pass over NaN, which the sum does not.
                total = sums[lane, 0]
                finite = (
                    finite
                    and total == total
                    and extreme_of(largest, lane) < infinity
                    and extreme_of(smallest, lane) > -infinity
                )
                for power in range(MOMENTS):
                    powers[lane, power, thread] += float64(sums[lane, power])
                positives[lane, thread] += count_of(positive, lane)
            if not finite:
                cuda.atomic.min(fault, 0, excerpt)
                break

            mark = np.uint32(1) << np.uint32(position - start)
            excerpt_hash = _hash(np.uint64(excerpt), seed)
            for lane in range(lanes):  # all loads of a word's bins before the first is needed
                column = neuron + lane
                bins[lane] = _bin(extreme_of(largest, lane).view(np.int32))
                cuda.atomic.add(histogram, (column, bins[lane]), np.int32(1))
                found[lane] = histogram_ids[column, bins[lane]]
            for lane in range(lanes):
                column = neuron + lane
                key, negated = extreme_of(largest, lane), -extreme_of(smallest, lane)
                low[lane, thread] = min(low[lane, thread], -negated)
                high[lane, thread] = max(high[lane, thread], key)
                if top and _precedes(
                    key, excerpt, gate_keys[0, lane, thread], gate_ids[0, lane, thread]
                ):
                    top_mark[lane] |= mark
                    passed_top_keys[position, column] = key
                if bottom and _precedes(
                    negated,
                    excerpt,
                    gate_keys[lowest_end, lane, thread],
                    gate_ids[lowest_end, lane, thread],
                ):
                    bottom_mark[lane] |= mark
                    passed_bottom_keys[position, column] = negated
                _represent(
                    histogram_ids, column, bins[lane], found[lane], excerpt, excerpt_hash, seed
                )

        for lane in range(lanes):
            column = neuron + lane
            for power in range(MOMENTS):
                part_powers[part, power, column] = powers[lane, power, thread]
            part_positive[part, column] = positives[lane, thread]
            part_minimum[part, column] = low[lane, thread]
            part_maximum[part, column] = high[lane, thread]
            if top:
                top_marks[part, column] = top_mark[lane]
            if bottom:
                bottom_marks[part, column] = bottom_mark[lane]

    return fold


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
def tables_kernel(name: str, lanes: int, tokens: int, threads: tuple[int, int]) -> Any:
    """The kernel that adds a batch to the tables; `tokens` is a constant of it, for its divisions.

    A block has one table row and the neurons of `threads[0]` words. Its tokens are dealt out to
    `threads[1]` rows of threads, whose sums are added in order: the commonest token of a text,
    a twentieth of it, would keep a single thread busy for longer than all the rest.
    """
    value_of = lane_reader(name)
    zero = np.float32(0)
    loads, word_type = _LOADS // 2, word_type_of(name, lanes)
    across, along = threads

    @cuda.jit(device=True)
    def word_at(words, lead, position, place):
        position = np.uint32(position)
        return words[position // np.uint32(tokens), lead + position % np.uint32(tokens), place]

    @cuda.jit(device=True)
    def add_word(word, total):
        for lane in range(lanes):
            total[lane] += max(value_of(word, lane), zero)

    @cuda.jit(cache=True)
    def add_to_tables(words, lead, positions, segment_starts, segment_rows, token_sums, pair_sums):
        """Add one segment up.

        `words` is `[B, L, width]` and `lead` L - T; `positions`, `segment_starts` and
        `segment_rows` are those of `Batch`; `token_sums` and `pair_sums`, float32 `[V, F]` and
        `[P, F]`, are changed in place.
        """
        segment = cuda.blockIdx.x
        row = segment_rows[segment]
        if row < 0:
            return
        first = cuda.blockIdx.y * across
        x, y = cuda.threadIdx.x, cuda.threadIdx.y
        place = first + x
        totals = cuda.shared.array((along, lanes, across), float32)
        loaded, total = cuda.local.array(loads, word_type), cuda.local.array(lanes, float32)
        for lane in range(lanes):
            total[lane] = zero
        if place < words.shape[2]:
            at, stop = segment_starts[segment] + y, segment_starts[segment + 1]
            while at + (loads - 1) * along < stop:
                for ahead in range(loads):
                    loaded[ahead] = word_at(words, lead, positions[at + ahead * along], place)
                for ahead in range(loads):
                    add_word(loaded[ahead], total)
                at += loads * along
            while at < stop:
                add_word(word_at(words, lead, positions[at], place), total)
                at += along
        for lane in range(lanes):
            totals[y, lane, x] = total[lane]
        cuda.syncthreads()

        pair = row - token_sums.shape[0]
        for offset in range(y * across + x, across * lanes, across * along):
            neuron = first * lanes + offset
            if neuron < words.shape[2] * lanes:
                added = zero
                for part in range(along):
                    added += totals[part, offset % lanes, offset // lanes]
                if pair < 0:
                    token_sums[row, neuron] += added
                else:
                    pair_sums[pair, neuron] += added

    return add_to_tables
