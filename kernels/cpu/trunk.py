"""What a trunk computes between its matrix products, on the CPU: one pass each, in float32."""

from __future__ import annotations

import numpy as np
from numba import njit, prange, types

# Sums may be reordered, so that they are vectorised.
_LOOSE = {"reassoc", "contract", "nsz"}


@njit(parallel=True, cache=True, nogil=True, fastmath=_LOOSE, error_model="numpy")
def rms_norm(x, weight, eps, out):
    """`weight * x / sqrt(mean(x²) + eps)`, over the last axis of `[rows, d]` (Zhang & Sennrich).

    `weight` is `[d]`; `out` is as `x`. Sums are float32.
    """
    rows, d = x.shape
    for row in prange(rows):
        total = np.float32(0)
        for i in range(d):
            total += x[row, i] * x[row, i]
        scale = np.float32(1) / np.sqrt(total / np.float32(d) + eps)
        for i in range(d):
            out[row, i] = weight[i] * (x[row, i] * scale)


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def rotate(x, cos, sin, out):
    """Turn the pairs `(i, i + d/2)` of each head by their position's angles (Su et al., RoFormer).

    `x` and `out` are `[texts, positions, heads, d]`, `cos` and `sin` `[texts or 1, positions, d]`.
    """
    texts, positions, heads, d = x.shape
    half = d // 2
    for flat in prange(texts * positions):
        text, position = flat // positions, flat % positions
        of = text if len(cos) > 1 else 0
        for head in range(heads):
            for i in range(half):
                a, b = x[text, position, head, i], x[text, position, head, half + i]
                out[text, position, head, i] = a * cos[of, position, i] - b * sin[of, position, i]
                out[text, position, head, half + i] = (
                    b * cos[of, position, half + i] + a * sin[of, position, half + i]
                )


def compile_all() -> None:
    """Compile both for contiguous arrays; nothing is run."""
    vector, matrix, angles, heads = (types.Array(types.float32, axes, "C") for axes in range(1, 5))
    rms_norm.compile((matrix, vector, types.float32, matrix))
    rotate.compile((heads, angles, angles, heads))
