"""Scalar rules that every target shares: plain functions, compiled for each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

# Histogram of the excerpts' largest activations: a bin below 2**LOWEST_OCTAVE (and for all that is
# not positive), then four bins an octave, the last one open. 96 bins reach 2**9.5, about 720.
BINS = 96
LOWEST_OCTAVE = -14
_BINS_AN_OCTAVE = 4
# Mantissa bits of the float32 nearest to 2**(1/4), 2**(1/2) and 2**(3/4).
_QUARTERS = tuple(
    int(np.float32(2.0 ** (quarter / _BINS_AN_OCTAVE)).view(np.int32)) & 0x7FFFFF
    for quarter in (1, 2, 3)
)
_QUARTER_1, _QUARTER_2, _QUARTER_3 = _QUARTERS

NO_ID = np.int32(2**31 - 1)
"""Excerpt id of an empty slot; it loses every comparison."""

NONLINEARITIES = ("gelu", "gelu_tanh", "silu", "relu", "relu2")
"""What `capture` can compute: gelu by the error function or tanh, silu, relu and its square."""

GELU_CUBE = 0.044715
"""Of the tanh approximation of gelu (Hendrycks and Gimpel 2016)."""

_ZERO, _HALF, _ONE = (np.float32(x) for x in (0, 0.5, 1))
_HALF_SQRT_HALF = np.float32(0.5 * math.sqrt(0.5))
# With z = |x| / sqrt(2) the complementary error function is t exp(-z**2 + P(t)), t = 1 / (1 + z/2),
# to 1.2e-7 of its value: P from Press et al., "Numerical Recipes", section 6.2, highest coefficient
# first.
_ERFC = (0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807,
         -0.18628806, 0.09678418, 0.37409196, 1.00002368, -1.26551223)  # fmt: skip

# Tables are float32 sums of many batches; their rounding stays far below this share of the sum.
RESIDUE = 2.0**-20

_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_STEP = np.uint64(0x9E3779B97F4A7C15)
_SHIFT_30, _SHIFT_27, _SHIFT_31 = np.uint64(30), np.uint64(27), np.uint64(31)


def histogram_edges() -> np.ndarray:
    """The inner edges of the histogram's bins, float32 `[BINS - 1]`; a bin holds its lower edge."""
    steps = np.arange(BINS - 1)
    fraction = np.float32(2.0) ** (steps % _BINS_AN_OCTAVE / _BINS_AN_OCTAVE).astype(np.float32)
    return np.ldexp(fraction, LOWEST_OCTAVE + steps // _BINS_AN_OCTAVE).astype(np.float32)


def histogram_bin(bits):
    """The bin of a float32 given as its int32 bits; bits are read, so there is no logarithm."""
    octave = (bits >> 23) - 127 - LOWEST_OCTAVE
    if bits < 0 or octave < 0:
        return 0
    mantissa = bits & 0x7FFFFF
    quarter = (
        int(mantissa >= _QUARTER_1) + int(mantissa >= _QUARTER_2) + int(mantissa >= _QUARTER_3)
    )
    return min(1 + _BINS_AN_OCTAVE * octave + quarter, BINS - 1)


def precedes(key_a, id_a, key_b, id_b):
    """Whether exemplar a comes before b: larger float32 key first, then lower int32 id."""
    return key_a > key_b or (key_a == key_b and id_a < id_b)


def excerpt_hash(excerpt, seed):
    """A seeded 64-bit hash of an excerpt's id, for choices that no order of batches can change.

    It is the output step of splitmix64 (Steele, Lea and Flood 2014); both arguments are uint64.
    """
    x = excerpt + seed * _STEP + _STEP
    x = (x ^ (x >> _SHIFT_30)) * _MIX_1
    x = (x ^ (x >> _SHIFT_27)) * _MIX_2
    return x ^ (x >> _SHIFT_31)


def bfloat16_bits(x):
    """The bits of a float32 as bfloat16, uint32, rounded to nearest, ties to even."""
    bits = np.float32(x).view(np.uint32)
    odd = np.uint32((bits >> np.uint32(16)) & np.uint32(1))
    rounded = np.uint32(np.uint32(bits + np.uint32(0x7FFF)) + odd)
    # A NaN of all ones, as devices make it, would round to zero.
    return np.uint32(rounded >> np.uint32(16)) if x == x else np.uint32(0x7FC0)


def float16_bits(x):
    """The bits of a float32 as float16, uint32, rounded to nearest, ties to even."""
    bits = np.float32(x).view(np.uint32)
    sign = np.uint32((bits >> np.uint32(16)) & np.uint32(0x8000))
    magnitude = np.uint32(bits & np.uint32(0x7FFFFFFF))
    odd = np.uint32((magnitude >> np.uint32(13)) & np.uint32(1))
    # The difference in bias off the exponent, and half a unit on: a carry rounds up.
    normal = np.uint32(np.uint32(magnitude - np.uint32(0x38000000)) + np.uint32(0xFFF))
    result = np.uint32(np.uint32(normal + odd) >> np.uint32(13))
    if magnitude < np.uint32(0x38800000):
        # Below 2**-14 adding 0.5 leaves the float16's bits, rounded, at the mantissa's end.
        shifted = np.float32(magnitude.view(np.float32) + np.float32(0.5))
        result = np.uint32(shifted.view(np.uint32) - np.uint32(0x3F000000))
    if magnitude >= np.uint32(0x477FF000):  # rounds to 2**16 or is above, infinity and NaN
        result = np.uint32(0x7C00)
    if magnitude > np.uint32(0x7F800000):
        result = np.uint32(0x7E00)
    return np.uint32(sign | result)


def discretize_one(x, scale):
    """`discretize` of one float64 activation: an integer from 0 to 10."""
    if scale <= 0.0 or x <= 0.0:
        return 0
    return int(min(10.0, (10.0 * x) / scale))


def counted(value, signed):
    """What a value adds to a sum, float64: max(value, 0), or where `signed` the value itself."""
    value = float(value)
    return value if signed else max(value, 0.0)


def remaining(total, held_out, left, signed=False):
    """What is left of a table's sum once that of the excerpts held out is taken from it.

    `total` and `held_out` are float64, `left` counts the tokens that remain.
    Nothing is left where no token is (`left` 0). What is within rounding of nothing is nothing too:
    correlation ignores scale, so that a residue would otherwise be read as an answer. Not so where
    the sum is `signed`: there numbers that matter may cancel.
    """
    rest = total - held_out
    if left <= 0 or (not signed and rest <= total * RESIDUE):
        return 0.0
    return rest


def token_estimate(token_sum, token_count, mean):
    """The estimate for a token, float64: its mean activation, drawn to the neuron's by half one."""
    return (token_sum + 0.5 * mean) / (token_count + 0.5)


def pair_estimate(pair_sum, pair_count, estimate):
    """The estimate for a pair or a triple: its mean, drawn to its back-off's by two tokens."""
    return (pair_sum + 2.0 * estimate) / (pair_count + 2.0)


def pooled_moments(a, b):
    """The moments of two sets of pairs (x, y) as those of all of them; `b` must not be empty.

    Moments are (count, mean of x, mean of y, and the sums of (x - mean)**2, (x - mean)(y - mean)
    and (y - mean)**2), all float64. Source: the pairwise algorithm of Chan, Golub and LeVeque 1983,
    "Algorithms for computing the sample variance".
    """
    count_a, x_a, y_a, xx_a, xy_a, yy_a = a
    count_b, x_b, y_b, xx_b, xy_b, yy_b = b
    count = count_a + count_b
    share = count_b / count
    x, y = x_b - x_a, y_b - y_a
    weight = count_a * share
    return (
        count,
        x_a + x * share,
        y_a + y * share,
        xx_a + xx_b + x * x * weight,
        xy_a + xy_b + x * y * weight,
        yy_a + yy_b + y * y * weight,
    )


def pearson(moments):
    """Pearson's correlation from the moments of `pooled_moments`; both sides must vary."""
    return moments[4] / math.sqrt(moments[3]) / math.sqrt(moments[5])


def line(moments, varies):
    """Intercept and slope of the least-squares line of x on y; a constant x has the slope 0."""
    slope = moments[4] / moments[5] if varies else 0.0
    return moments[1] - slope * moments[2], slope


def nonlinearity(
    name: str, jit: Callable[[Any], Any], power: Any, divide: Any, base: float = math.e
) -> Any:
    """The function of that name, float32 to float32, made of a target's parts.

    tanh and the logistic function share a form: gelu_tanh(x) = x / (1 + exp(-2u)) with
    u = sqrt(2/pi) (x + 0.044715 x**3), which loses no digits where tanh(u) is near -1.

    Args:
        power: of x, `base` to the power of x.
        divide: of (a, b), their quotient.
        base: what the target raises to a power most cheaply.
    """
    # Exponents are of the target's base, by constants that are multiplied anyway.
    unit = 1 / math.log(base)
    minus_unit = np.float32(-unit)
    linear = np.float32(-2 * math.sqrt(2 / math.pi) * unit)
    cubic = np.float32(-2 * math.sqrt(2 / math.pi) * GELU_CUBE * unit)
    e0, e1, e2, e3, e4, e5, e6, e7, e8, e9 = (np.float32(c * unit) for c in reversed(_ERFC))
    square = np.float32(0.5 * unit)

    def gelu(x):
        t = divide(_ONE, _ONE + _HALF_SQRT_HALF * abs(x))
        p = e4 + t * (e5 + t * (e6 + t * (e7 + t * (e8 + t * e9))))
        p = e0 + t * (e1 + t * (e2 + t * (e3 + t * p)))
        below = _HALF * t * power(p - square * (x * x)) * x  # x times the normal tail past |x|
        return x - below if x > _ZERO else below

    def gelu_tanh(x):
        return divide(x, _ONE + power(x * (linear + cubic * (x * x))))

    def silu(x):
        return divide(x, _ONE + power(minus_unit * x))

    def relu(x):
        return _ZERO if x <= _ZERO else x  # not max, which may lose a NaN

    def relu2(x):
        return _ZERO if x <= _ZERO else x * x

    return jit({f.__name__: f for f in (gelu, gelu_tanh, silu, relu, relu2)}[name])
