"""Machine words of activations in CUDA kernels: taken apart, computed on, put together again."""

# mypy: no-check-untyped-defs
# (compiled code has no annotations; Numba infers its types)
from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numba import cuda, uint16, uint32, uint64

from fastexplain.kernels import ptx, scalars

_LOG2_E = math.log2(math.e)


def word_type_of(name: str, lanes: int) -> Any:
    """Numba's type of a word of activations."""
    return {2: uint16, 4: uint32, 8: uint64}[(4 if name == "float32" else 2) * lanes]


def lane_reader(name: str) -> Any:
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
        # also sets subnormals right. NaN and infinity come out as 2**16 and above: NaN from here.
        bits = bits_of(word, lane)
        magnitude = (bits & np.uint32(0x7FFF)) << np.uint32(13)
        sign = (bits & np.uint32(0x8000)) << np.uint32(16)
        value = np.uint32(magnitude | sign).view(np.float32) * np.float32(2.0**112)
        return value if abs(value) < np.float32(65536.0) else np.float32(np.nan)

    readers = {"float32": of_float32, "uint16": of_bfloat16, "float16": of_float16}
    return cuda.jit(device=True)(readers[name])


def _lane_writer(name: str) -> Any:
    """The device function that rounds a float32 to an activation's bits, ties to even."""

    def of_float32(x):
        return x.view(np.uint32)

    def of_bfloat16(x):
        bits = x.view(np.uint32)
        odd = np.uint32((bits >> np.uint32(16)) & np.uint32(1))
        rounded = np.uint32(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))
        # The device's own NaN, all ones, would round to zero.
        return rounded if x == x else np.uint32(0x7FC0)

    def of_float16(x):
        bits = x.view(np.uint32)
        sign = np.uint32((bits >> np.uint32(16)) & np.uint32(0x8000))
        magnitude = np.uint32(bits & np.uint32(0x7FFFFFFF))
        odd = np.uint32((magnitude >> np.uint32(13)) & np.uint32(1))
        # The difference in bias off the exponent, and half a unit on: a carry rounds up.
        normal = np.uint32(magnitude - np.uint32(0x38000000) + np.uint32(0xFFF) + odd)
        result = np.uint32(normal >> np.uint32(13))
        if magnitude < np.uint32(0x38800000):
            # Below 2**-14 adding 0.5 leaves the float16's bits, rounded, at the mantissa's end.
            shifted = np.float32(magnitude.view(np.float32) + np.float32(0.5))
            result = np.uint32(shifted.view(np.uint32) - np.uint32(0x3F000000))
        if magnitude >= np.uint32(0x477FF000):  # rounds to 2**16 or is above: infinity, and NaN
            result = np.uint32(0x7C00)
        return np.uint32(sign | result)

    writers = {"float32": of_float32, "uint16": of_bfloat16, "float16": of_float16}
    return cuda.jit(device=True)(writers[name])


@functools.cache
def nonlinearity_of(nonlinearity: str, name: str) -> Any:
    """The device function of that name.

    In float32 exp is CUDA's own, to 2 ulp. In 16 bits the hardware's power of two takes its place,
    and its reciprocal that of a division: off by a few ulp of float32, far below half an ulp of
    what is written.
    """
    if name == "float32":

        def exp(scale, x):
            return np.float32(math.exp(scale * x))

        def divide(a, b):
            return a / b
    else:

        def exp(scale, x):
            return ptx.exp2(x * np.float32(scale * _LOG2_E))

        def divide(a, b):
            return a * ptx.reciprocal(b)

    jit = cuda.jit(device=True)
    return scalars.nonlinearity(nonlinearity, jit, jit(exp), jit(divide))


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
