"""The kernels for a GPU: Numba CUDA, threads side by side along the neurons.

`capture` is a handful of launches on the default stream, none of which waits for another on the
host:
1. `fold` reads every counted activation once. A thread has the neurons of one machine word and a
   chunk of the excerpts. It leaves the chunk's sums in scratch, counts the histogram, and marks the
   excerpts that pass the gate as it stood before the batch, with their keys.
2. `_add_up` adds the chunks' sums in order, so that they don't depend on how the device schedules.
3. `_insert`, a thread a neuron, takes the marked excerpts and copies the activations of those that
   are still among the K best. Past the first batches hardly any are marked.
4. `add_to_tables`, a thread per (token row, word of neurons), and `copy` of random excerpts.

The histogram is counted by integer atomics: their result is the same in every order.
"""

# mypy: no-check-untyped-defs
# (compiled code has no annotations; Numba infers its types)
from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import cuda, float32, float64, int32, uint16, uint32, uint64

from fastexplain.kernels import scalars
from fastexplain.kernels.scalars import NO_ID
from fastexplain.kernels.summary import MOMENTS, Batch, Summary, moved

# Numba warns of every launch of fewer than 128 blocks; the small ones here follow a large one.
warnings.filterwarnings("ignore", "Grid size .* low occupancy")

_THREADS = 128
"""Threads of a block."""
_NEURON_THREADS = 64
"""The same where there is a thread a neuron: few threads, which smaller blocks spread wider."""
_COPY_BLOCKS = 8
"""Blocks that copy one random excerpt; all but a few of a batch's have nothing to copy."""
_WORD_BYTES = 8
"""What a thread loads at once: 4 neurons of 16 bits, 2 of 32; a warp's load is 256 bytes."""
_UNROLL = 4
"""Tokens whose loads a thread has in flight together."""
_WANTED_THREADS = 1 << 17
"""Threads that fill a large GPU twice: on an H200, 132 multiprocessors of 512 at `fold`'s 118
registers. Excerpts are cut into chunks by this number, not by the device's own, so that every
device adds in the same order."""
_CHUNK = (4, 32)
"""Fewest and most excerpts of a chunk. A chunk's sums are 52 bytes a neuron, a tenth of what 4
excerpts of 64 tokens have in bfloat16; 32 is the number of bits of a mark."""

_HALF_LIMIT = np.float32(65536.0)
"""Infinity and NaN in float16 are read as this or more; the largest finite value is 65504."""

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


def capture(acts: Any, batch: Batch, summary: Summary) -> None:
    """See `fastexplain.kernels.capture`. All arrays are on the current device.

    Everything is queued on the default stream; captures share their scratch and so must not run
    on several. Arrays that are Numba's already are taken as they are.
    """
    acts, batch, summary = _view(acts), moved(batch, _view), moved(summary, _view)
    lanes = _lanes(acts, summary.random_acts)
    for kernel, blocks, threads, arguments in _launches(acts, batch, summary, lanes, _scratch):
        kernel[blocks, threads](*arguments)


def _view(array: Any) -> Any:
    """An array as Numba's; 16-bit integers of either sign are bfloat16."""
    if not getattr(array, "__cuda_ndarray__", False):
        # No synchronisation: whoever queued the work on the array is on this stream too.
        array = cuda.as_cuda_array(array, sync=False)
    return array.view(np.uint16) if array.dtype == np.int16 else array


