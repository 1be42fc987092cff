"""`capture` on a GPU: Numba CUDA, threads side by side along the neurons.

It is a handful of launches on one stream, none of which waits for another on the host:
1. `fold` reads every activation once, or the pre-activations, of which it then makes activations
   and writes them out. A thread has the neurons of one machine word and a chunk of the excerpts. It
   leaves the chunk's sums in scratch, counts the histogram, and marks the excerpts that pass the
   gate as it stood before the batch, with their keys.
2. `_add_up` adds the chunks' sums in order, so that they don't depend on how the device schedules.
3. `insert`, a block a neuron, takes the marked excerpts and copies the activations of those that
   are still among the K best. Past the first batches hardly any are marked.
4. `add_to_tables`, a block per table row and 32 words of neurons, and `copy` of random excerpts.

The histogram is counted by integer atomics: their result is the same in every order. All launches
depend on shapes alone, so that a capture can be part of a CUDA graph, once it has run outside.

Bytes and operations, for bfloat16 through one nonlinearity: 2 bytes in and 2 out. An H200 moves
4.3 TB/s (measured by a copy) with 132 multiprocessors at 1.75 GHz, each of which issues 128
instructions a cycle: in the time that an activation takes in memory there is room for 27 of them.
So sums are float32 within an excerpt, and float64 only from excerpt to excerpt: at 7 float64
operations an activation (half rate, and conversions at an eighth) these alone would take as long.
For the same reason bfloat16 are compared and counted by twos, as they lie in memory. As compiled
for compute capability 9.0 the loop has 21 instructions an activation with gelu_tanh, 22 with silu
and a gate, which has 6 bytes to move, 11 of the 14 there is room for where activations are only
read, and 33 with gelu, which will not keep up (`benches/sass.py` counts them).

A word waits for memory once in eight (four with a factor), and an excerpt's end once for a bin of
the histogram: 64 tokens are 9 waits.
"""

# mypy: no-check-untyped-defs
# (compiled code has no annotations; Numba infers its types)
from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import cuda, float32, float64, int32, uint32, uint64

from fastexplain.kernels import ptx, scalars
from fastexplain.kernels.cuda_words import (
    MOST_PAIRED,
    extremes_of,
    lane_reader,
    nonlinearity_of,
    word_maker,
    word_type_of,
)
from fastexplain.kernels.scalars import NO_ID
from fastexplain.kernels.summary import (
    MOMENTS,
    MOST_ON_DEVICE,
    Batch,
    Preactivations,
    Summary,
    moved,
)

# Numba warns of every launch of fewer than 128 blocks; the small ones here follow a large one.
warnings.filterwarnings("ignore", "Grid size .* low occupancy")

_THREADS = 128
"""Threads of a block."""
_NEURON_THREADS = 64
"""The same where there is a thread a neuron: few threads, which smaller blocks spread wider."""
_INSERT_THREADS = 32
"""The same where there is a block a neuron: a warp, as threads that wait for each other."""
_ROWS_AHEAD = 4
"""Exemplars that a thread of `insert` copies at a time: loads that it has in flight."""
_TABLE_THREADS = (32, 8)
"""The same for a table row: along its neurons, and along the tokens that are added to it."""
_COPY_BLOCKS = 8
"""Blocks that copy one random excerpt; all but a few of a batch's have nothing to copy."""
_WORD_BYTES = 8
"""What a thread loads at once: 4 neurons of 16 bits, 2 of 32; a warp's load is 256 bytes."""
_REGISTERS = 128
"""Of a `fold` thread, so that a multiprocessor holds 512. What doesn't fit is spilled once an
excerpt, not in the loop over its tokens (seen in the machine code for compute capability 9.0)."""
_LOADS = 8
"""Loads that a thread has in flight. At 4.3 TB/s and 0.8 us of latency 26 KB a multiprocessor must
be under way; 512 threads with 64 bytes each have 32 KB."""
_WANTED_THREADS = 61_000
"""Threads that fill a large GPU once and leave little of it empty: on an H200, 132 multiprocessors
of 512 at `fold`'s 128 registers are 528 blocks, of which GPT-2 XL's layer takes 520 and Llama-8B's
504. Excerpts are cut into chunks by this number, not by the device's own, so that every device
adds in the same order."""
_CHUNK = (4, 32)
"""Fewest and most excerpts of a chunk. A chunk's sums are 52 bytes a neuron, a tenth of what 4
excerpts of 64 tokens have in bfloat16; 32 is the number of bits of a mark."""

