"""`capture` on a GPU: Numba CUDA, threads side by side along the neurons.

It is a handful of launches on one stream, none of which waits for another on the host:
1. `fold` reads every activation once, or the pre-activations, of which it then makes activations
   and writes them out. A thread has the neurons of one machine word and a chunk of the excerpts. It
   leaves the chunk's sums in scratch, counts the histogram, and marks the excerpts that pass the
   gate as it stood before the batch, with their keys.
2. `_add_up` adds the chunks' sums in order, so that they don't depend on how the device schedules.
3. `_insert`, a thread a neuron, takes the marked excerpts and copies the activations of those that
   are still among the K best. Past the first batches hardly any are marked.
4. `add_to_tables`, a block per table row and 32 words of neurons, and `copy` of random excerpts.

The histogram is counted by integer atomics: their result is the same in every order. All launches
depend on shapes alone, so that a capture can be part of a CUDA graph, once it has run outside.

Bytes and operations, for bfloat16 through one nonlinearity: 2 bytes in and 2 out. An H200 moves
4.3 TB/s (measured by a copy) with 132 multiprocessors at 1.75 GHz, each of which issues 128
instructions a cycle: in the time that an activation takes in memory there is room for 27 of them.
So sums are float32 within an excerpt, and float64 only from excerpt to excerpt: at 7 float64
operations an activation (half rate, and conversions at an eighth) these alone would take as long.
As compiled for compute capability 9.0 the loop has 25 instructions an activation with gelu_tanh,
26 with silu and a gate, which has 6 bytes to move, and 37 with gelu, which will not keep up.
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
from fastexplain.kernels.cuda_words import lane_reader, nonlinearity_of, word_maker, word_type_of
from fastexplain.kernels.scalars import NO_ID
from fastexplain.kernels.summary import MOMENTS, Batch, Preactivations, Summary, moved

# Numba warns of every launch of fewer than 128 blocks; the small ones here follow a large one.
warnings.filterwarnings("ignore", "Grid size .* low occupancy")

_THREADS = 128
"""Threads of a block."""
_NEURON_THREADS = 64
"""The same where there is a thread a neuron: few threads, which smaller blocks spread wider."""
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
_WANTED_THREADS = 1 << 17
"""Threads that fill a large GPU twice: on an H200, 132 multiprocessors of 512 at `fold`'s 128
registers. Excerpts are cut into chunks by this number, not by the device's own, so that every
device adds in the same order."""
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

    Captures share their scratch, so that those of one process must not overlap on several streams.
    Arrays that are Numba's already (see `viewed`) are taken as they are.
    """
    acts, batch, summary = view(acts), moved(batch, view), moved(summary, view)
    pre = None if pre is None else moved(pre, view)
    lanes = _lanes(acts, summary.random_acts, pre)
    queue = cuda.external_stream(stream) if stream else 0
    launches = _launches(acts, batch, summary, pre, lanes, _packing(), _scratch)
    for kernel, blocks, threads, arguments in launches:
        kernel[blocks, threads, queue](*arguments)


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


def _packing() -> bool:
    """Whether the device rounds two float32 to 16 bits in one instruction."""
    if ptx.SIMULATED:
        return False
    return cuda.get_current_device().compute_capability >= ptx.PACKING_SINCE


@functools.cache
def _kept_scratch(device: int, *shape: Any) -> _Scratch:
    return _Scratch.make(cuda.device_array, *shape)


def _scratch(*shape: Any) -> _Scratch:
    """Scratch that is kept: freeing device memory waits for the device, and a graph may use it."""
    device = 0 if ptx.SIMULATED else cuda.get_current_device().id
    return _kept_scratch(device, *shape)