def _lanes(acts: Any, random_acts: Any) -> int:
    """How many neurons a thread can take at a time, by their number and the arrays' alignment."""
    row = acts.shape[2] * acts.dtype.itemsize
    if hasattr(acts, "__cuda_array_interface__"):
        for array in (acts, random_acts):
            row |= array.__cuda_array_interface__["data"][0]
    word = min(_WORD_BYTES, row & -row)
    return max(1, word // acts.dtype.itemsize)


@functools.lru_cache(maxsize=4)
def _kept_scratch(context: Any, *shape: Any) -> _Scratch:
    return _Scratch.make(cuda.device_array, *shape)


def _scratch(*shape: Any) -> _Scratch:
    """Scratch that is kept between batches, for freeing device memory waits for the device."""
    return _kept_scratch(cuda.current_context(), *shape)


def _launches(
    acts: Any, batch: Batch, summary: Summary, lanes: int, scratch_of: Callable[..., _Scratch]
) -> Iterator[tuple[Any, tuple[int, int], int, tuple[Any, ...]]]:
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
    chunk = min(max(excerpts * width // _WANTED_THREADS, _CHUNK[0]), _CHUNK[1])
    chunks = -(-excerpts // chunk)
    scratch = scratch_of(excerpts, chunks, neurons, summary.bottom_keys.shape[1] > 0)
    wide, narrow = -(-width // _THREADS), -(-neurons // _NEURON_THREADS)

    yield (
        _fold(name, lanes), (wide, chunks), _THREADS,
        (
            words, batch.ids, lead + batch.skip, chunk, np.uint64(summary.seed),
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
    if batch.run_tokens.shape[0]:
        yield (
            _add_to_tables(name, lanes, tokens), (batch.run_tokens.shape[0], wide), _THREADS,
            (
                words, lead, batch.positions, batch.run_starts, batch.run_tokens, batch.run_pairs,
                summary.token_sums, summary.pair_sums,
            ),
        )  # fmt: skip


def _word_type(name: str, lanes: int) -> Any:
    """Numba's type of a word of activations."""
    return {2: uint16, 4: uint32, 8: uint64}[(4 if name == "float32" else 2) * lanes]


def _lane_reader(name: str) -> Any:
    """The device function that takes one neuron's activation out of a word, as float32."""
    width = np.uint64(32 if name == "float32" else 16)
    mask = np.uint64((1 << int(width)) - 1)

    def bits_of(word, lane):
        return np.uint32((np.uint64(word) >> (np.uint64(lane) * width)) & mask)

    bits_of = cuda.jit(device=True)(bits_of)

    def of_float32(word, lane):
        return bits_of(word, lane).view(np.float32)

    def of_bfloat16(word, lane):
        return np.uint32(bits_of(word, lane) << np.uint32(16)).view(np.float32)

    def of_float16(word, lane):
        # Exponent and mantissa in float32's places, then the difference in bias as a factor, which
        # also sets subnormals right. NaN and infinity come out as `_HALF_LIMIT` and above.
        bits = bits_of(word, lane)
        magnitude = (bits & np.uint32(0x7FFF)) << np.uint32(13)
        sign = (bits & np.uint32(0x8000)) << np.uint32(16)
        return np.uint32(magnitude | sign).view(np.float32) * np.float32(2.0**112)

    readers = {"float32": of_float32, "uint16": of_bfloat16, "float16": of_float16}
    return cuda.jit(device=True)(readers[name])


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
def _fold(name: str, lanes: int) -> Any:
    """The kernel that reads activations of a dtype, `lanes` of them a word.

    The sums are 7 float64 instructions an activation. By arithmetic, not by measurement, an H200
    has the time for 6.9 while it reads a bfloat16 at 4.3 TB/s (132 multiprocessors, 64 a cycle,
    1.75 GHz): about even, so sums aren't rounded to float32 for speed. All else is float32.
    """
    value_of = _lane_reader(name)
    limit = _HALF_LIMIT if name == "float16" else np.float32(np.inf)
    zero, infinity = np.float32(0), np.float32(np.inf)
    unroll, word_type = _UNROLL, _word_type(name, lanes)

    @cuda.jit(device=True)
    def fold_word(word, largest, smallest, positive, powers):
        for lane in range(lanes):
            x = value_of(word, lane)
            largest[lane] = max(largest[lane], x)
            smallest[lane] = min(smallest[lane], x)
            wide = np.float64(x)
            square = wide * wide
            powers[lane, 0] += wide
            powers[lane, 1] += square
            powers[lane, 2] += square * wide
            powers[lane, 3] += square * square
            if x > zero:
                powers[lane, 4] += wide
                positive[lane] += np.int32(1)

    @cuda.jit
    def fold(
        words,
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
        place = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        if place >= words.shape[2]:
            return
        part = cuda.blockIdx.y
        start = part * chunk
        length = words.shape[1]
        neuron = place * lanes

        loaded = cuda.local.array(unroll, word_type)
        powers = cuda.local.array((lanes, MOMENTS), float64)
        positive = cuda.local.array(lanes, int32)
        low, high = cuda.local.array(lanes, float32), cuda.local.array(lanes, float32)
        top_mark, bottom_mark = cuda.local.array(lanes, uint32), cuda.local.array(lanes, uint32)
        largest, smallest = cuda.local.array(lanes, float32), cuda.local.array(lanes, float32)
        for lane in range(lanes):
            for power in range(MOMENTS):
                powers[lane, power] = 0.0
            positive[lane] = 0
            low[lane], high[lane] = infinity, -infinity
            top_mark[lane], bottom_mark[lane] = 0, 0

        for position in range(start, min(start + chunk, words.shape[0])):
            for lane in range(lanes):
                largest[lane], smallest[lane] = -infinity, infinity
            t = first
            while t + unroll <= length:
                for ahead in range(unroll):
                    loaded[ahead] = words[position, t + ahead, place]
                for ahead in range(unroll):
                    fold_word(loaded[ahead], largest, smallest, positive, powers)
                t += unroll
            while t < length:
                fold_word(words[position, t, place], largest, smallest, positive, powers)
                t += 1

            excerpt = ids[position]
            finite = True
            for lane in range(lanes):
                # A float32 or bfloat16 that is not finite spoils its square, and nothing else does.
                finite = (
                    finite
                    and powers[lane, 1] < infinity
                    and largest[lane] < limit
                    and smallest[lane] > -limit
                )
            if not finite:
                cuda.atomic.min(fault, 0, excerpt)
                break

            mark = np.uint32(1) << np.uint32(position - start)
            own_hash = _hash(np.uint64(excerpt), seed)
            for lane in range(lanes):
                own = neuron + lane
                low[lane] = min(low[lane], smallest[lane])
                high[lane] = max(high[lane], largest[lane])
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
                part_powers[part, power, own] = powers[lane, power]
            part_positive[part, own] = positive[lane]
            part_minimum[part, own], part_maximum[part, own] = low[lane], high[lane]
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
def _add_to_tables(name: str, lanes: int, tokens: int) -> Any:
    """The kernel that adds a batch to the tables; `tokens` is a constant of it, for its divisions.

    The first run of a token row stands for all of them, so that one thread has the row to itself;
    runs without a token row stand for themselves.
    """
    value_of = _lane_reader(name)
    zero = np.float32(0)
    unroll, word_type = _UNROLL, _word_type(name, lanes)

    @cuda.jit(device=True)
    def word_at(words, lead, position, place):
        position = np.uint32(position)
        return words[position // np.uint32(tokens), lead + position % np.uint32(tokens), place]

    @cuda.jit(device=True)
    def add_word(word, run_sum):
        for lane in range(lanes):
            run_sum[lane] += max(value_of(word, lane), zero)

    @cuda.jit
    def add_to_tables(
        words, lead, positions, run_starts, run_tokens, run_pairs, token_sums, pair_sums
    ):
        run = cuda.blockIdx.x
        place = cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x
        token = run_tokens[run]
        if place >= words.shape[2] or (token >= 0 and run > 0 and run_tokens[run - 1] == token):
            return
        neuron = place * lanes
        loaded = cuda.local.array(unroll, word_type)
        token_sum, run_sum = cuda.local.array(lanes, float32), cuda.local.array(lanes, float32)
        for lane in range(lanes):
            token_sum[lane] = zero
        more = True
        while more:
            for lane in range(lanes):
                run_sum[lane] = zero
            at, stop = run_starts[run], run_starts[run + 1]
            while at + unroll <= stop:
                for ahead in range(unroll):
                    loaded[ahead] = word_at(words, lead, positions[at + ahead], place)
                for ahead in range(unroll):
                    add_word(loaded[ahead], run_sum)
                at += unroll
            while at < stop:
                add_word(word_at(words, lead, positions[at], place), run_sum)
                at += 1
            pair = run_pairs[run]
            for lane in range(lanes):
                token_sum[lane] += run_sum[lane]
                if pair >= 0:
                    pair_sums[pair, neuron + lane] += run_sum[lane]
            run += 1
            more = token >= 0 and run < run_tokens.shape[0] and run_tokens[run] == token
        if token >= 0:
            for lane in range(lanes):
                token_sums[token, neuron + lane] += token_sum[lane]

    return add_to_tables