_bin = cuda.jit(device=True)(scalars.histogram_bin)
_precedes = cuda.jit(device=True)(scalars.precedes)
_hash = cuda.jit(device=True)(scalars.excerpt_hash)


@dataclass
class _Scratch:
    """What `fold` leaves for the launches that follow it.

    Attributes:
        powers: float64 `[chunks, 5, F]`, in the order of `Summary.sums`.
        positive: int32 `[chunks, F]`.
        minimum, maximum: float32 `[chunks, F]`.
        top_marks, bottom_marks: uint32 `[chunks, F]`, a bit for each excerpt that passed the gate.
        top_keys, bottom_keys: float32 `[B, F]`, written where there is a mark.
    """

    powers: Any
    positive: Any
    minimum: Any
    maximum: Any
    top_marks: Any
    bottom_marks: Any
    top_keys: Any
    bottom_keys: Any

    @classmethod
    def make(
        cls, empty: Callable[..., Any], excerpts: int, chunks: int, neurons: int, bottom: bool
    ) -> _Scratch:
        """Allocate by `empty(shape, dtype)`."""
        below = (excerpts if bottom else 0, neurons)
        return cls(
            powers=empty((chunks, MOMENTS, neurons), np.float64),
            positive=empty((chunks, neurons), np.int32),
            minimum=empty((chunks, neurons), np.float32),
            maximum=empty((chunks, neurons), np.float32),
            top_marks=empty((chunks, neurons), np.uint32),
            bottom_marks=empty((chunks, neurons), np.uint32),
            top_keys=empty((excerpts, neurons), np.float32),
            bottom_keys=empty(below, np.float32),
        )


def capture(
    acts: Any,
    batch: Batch,
    summary: Summary,
    pre: Preactivations | None = None,
    *,
    stream: int = 0,
) -> None:
    """See `fastexplain.kernels.capture`. All arrays are on the current device.

    Kernels run on the device that is current in the calling thread, where Numba finds what PyTorch
    has set, with scratch for each device: captures of two threads with a GPU each may overlap,
    those on several streams of one GPU must not. Arrays that are Numba's already (see `view`) are
    taken as they are.
    """
    acts, batch, summary = view(acts), moved(batch, view), moved(summary, view)
    pre = None if pre is None else moved(pre, view)
    lanes = _lanes(acts, summary.random_acts, pre)
    queue = queue_of(stream)
    launches = _launches(acts, batch, summary, pre, lanes, _capability(), _scratch)
    for kernel, blocks, threads, arguments in launches:
        kernel[blocks, threads, queue](*arguments)


def queue_of(stream: int) -> Any:
    """Numba's form of a CUDA stream's handle, one for each: it knows a launch again by that."""
    return _stream_of(_device(), stream) if stream else 0


@functools.lru_cache(maxsize=256)
def _stream_of(device: int, handle: int) -> Any:
    return cuda.external_stream(handle)


def _device() -> int:
    return 0 if ptx.SIMULATED else cuda.get_current_device().id


def view(array: Any) -> Any:
    """A device array as Numba's, without a copy; 16-bit integers of either sign are bfloat16."""
    if not getattr(array, "__cuda_ndarray__", False):
        # No synchronisation: whoever queued the work on the array is on this stream too.
        array = cuda.as_cuda_array(array, sync=False)
    return array.view(np.uint16) if array.dtype == np.int16 else array


