"""`capture_signs` on the CPU: Numba, parallel over neurons, vectorised along them.

1. A thread has a block of neurons and goes through the batch's excerpts token by token.
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
    width = block_width_of(acts.shape[2])
    return width, bits, half, up, pre.up_start, batch.ids, batch.skip, *kept


@njit
def _fold_row(row, up_row, half, largest, sums, squares, counts):
    """Fold one token of w neurons into their classes, which are in the order of `CLASSES`.

    `row` and `up_row` are `[w]` as `_fold` takes activations; `largest`, float32, and `sums` and
    `squares`, float64, are `[4, w]`. `counts`, int32 `[3, w]`, has the first two classes' tokens,
    and those at which up is above 0.
    """
    zero = np.float32(0)
    for j in range(len(row)):
        x = float_of(row[j], half)
        above = float_of(up_row[j], half) > 0
        on, off = x if above else zero, zero if above else x
        a, b, c, d = max(on, zero), min(off, zero), min(on, zero), max(off, zero)
        largest[0, j] = max(largest[0, j], a)
        largest[1, j] = max(largest[1, j], -b)
        largest[2, j] = max(largest[2, j], -c)
        largest[3, j] = max(largest[3, j], d)
        counts[0, j] += a > 0
        counts[1, j] += b < 0
        counts[2, j] += above
        wide_a, wide_b, wide_c, wide_d = np.float64(a), np.float64(b), np.float64(c), np.float64(d)
        sums[0, j] += wide_a
        sums[1, j] += wide_b
        sums[2, j] += wide_c
        sums[3, j] += wide_d
        squares[0, j] += wide_a * wide_a
        squares[1, j] += wide_b * wide_b
        squares[2, j] += wide_c * wide_c
        squares[3, j] += wide_d * wide_d


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
        largest, worst = np.empty((classes, width), np.float32), np.empty((classes, width))
        powers, counts = np.zeros((2, classes, width)), np.zeros((3, width), np.int32)
        for place in range(classes):
            for j in range(width):
                worst[place, j] = keys[start + j, place, 0]
        for position in range(len(excerpts)):
            excerpt = excerpts[position]
            largest[:] = 0
            for t in range(lead + skip, length):
                _fold_row(
                    acts[position, t, start:stop],
                    up[position, t, up_start + start : up_start + stop],
                    half, largest, powers[0], powers[1], counts,
                )  # fmt: skip
            for place in range(classes):
                for j in range(width):
                    key, neuron = largest[place, j], start + j
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
        for power in range(2):
            for place in range(classes):
                for j in range(width):
                    sums[power, place, start + j] += powers[power, place, j]
