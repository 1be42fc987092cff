"""The kernel of `capture` on a GPU that reads every activation; `capture.py` launches it."""

# mypy: no-check-untyped-defs
# (compiled code has no annotations; Numba infers its types)
from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import cuda, float32, float64, int32, uint8, uint16, uint32, uint64

from fastexplain.kernels import scalars
from fastexplain.kernels.cuda import ptx
from fastexplain.kernels.cuda.words import (
    extremes_of,
    lane_reader,
    nonlinearity_of,
    word_maker,
    word_type_of,
)
from fastexplain.kernels.summary import MOMENTS

LOADS = 8
"""Loads that a thread has in flight. At 4.3 TB/s and 0.8 us of latency 26 KB a multiprocessor must
be under way; 512 threads with 64 bytes each have 32 KB."""

_bin = cuda.jit(device=True)(scalars.histogram_bin)
_precedes = cuda.jit(device=True)(scalars.precedes)


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
    loads, ups = (LOADS // 2, LOADS // 2) if gated else (LOADS, 1)
    word_type, bin_type = word_type_of(name, lanes), {1: uint8, 2: uint16, 4: uint32}[lanes]
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
        top_keys,
        top_ids,
        bottom_keys,
        bottom_ids,
        fault,
        bins,
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
            top_keys, top_ids, bottom_keys, bottom_ids: float32 and int32 `[F, K]`, read only: slot
                0 is what an excerpt must precede to be marked.
            fault: int32 `[1]`, changed by atomics.
            bins: unsigned integers of `lanes` bytes `[B * width]`, written: a byte for the bin of
                each neuron's largest activation, but for an excerpt that is not finite.
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

            mark, word_bins = np.uint32(1) << np.uint32(position - start), uint32(0)
            for lane in range(lanes):
                column = neuron + lane
                key, negated = extreme_of(largest, lane), -extreme_of(smallest, lane)
                low[lane, thread] = min(low[lane, thread], -negated)
                high[lane, thread] = max(high[lane, thread], key)
                word_bins |= uint32(_bin(key.view(np.int32))) << uint32(8 * lane)
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
            bins[uint64(position) * step + uint64(place)] = bin_type(word_bins)

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
