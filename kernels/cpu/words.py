"""Activations in compiled code on the CPU: read from their bits, computed, rounded to bits."""

# mypy: no-check-untyped-defs
# (compiled code has no annotations; Numba infers its types)
from __future__ import annotations

import numpy as np
from numba import get_num_threads, njit, types
from numba.extending import overload

from fastexplain.kernels import scalars
from fastexplain.kernels.scalars import NONLINEARITIES

# Neurons that one thread folds at a time, at most. The wider, the longer the runs of memory that
# are read: at [64, 64, 1536] on 2 cores, capture with tables took 7.6 ms with 128, 5.1 with 384 and
# 4.4 with 768. Beyond, the float64 sums (40 bytes a neuron) outgrow the first-level cache.
_WIDEST_BLOCK = 768
_VECTOR = 16  # float32 in the widest vector register


def block_width_of(neurons: int) -> int:
    """Neurons in a block, so that all threads have as much to do."""
    threads = get_num_threads()
    rounds = max(-(-neurons // (threads * _WIDEST_BLOCK)), 1)
    return max(-(-neurons // (threads * rounds * _VECTOR)), 1) * _VECTOR


def host_bits(acts: np.ndarray) -> tuple[np.ndarray, bool]:
    """Arrays as Numba takes them, and whether 16 bits are float16, which it lacks on the CPU."""
    if acts.dtype == np.float16:
        return acts.view(np.uint16), True
    return acts, False


def float_of(x, half):
    """One activation, a float or its 16 bits, as float32; the bits are float16 if `half`."""
    raise NotImplementedError("compiled code only")


@overload(float_of)
def _float_of_overload(x, half):
    if isinstance(x, types.Float):
        return lambda x, half: x

    def widen(x, half):
        bits = np.uint32(x)
        if not half:
            return np.uint32(bits << np.uint32(16)).view(np.float32)
        # Exponent and mantissa in float32's places, then the difference in bias as a factor, which
        # also sets subnormals right; NaN and infinity come out as 2**16 and above.
        magnitude = np.uint32((bits & np.uint32(0x7FFF)) << np.uint32(13)).view(np.float32)
        magnitude *= np.float32(2.0**112)
        if magnitude >= np.float32(65536.0):
            magnitude = np.float32(np.nan)
        return -magnitude if bits >> np.uint32(15) else magnitude

    return widen


@njit(error_model="numpy")  # a test for zero would keep loops from being vectorised
def _divide(a, b):
    return a / b


@njit(fastmath={"contract"})
def exp_of(x):
    """exp of a float32 to 2 ulp, in operations that vectorise, which libm's does not here.

    exp(x) = 2**n exp(r) with n the integer nearest to x / ln 2: a polynomial in r, fitted at
    Chebyshev nodes, and 2**n as bits. Held between the least normal float32 and the largest.
    """
    x = min(max(x, np.float32(-87.3)), np.float32(88.7))
    n = np.floor(x * np.float32(1.442695041) + np.float32(0.5))
    # ln 2 in two parts, the first with so few bits that n times it is exact.
    r = (x - n * np.float32(0.693359375)) - n * np.float32(-2.12194440e-4)
    p = np.float32(0.00836317521) + r * np.float32(0.00139336439)
    p = np.float32(0.166665763) + r * (np.float32(0.0416664667) + r * p)
    p = r + r * r * (np.float32(0.5) + r * p)
    # n is 128 at most, whose power no float32 has: half of it goes into each of two factors.
    half = np.int32(n) >> np.int32(1)
    low = np.int32((half + np.int32(127)) << np.int32(23)).view(np.float32)
    high = np.int32((np.int32(n) - half + np.int32(127)) << np.int32(23)).view(np.float32)
    return (np.float32(1) + p) * low * high


_bfloat16_bits = njit(scalars.bfloat16_bits)
_float16_bits = njit(scalars.float16_bits)


def _bits_of(x, like, half):
    """A float32 as one activation of the type of `like`, rounded to nearest, ties to even."""
    raise NotImplementedError("compiled code only")


@overload(_bits_of)
def _bits_of_overload(x, like, half):
    if isinstance(like, types.Float):
        return lambda x, like, half: x

    def narrow(x, like, half):
        return np.uint16(_float16_bits(x) if half else _bfloat16_bits(x))

    return narrow


def named(function, name):
    """The function with a name that no other one has.

    Numba tells compiled functions apart by name, types and a number that each process counts anew.
    Two of one name, from the cache as two processes left them, would be taken for each other.
    """
    function.__name__ = function.__qualname__ = name
    return function


def _activate_by(name):
    """The loop that computes one row's activations, by the nonlinearity of that name.

    It takes (gate, up, gated, half, values, acts). `gate`, `up` and `acts`, which is written, are
    `[w]` as `fold` takes activations; `values`, float32 `[w]`, get them as they were rounded.
    """
    function = scalars.nonlinearity(name, njit(fastmath={"contract"}), exp_of, _divide)

    def activate(gate, up, gated, half, values, acts):
        if gated:
            for j in range(len(values)):
                values[j] = function(float_of(gate[j], half)) * float_of(up[j], half)
        else:
            for j in range(len(values)):
                values[j] = function(float_of(gate[j], half))
        # Apart, since `acts` may be the gate: the compiler need not prove that it is not.
        for j in range(len(values)):
            bits = _bits_of(values[j], gate[j], half)
            acts[j] = bits
            values[j] = float_of(bits, half)

    return njit(fastmath={"contract"})(named(activate, f"_activate_{name}"))


gelu, gelu_tanh, silu, relu, relu2 = (_activate_by(name) for name in NONLINEARITIES)