def _launches(
    acts: Any,
    batch: Batch,
    summary: Summary,
    pre: Preactivations | None,
    lanes: int,
    packing: bool,
    scratch_of: Callable[..., _Scratch],
) -> Iterator[tuple[Any, Any, Any, tuple[Any, ...]]]:
    """The launches of a capture in their order: kernel, blocks, threads a block, arguments."""
    if acts.dtype != summary.top_acts.dtype:
        raise TypeError(f"activations are {acts.dtype}, the summary {summary.top_acts.dtype}")
    excerpts, length, neurons = acts.shape
    tokens = summary.top_acts.shape[2]
    lead = length - tokens
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

    yield (
        _fold(name, lanes, nonlinearity, up is not None, packing, _THREADS),
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
                _insert, (narrow, 1), _NEURON_THREADS,
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
def _count(histogram, histogram_ids, neuron, largest, excerpt, own_hash, seed):
    """Count an excerpt in the histogram, and let it stand for its bin if its hash is the least."""
    place = _bin(largest.view(np.int32))
    cuda.atomic.add(histogram, (neuron, place), np.int32(1))
    other = histogram_ids[neuron, place]
    while other == NO_ID or own_hash < _hash(np.uint64(other), seed):
        found = cuda.atomic.cas(histogram_ids, (neuron, place), other, excerpt)
        if found == other:
            break
        other = found


@functools.cache
def _fold(
    name: str, lanes: int, nonlinearity: str | None, gated: bool, packing: bool, threads: int
) -> Any:
    """The kernel that reads activations of a dtype, or makes them, `lanes` of them a word.

    Arrays are flat and indices unsigned: Numba looks for negative ones among the others, two
    instructions an activation. What is added up over a chunk lies in shared memory, since with it
    in registers there would be room for half as many threads.
    """
    value_of = lane_reader(name)
    zero, infinity = np.float32(0), np.float32(np.inf)
    loads, ups = (_LOADS // 2, _LOADS // 2) if gated else (_LOADS, 1)
    word_type = word_type_of(name, lanes)
    activated = nonlinearity is not None
    f = nonlinearity_of(nonlinearity, name) if activated else None
    make_word = word_maker(name, lanes, packing)

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
        for lane in range(lanes):
            x = value_of(word, lane)
            largest[lane] = max(largest[lane], x)
            smallest[lane] = min(smallest[lane], x)
            square = x * x
            powers[lane, 0] += x
            powers[lane, 1] += square
            powers[lane, 2] += square * x
            powers[lane, 3] += square * square
            powers[lane, 4] += max(x, zero)
            positive[lane] += int32(x > zero)

    @cuda.jit(**({} if ptx.SIMULATED else {"max_registers": _REGISTERS}))
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
        gate_step, up_step, step = uint64(gate_width), uint64(up_width), uint64(width)
        row = uint64(start) * uint64(length)
        gate_at = row * gate_step + uint64(gate_start) + uint64(place)
        up_at = row * up_step + uint64(up_start) + uint64(place)
        at = row * step + uint64(place)

        loaded, loaded_up = cuda.local.array(loads, word_type), cuda.local.array(ups, word_type)
        sums = cuda.local.array((lanes, MOMENTS), float32)
        positive = cuda.local.array(lanes, int32)
        top_mark, bottom_mark = cuda.local.array(lanes, uint32), cuda.local.array(lanes, uint32)
        largest, smallest = cuda.local.array(lanes, float32), cuda.local.array(lanes, float32)
        powers = cuda.shared.array((lanes, MOMENTS, threads), float64)
        low = cuda.shared.array((lanes, threads), float32)
        high = cuda.shared.array((lanes, threads), float32)
        for lane in range(lanes):
            for power in range(MOMENTS):
                powers[lane, power, thread] = 0.0
            positive[lane] = 0
            low[lane, thread], high[lane, thread] = infinity, -infinity
            top_mark[lane], bottom_mark[lane] = 0, 0

        for position in range(start, stop):
            for lane in range(lanes):
                largest[lane], smallest[lane] = -infinity, infinity
                for power in range(MOMENTS):
                    sums[lane, power] = zero
            for _ in range(first):
                if activated:
                    words[at] = activate(gate[gate_at], up[up_at])
                gate_at, up_at, at = gate_at + gate_step, up_at + up_step, at + step
            t = first
            while t + loads <= length:
                for ahead in range(loads):
                    loaded[ahead] = gate[gate_at]
                    gate_at += gate_step
                    if gated:
                        loaded_up[ahead] = up[up_at]
                        up_at += up_step
                for ahead in range(loads):
                    word = activate(loaded[ahead], loaded_up[ahead if gated else 0])
                    if activated:
                        words[at] = word
                        at += step
                    fold_word(word, largest, smallest, positive, sums)
                t += loads
            while t < length:
                word = activate(gate[gate_at], up[up_at] if gated else gate[gate_at])
                if activated:
                    words[at] = word
                    at += step
                fold_word(word, largest, smallest, positive, sums)
                gate_at += gate_step
                if gated:
                    up_at += up_step
                t += 1

            excerpt = ids[position]
            finite = True
            for lane in range(lanes):
                # max and min pass over NaN, which the sum does not.
                total = sums[lane, 0]
                finite = (
                    finite
                    and total == total
                    and largest[lane] < infinity
                    and smallest[lane] > -infinity
                )
                for power in range(MOMENTS):
                    powers[lane, power, thread] += float64(sums[lane, power])
            if not finite:
                cuda.atomic.min(fault, 0, excerpt)
                break

            mark = np.uint32(1) << np.uint32(position - start)
            own_hash = _hash(np.uint64(excerpt), seed)
            for lane in range(lanes):
                own = neuron + lane
                low[lane, thread] = min(low[lane, thread], smallest[lane])
                high[lane, thread] = max(high[lane, thread], largest[lane])
                key = largest[lane]
                if top_keys.shape[1] > 0 and _precedes(
                    key, excerpt, top_keys[own, 0], top_ids[own, 0]
                ):
                    top_mark[lane] |= mark
                    own_top_keys[position, own] = key
                negated = -smallest[lane]
                if bottom_keys.shape[1] > 0 and _precedes(
                    negated, excerpt, bottom_keys[own, 0], bottom_ids[own, 0]
                ):
                    bottom_mark[lane] |= mark
                    own_bottom_keys[position, own] = negated
                _count(histogram, histogram_ids, own, key, excerpt, own_hash, seed)

        for lane in range(lanes):
            own = neuron + lane
            for power in range(MOMENTS):
                part_powers[part, power, own] = powers[lane, power, thread]
            part_positive[part, own] = positive[lane]
            part_minimum[part, own] = low[lane, thread]
            part_maximum[part, own] = high[lane, thread]
            top_marks[part, own], bottom_marks[part, own] = top_mark[lane], bottom_mark[lane]

    return fold


@cuda.jit
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


@cuda.jit
def _insert(acts, ids, lead, chunk, marks, own_keys, keys, kept_ids, rows):
    """Put the marked excerpts of a neuron among its K best, if they are; slot 0 has the worst."""
    neuron = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if neuron >= keys.shape[0]:
        return
    slots, tokens = rows.shape[1], rows.shape[2]
    for part in range(marks.shape[0]):
        mark = marks[part, neuron]
        position = part * chunk
        while mark != 0:
            if mark & np.uint32(1):
                key, excerpt = own_keys[position, neuron], ids[position]
                if _precedes(key, excerpt, keys[neuron, 0], kept_ids[neuron, 0]):
                    worst, worst_key, worst_id = 0, key, excerpt
                    for slot in range(1, slots):
                        other_key, other_id = keys[neuron, slot], kept_ids[neuron, slot]
                        if _precedes(worst_key, worst_id, other_key, other_id):
                            worst, worst_key, worst_id = slot, other_key, other_id
                    if worst > 0:
                        keys[neuron, 0], kept_ids[neuron, 0] = worst_key, worst_id
                        for t in range(tokens):
                            rows[neuron, 0, t] = rows[neuron, worst, t]
                    keys[neuron, worst], kept_ids[neuron, worst] = key, excerpt
                    for t in range(tokens):
                        rows[neuron, worst, t] = acts[position, lead + t, neuron]
            mark = np.uint32(mark >> np.uint32(1))
            position += 1


@cuda.jit
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

    @cuda.jit
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