def _lanes(acts: Any, random_acts: Any, pre: Preactivations | None) -> int:
    """How many neurons a thread can take at a time, by their number and the arrays' alignment."""
    arrays, neurons = [acts, random_acts], acts.shape[2]
    if pre is not None:
        arrays += [pre.gate] if pre.up is None else [pre.gate, pre.up]
        neurons |= pre.gate_start | pre.up_start
    places = neurons * acts.dtype.itemsize
    for array in arrays:
        places |= array.shape[2] * acts.dtype.itemsize
        if hasattr(array, "__cuda_array_interface__"):
            places |= array.__cuda_array_interface__["data"][0]
    word = min(_WORD_BYTES, places & -places)
    return max(1, word // acts.dtype.itemsize)


def _flat(array: Any) -> Any:
    return array.reshape(math.prod(array.shape))


def _capability() -> tuple[int, int]:
    """The device's compute capability; in the simulator, one that has all that there is."""
    return ptx.PAIRS_SINCE if ptx.SIMULATED else cuda.get_current_device().compute_capability


@functools.cache
def _kept_scratch(device: int, *shape: Any) -> _Scratch:
    return _Scratch.make(cuda.device_array, *shape)


def _scratch(*shape: Any) -> _Scratch:
    """Scratch that is kept: freeing device memory waits for the device, and a graph may use it."""
    return _kept_scratch(_device(), *shape)


def _launches(
    acts: Any,
    batch: Batch,
    summary: Summary,
    pre: Preactivations | None,
    lanes: int,
    capability: tuple[int, int],
    scratch_of: Callable[..., _Scratch],
) -> Iterator[tuple[Any, Any, Any, tuple[Any, ...]]]:
    """The launches of a capture in their order: kernel, blocks, threads a block, arguments."""
    if acts.dtype != summary.top_acts.dtype:
        raise TypeError(f"activations are {acts.dtype}, the summary {summary.top_acts.dtype}")
    excerpts, length, neurons = acts.shape
    tokens = summary.top_acts.shape[2]
    lead = length - tokens
    if summary.top_keys.shape[1] > MOST_ON_DEVICE:
        raise ValueError(f"on a device, capture keeps {MOST_ON_DEVICE} exemplars a neuron at most")
    if lead + batch.skip >= length:
        raise ValueError(f"of {length} positions none is counted")
    if excerpts == 0:
        return
    name = acts.dtype.name
    bits = np.dtype(f"u{acts.dtype.itemsize}")
    word = np.dtype(f"u{acts.dtype.itemsize * lanes}")
    words = acts.view(word)
    width = words.shape[2]
    nonlinearity, gate, up, gate_start, up_start = None, words, None, 0, 0
    if pre is not None:
        nonlinearity = pre.nonlinearity
        gate, gate_start = pre.gate.view(word), pre.gate_start // lanes
        if pre.up is not None:
            up, up_start = pre.up.view(word), pre.up_start // lanes
    chunk = min(max(excerpts * width // _WANTED_THREADS, _CHUNK[0]), _CHUNK[1])
    chunks = -(-excerpts // chunk)
    scratch = scratch_of(excerpts, chunks, neurons, summary.bottom_keys.shape[1] > 0)
    wide, narrow = -(-width // _THREADS), -(-neurons // _NEURON_THREADS)

    ends = summary.top_keys.shape[1] > 0, summary.bottom_keys.shape[1] > 0
    paired = (
        name == "uint16" and lanes > 1 and length <= MOST_PAIRED and capability >= ptx.PAIRS_SINCE
    )
    yield (
        _fold(
            name, lanes, nonlinearity, up is not None, ends,
            capability >= ptx.PACKING_SINCE, paired, _THREADS, _REGISTERS,
        ),
        (wide, chunks), _THREADS,
        (
            _flat(gate), gate.shape[2], gate_start,
            _flat(gate if up is None else up), (gate if up is None else up).shape[2], up_start,
            _flat(words), width, length,
            batch.ids, lead + batch.skip, chunk, np.uint64(summary.seed),
            summary.top_keys, summary.top_ids, summary.bottom_keys, summary.bottom_ids,
            summary.histogram, summary.histogram_ids, summary.fault,
            scratch.powers, scratch.positive, scratch.minimum, scratch.maximum,
            scratch.top_marks, scratch.bottom_marks, scratch.top_keys, scratch.bottom_keys,
        ),
    )  # fmt: skip
    yield (
        _add_up, (narrow, MOMENTS + 1), _NEURON_THREADS,
        (
            scratch.powers, scratch.positive, scratch.minimum, scratch.maximum,
            summary.sums, summary.positive, summary.minimum, summary.maximum,
        ),
    )  # fmt: skip
    for marks, own_keys, keys, ids, rows in (
        (scratch.top_marks, scratch.top_keys,
         summary.top_keys, summary.top_ids, summary.top_acts),
        (scratch.bottom_marks, scratch.bottom_keys,
         summary.bottom_keys, summary.bottom_ids, summary.bottom_acts),
    ):  # fmt: skip
        if keys.shape[1]:
            yield (
                _insert(keys.shape[1], _INSERT_THREADS), neurons, _INSERT_THREADS,
                (
                    acts.view(bits), batch.ids, lead, chunk, marks, own_keys,
                    keys, ids, rows.view(bits),
                ),
            )  # fmt: skip
    if summary.random_acts.shape[0]:
        yield (
            _copy, (excerpts, _COPY_BLOCKS), _THREADS,
            (words, lead, batch.random_slots, summary.random_acts.view(word)),
        )  # fmt: skip
    if batch.segment_rows.shape[0]:
        yield (
            _add_to_tables(name, lanes, tokens, _TABLE_THREADS),
            (batch.segment_rows.shape[0], -(-width // _TABLE_THREADS[0])), _TABLE_THREADS,
            (
                words, lead, batch.positions, batch.segment_starts, batch.segment_rows,
                summary.token_sums, summary.pair_sums,
            ),
        )  # fmt: skip


@cuda.jit(device=True)
def _represent(histogram_ids, neuron, place, other, excerpt, own_hash, seed):
    """Let an excerpt stand for its bin, where `other` was found, if its hash is the least."""
    while other == NO_ID or own_hash < _hash(np.uint64(other), seed):
        found = cuda.atomic.cas(histogram_ids, (neuron, place), other, excerpt)
        if found == other:
            break
        other = found


@functools.cache
def _fold(
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
    instructions an activation. An excerpt is a slice, so that 32 bits tell a place in it. What is
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
        own_top_keys,
        own_bottom_keys,
    ):
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
        # On lines of their own, by which the simulator tells shared arrays apart.
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
            own_hash = _hash(np.uint64(excerpt), seed)
            for lane in range(lanes):  # all loads of a word's bins before the first is needed
                own = neuron + lane
                bins[lane] = _bin(extreme_of(largest, lane).view(np.int32))
                cuda.atomic.add(histogram, (own, bins[lane]), np.int32(1))
                found[lane] = histogram_ids[own, bins[lane]]
            for lane in range(lanes):
                own = neuron + lane
                key, negated = extreme_of(largest, lane), -extreme_of(smallest, lane)
                low[lane, thread] = min(low[lane, thread], -negated)
                high[lane, thread] = max(high[lane, thread], key)
                if top and _precedes(
                    key, excerpt, gate_keys[0, lane, thread], gate_ids[0, lane, thread]
                ):
                    top_mark[lane] |= mark
                    own_top_keys[position, own] = key
                if bottom and _precedes(
                    negated,
                    excerpt,
                    gate_keys[lowest_end, lane, thread],
                    gate_ids[lowest_end, lane, thread],
                ):
                    bottom_mark[lane] |= mark
                    own_bottom_keys[position, own] = negated
                _represent(histogram_ids, own, bins[lane], found[lane], excerpt, own_hash, seed)

        for lane in range(lanes):
            own = neuron + lane
            for power in range(MOMENTS):
                part_powers[part, power, own] = powers[lane, power, thread]
            part_positive[part, own] = positives[lane, thread]
            part_minimum[part, own] = low[lane, thread]
            part_maximum[part, own] = high[lane, thread]
            if top:
                top_marks[part, own] = top_mark[lane]
            if bottom:
                bottom_marks[part, own] = bottom_mark[lane]

    return fold


@cuda.jit(cache=True)
def _add_up(
    part_powers, part_positive, part_minimum, part_maximum, sums, positive, minimum, maximum
):
    """Add what the chunks have, in their order: a row of blocks per power, one for the rest."""
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
def _insert(slots: int, threads: int) -> Any:
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
        """Put one excerpt in the worst one's place, if it precedes it, and find the next worst."""
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
    def insert(acts, ids, lead, chunk, marks, own_keys, keys, kept_ids, rows):
        # On lines of their own, by which the simulator tells shared arrays apart.
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
                new_keys[thread * word_bits + bit] = own_keys[position, neuron]
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
def _copy(words, lead, random_slots, random_words):
    """Copy the excerpts that have a slot among the random ones."""
    position = cuda.blockIdx.x
    slot = random_slots[position]
    if slot < 0:
        return
    for t in range(cuda.blockIdx.y, random_words.shape[1], cuda.gridDim.y):
        for place in range(cuda.threadIdx.x, words.shape[2], cuda.blockDim.x):
            random_words[slot, t, place] = words[position, lead + t, place]


@functools.cache
def _add_to_tables(name: str, lanes: int, tokens: int, threads: tuple[int, int]) -> Any:
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
        for own in range(y * across + x, across * lanes, across * along):
            neuron = first * lanes + own
            if neuron < words.shape[2] * lanes:
                added = zero
                for part in range(along):
                    added += totals[part, own % lanes, own // lanes]
                if pair < 0:
                    token_sums[row, neuron] += added
                else:
                    pair_sums[pair, neuron] += added

    return add_to_tables
