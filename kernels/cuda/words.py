"""Machine words of activations in CUDA kernels: taken apart, computed on, put together again."""

# mypy: no-check-untyped-defs
# (compiled code has no annotations; Numba infers its types)
from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import cuda, float32, int32, uint16, uint32, uint64

from fastexplain.kernels import scalars
from fastexplain.kernels.cuda import ptx


def word_type_of(name: str, lanes: int) -> Any:
    """Numba's type of a word of activations."""
    return {2: uint16, 4: uint32, 8: uint64}[(4 if name == "float32" else 2) * lanes]


def lanes_of(places: int, arrays: Sequence[Any], most: int) -> int:
    """How many neurons of such arrays a thread can take at a time, in a word of `most` bytes.

    `places` has a bit of each number of neurons and first column, `arrays` are `[.., .., W]` of one
    dtype: what all of these and the arrays' places in memory are multiples of.
    """
    itemsize = arrays[0].dtype.itemsize
    bits = places * itemsize
    for array in arrays:
        bits |= array.shape[2] * itemsize
        if hasattr(array, "__cuda_array_interface__"):
            bits |= array.__cuda_array_interface__["data"][0]
    return max(1, min(most, bits & -bits) // itemsize)


def lane_reader(name: str) -> Any:
    """The device function that takes one neuron's activation out of a word, as float32."""

    def of_float32(word, lane):
        return np.uint32(np.uint64(word) >> (np.uint64(lane) * np.uint64(32))).view(np.float32)

    # 16 bits are taken from the pair that they are in: one instruction each.
    def pair_of(word, lane):
        return np.uint32(np.uint64(word) >> (np.uint64(lane // 2) * np.uint64(32)))

    pair_of = cuda.jit(device=True)(pair_of)

    def of_bfloat16(word, lane):
        pair = pair_of(word, lane)
        bits = pair & np.uint32(0xFFFF0000) if lane % 2 else pair << np.uint32(16)
        return np.uint32(bits).view(np.float32)

    def of_float16(word, lane):
        pair = pair_of(word, lane)
        return ptx.high_float16(pair) if lane % 2 else ptx.low_float16(pair)

    readers = {"float32": of_float32, "uint16": of_bfloat16, "float16": of_float16}
    return cuda.jit(device=True)(readers[name])


def _lane_writer(name: str) -> Any:
    """The device function that rounds a float32 to an activation's bits, ties to even."""

    def of_float32(x):
        return x.view(np.uint32)

    writers = {
        "float32": of_float32, "uint16": scalars.bfloat16_bits, "float16": scalars.float16_bits
    }  # fmt: skip
    return cuda.jit(device=True)(writers[name])


@functools.cache
def nonlinearity_of(nonlinearity: str, name: str) -> Any:
    """The device function of that name.

    In float32 exp is CUDA's, to 2 ulp. In 16 bits the hardware's power of two takes its place,
    and its reciprocal that of a division: off by a few ulp of float32, far below half an ulp of
    what is written.
    """
    if name == "float32":
        base = math.e

        def power(x):
            return np.float32(math.exp(x))

        def divide(a, b):
            return a / b
    else:
        base = 2.0

        def power(x):
            return ptx.exp2(x)

        def divide(a, b):
            return a * ptx.reciprocal(b)

    jit = cuda.jit(device=True)
    return scalars.nonlinearity(nonlinearity, jit, jit(power), jit(divide), base)


@functools.cache
def word_maker(name: str, lanes: int, packing: bool) -> Any:
    """The device function that rounds `lanes` float32, in an array, and makes a word of them."""
    word_type = word_type_of(name, lanes)
    bits = uint64(32 if name == "float32" else 16)
    bits_of = _lane_writer(name)
    pack = ptx.pack_bfloat16 if name == "uint16" else ptx.pack_float16

    def one_by_one(values):
        word = uint64(0)
        for lane in range(lanes):
            word |= uint64(bits_of(values[lane])) << (uint64(lane) * bits)
        return word_type(word)

    def by_twos(values):
        word = uint64(0)
        for lane in range(0, lanes, 2):
            high = values[lane + 1] if lane + 1 < lanes else np.float32(0)
            word |= uint64(pack(high, values[lane])) << (uint64(lane) * bits)
        return word_type(word)

    return cuda.jit(device=True)(by_twos if packing and name != "float32" else one_by_one)


@dataclass(frozen=True)
class Extremes:
    """Largest and smallest activation and how many are above 0, of each lane: how they are kept.

    Each is an array of `size` numbers of a thread.

    Attributes:
        type, count_type: Numba's types of the extremes and of the counts.
        lowest, highest, none: what the largest, the smallest and the counts start from.
        fold: device function of (word, largest, smallest, positive), which are changed.
        value: device function of (extremes, lane), a float32.
        count: device function of (positive, lane), an int32.
    """

    size: int
    type: Any
    count_type: Any
    lowest: Any
    highest: Any
    none: Any
    fold: Any
    value: Any
    count: Any


MOST_PAIRED = 256
"""Tokens of an excerpt that can be counted in bfloat16, which has all integers up to this one."""


@functools.cache
def extremes_of(name: str, lanes: int, paired: bool) -> Extremes:
    """How extremes are kept: lane by lane as float32, or, `paired`, by two bfloat16 in a uint32.

    Three instructions and a half an activation less than lane by lane. max and min pass over NaN.
    """
    jit = cuda.jit(device=True)
    value_of = lane_reader(name)
    zero = np.float32(0)
    if paired:

        def fold_pairs(word, largest, smallest, positive):
            for pair in range(lanes // 2):
                two = uint32(uint64(word) >> (uint64(pair) * uint64(32)))
                largest[pair] = ptx.max_bfloat16(largest[pair], two)
                smallest[pair] = ptx.min_bfloat16(smallest[pair], two)
                positive[pair] = ptx.add_bfloat16(positive[pair], ptx.above_zero_bfloat16(two))

        def half(pairs, lane):
            return value_of(pairs[lane // 2], lane % 2)

        half = jit(half)

        def count(pairs, lane):
            return int32(half(pairs, lane))

        lowest, highest, none = np.uint32(0xFF80FF80), np.uint32(0x7F807F80), np.uint32(0)
        return Extremes(
            lanes // 2, uint32, uint32, lowest, highest, none, jit(fold_pairs), half, jit(count)
        )

    def fold_lanes(word, largest, smallest, positive):
        for lane in range(lanes):
            x = value_of(word, lane)
            largest[lane] = max(largest[lane], x)
            smallest[lane] = min(smallest[lane], x)
            positive[lane] += int32(x > zero)

    def value(kept, lane):
        return kept[lane]

    infinity, value = np.float32(np.inf), jit(value)
    return Extremes(
        lanes, float32, int32, -infinity, infinity, np.int32(0), jit(fold_lanes), value, value
    )
