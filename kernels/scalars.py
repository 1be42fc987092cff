"""Scalar rules that every target shares: plain functions, compiled for each."""

from __future__ import annotations

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

# Tables are float32 sums of many batches; their rounding stays far below this share of the sum.
_RESIDUE = 2.0**-20

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
    """The order of exemplars: larger key first, then lower excerpt id."""
    return key_a > key_b or (key_a == key_b and id_a < id_b)


def excerpt_hash(excerpt, seed):
    """A seeded 64-bit hash of an excerpt's id, for choices that no order of batches can change.

    It is the output step of splitmix64 (Steele, Lea and Flood 2014); both arguments are uint64.
    """
    x = excerpt + seed * _STEP + _STEP
    x = (x ^ (x >> _SHIFT_30)) * _MIX_1
    x = (x ^ (x >> _SHIFT_27)) * _MIX_2
    return x ^ (x >> _SHIFT_31)


def discretize_one(x, scale):
    """`discretize` of one float64 activation."""
    if scale <= 0.0 or x <= 0.0:
        return 0
    return int(min(10.0, (10.0 * x) / scale))


def remaining(total, own, left):
    """What is left of a table's sum once the neuron's own excerpts are taken out.

    Nothing is left where no token is (`left` 0). What is within rounding of nothing is nothing too:
    correlation ignores scale, so that a residue would otherwise be read as an answer.
    """
    rest = total - own
    if left <= 0 or rest <= total * _RESIDUE:
        return 0.0
    return rest


def token_estimate(token_sum, token_count, mean):
    """The estimate for a token: its mean activation, drawn to the neuron's by half a token."""
    return (token_sum + 0.5 * mean) / (token_count + 0.5)


def pair_estimate(pair_sum, pair_count, estimate):
    """The estimate for a pair: its mean activation, drawn to the token's by two tokens."""
    return (pair_sum + 2.0 * estimate) / (pair_count + 2.0)
