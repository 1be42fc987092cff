"""`capture_signs` on the CPU: Numba, parallel over neurons, vectorised along them.

1. A thread has a block of neurons and goes through the batch's excerpts, two tokens at a time.
2. Each activation is parted by the sign of up, and each part into what is above and below 0: four
   numbers, of which three are 0, so that no branch is taken.
3. At an excerpt's end a class's largest meets the block's copy of the worst that is kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange, typeof

from fastexplain.kernels import scalars
from fastexplain.kernels.cpu.capture import insert
from fastexplain.kernels.cpu.words import block_width_of, float_of, host_bits
from fastexplain.kernels.signs import Signs
from fastexplain.kernels.summary import Batch, Preactivations, moved

# Of neurons that a thread folds at a time: their sums and largest are 108 bytes a neuron, which are
# to stay in the first-level cache.
_WIDEST_BLOCK = 384

_precedes = njit(scalars.precedes)


def capture_signs(acts: np.ndarray, batch: Batch, signs: Signs, pre: Preactivations) -> None:
    """See `fastexplain.kernels.capture_signs`."""
    _fold(*_arguments(acts, batch, signs, pre))


def compile_signs(acts: np.ndarray, batch: Batch, signs: Signs, pre: Preactivations) -> None:
    """Compile what `capture_signs` of such arrays, of any shape, will run; nothing is run."""
    _fold.compile(tuple(map(typeof, _arguments(acts, batch, signs, pre))))


def _arguments(
    acts: np.ndarray, batch: Batch, signs: Signs, pre: Preactivations
) -> tuple[Any, ...]:
    """Those of `_fold`."""
    bits, half = host_bits(acts)
    assert pre.up is not None
    up, _ = host_bits(pre.up)
    kept = moved(signs, lambda array: host_bits(array)[0])
    width = min(block_width_of(acts.shape[2]), _WIDEST_BLOCK)
    return width, bits, half, up, pre.up_start, batch.ids, batch.skip, *kept


@njit
def _parted(x, above):
    """A float64 activation as four of which it is one, by class, and the others are 0."""
    on = x if above else 0.0
    off = x - on
    high, last = max(on, 0.0), max(off, 0.0)
    return high, off - last, on - high, last


# Two loops in each: of more rows, which might overlap, LLVM would have to compare over 128 pairs
# first, and does not vectorise (as one loop 21 ms of CPU for [64, 64, 1536], as two 5 to 10).
@njit
def _fold_one(row, up_row, half, largest, sums, squares, counts):
    """Fold one token of w neurons into their classes, which are in the order of `CLASSES`.

    `row` and `up_row` are `[w]` as `_fold` takes activations; `largest`, `sums` and `squares` are
    float64 `[4, w]`. `counts`, int32 `[3, w]`, has the first two classes' tokens, and those at
    which up is above 0.
    """
    for j in range(len(row)):
        x, above = np.float64(float_of(row[j], half)), float_of(up_row[j], half) > 0
        p, q, r, s = _parted(x, above)
        largest[0, j], largest[1, j] = max(largest[0, j], p), max(largest[1, j], -q)
        largest[2, j], largest[3, j] = max(largest[2, j], -r), max(largest[3, j], s)
        counts[0, j] += p > 0
        counts[1, j] += q < 0
        counts[2, j] += above
    for j in range(len(row)):
        x, above = np.float64(float_of(row[j], half)), float_of(up_row[j], half) > 0
        p, q, r, s = _parted(x, above)
        sums[0, j] += p
        sums[1, j] += q
        sums[2, j] += r
        sums[3, j] += s
        squares[0, j] += p * x
        squares[1, j] += q * x
        squares[2, j] += r * x
        squares[3, j] += s * x


@njit
def _fold_two(row_a, row_b, up_a, up_b, half, largest, sums, squares, counts):
    """`_fold_one` of two tokens: what is kept is loaded and stored once."""
    for j in range(len(row_a)):
        x, y = np.float64(float_of(row_a[j], half)), np.float64(float_of(row_b[j], half))
        above_x, above_y = float_of(up_a[j], half) > 0, float_of(up_b[j], half) > 0
        p, q, r, s = _parted(x, above_x)
        t, u, v, w = _parted(y, above_y)
        largest[0, j] = max(largest[0, j], max(p, t))
        largest[1, j] = max(largest[1, j], -min(q, u))
        largest[2, j] = max(largest[2, j], -min(r, v))
        largest[3, j] = max(largest[3, j], max(s, w))
        counts[0, j] += np.int32(p > 0) + np.int32(t > 0)
        counts[1, j] += np.int32(q < 0) + np.int32(u < 0)
        counts[2, j] += np.int32(above_x) + np.int32(above_y)
    for j in range(len(row_a)):
        x, y = np.float64(float_of(row_a[j], half)), np.float64(float_of(row_b[j], half))
        p, q, r, s = _parted(x, float_of(up_a[j], half) > 0)
        t, u, v, w = _parted(y, float_of(up_b[j], half) > 0)
        sums[0, j] += p + t
        sums[1, j] += q + u
        sums[2, j] += r + v
        sums[3, j] += s + w
        squares[0, j] += p * x + t * y
        squares[1, j] += q * x + u * y
        squares[2, j] += r * x + v * y
        squares[3, j] += s * x + w * y


@njit(parallel=True, cache=True, nogil=True)
def _fold(
    block_width, acts, half, up, up_start, excerpts, skip,
    keys, ids, kept_acts, kept_ups, tokens, sums,
):  # fmt: skip
    """Fold a batch into the classes, which are changed in place.

    Letters are those of `fastexplain.kernels`.

    Args:
        block_width: int, neurons that a thread folds at a time.
        acts: `[B, L, F]`, float32, or uint16 for the bits of 16-bit numbers.
        half: bool, whether 16 bits are float16; else they are bfloat16.
        up, up_start: `[B, L, W]` as `acts`, and the first of F columns.
        excerpts, skip: int32 `[B]`, and the first token that is counted.
        keys and on: those of a `Signs`, in its order, float16 as uint16.
    """
    length, neurons = acts.shape[1], acts.shape[2]
    lead = length - kept_acts.shape[3]
    classes = keys.shape[1]
    blocks = (neurons + block_width - 1) // block_width
    for block in prange(blocks):
        start = block * block_width
        stop = min(start + block_width, neurons)
        width = stop - start
        largest, worst = np.empty((classes, width)), np.empty((classes, width))
        block_sums, block_squares = np.zeros((classes, width)), np.zeros((classes, width))
        counts = np.zeros((3, width), np.int32)
        for place in range(classes):
            for j in range(width):
                worst[place, j] = keys[start + j, place, 0]
        for position in range(len(excerpts)):
            excerpt = excerpts[position]
            largest[:] = 0
            first = lead + skip
            if (length - first) % 2:
                _fold_one(
                    acts[position, first, start:stop],
                    up[position, first, up_start + start : up_start + stop],
                    half, largest, block_sums, block_squares, counts,
                )  # fmt: skip
                first += 1
            for t in range(first, length, 2):
                _fold_two(
                    acts[position, t, start:stop],
                    acts[position, t + 1, start:stop],
                    up[position, t, up_start + start : up_start + stop],
                    up[position, t + 1, up_start + start : up_start + stop],
                    half, largest, block_sums, block_squares, counts,
                )  # fmt: skip
            for place in range(classes):
                for j in range(width):
                    key, neuron = np.float32(largest[place, j]), start + j
                    if key <= 0 or key < worst[place, j]:
                        continue
                    own_keys, own_ids = keys[neuron, place], ids[neuron, place]
                    if not _precedes(key, excerpt, own_keys[0], own_ids[0]):
                        continue
                    slot = insert(
                        own_keys, own_ids, kept_acts[neuron, place],
                        key, excerpt, acts, position, lead, neuron,
                    )  # fmt: skip
                    worst[place, j] = own_keys[0]
                    own_ups = kept_ups[neuron, place]
                    for byte in range(own_ups.shape[1]):
                        own_ups[0, byte] = own_ups[slot, byte]
                        packed = 0
                        for t in range(8 * byte, min(8 * byte + 8, length - lead)):
                            x = float_of(up[position, lead + t, up_start + neuron], half)
                            packed |= int(x > 0) << (t - 8 * byte)
                        own_ups[slot, byte] = packed
        counted = len(excerpts) * (length - lead - skip)
        for j in range(width):
            neuron, above = start + j, counts[2, j]
            tokens[0, neuron] += counts[0, j]
            tokens[1, neuron] += counts[1, j]
            tokens[2, neuron] += above - counts[0, j]
            tokens[3, neuron] += counted - above - counts[1, j]
        for place in range(classes):
            for j in range(width):
                sums[0, place, start + j] += block_sums[place, j]
                sums[1, place, start + j] += block_squares[place, j]
