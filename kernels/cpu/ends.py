"""The largest and smallest products of many vectors with many others, exact at the cost of rough.

It is none of the five kernels: it runs where a model's weights are looked at, not its activations.

A rough product, such as bfloat16's, says which pairs can't be among the extreme ones; the others
are multiplied again in float32. With q and t rounded to q' and t', and r the rough product,

    |r - q.t| <= |q - q'| |t| + |q'| |t - t'| + |r| / 256

by Cauchy and Schwarz, and because a number that is rounded to bfloat16 moves by 1/256 at the most.
So a pair whose rough product is below the least that is kept by more than this is left out with
certainty. Where a tile has more such pairs than there is room for, all of it is multiplied again.
"""

# mypy: no-check-untyped-defs
# (compiled code has no annotations; Numba infers its types)
from __future__ import annotations

import numpy as np
from numba import njit, prange

from fastexplain.kernels.cpu.words import float_of

# Products that are compared with the limits before one of them is looked at.
_BLOCK = 128

# Of each tile and end, so many pairs are multiplied again at the most.
_CANDIDATES = 48

# A rounding to bfloat16 moves a number by 2**-8 of it; twice that is more than it is of the result.
_ROUNDING = 2.0**-7


def fold_ends(
    rough: np.ndarray,
    queries: np.ndarray,
    targets: np.ndarray,
    error: np.ndarray,
    first: int,
    ids: np.ndarray,
    values: np.ndarray,
) -> None:
    """Fold a tile of products into the largest and smallest of each query, in place.

    Equal products are by lower id, if tiles come by ascending `first`.

    Args:
        rough: products `[n, t]`: float32, or bfloat16 as uint16 views.
        queries: float32 `[n, d]`.
        targets: float32 `[t, d]`.
        error: float32 `[n]`, how far the product before its last rounding may be from the true one.
        first: the id of the tile's first target; the others follow.
        ids: int32 `[n, 2, C]`: of the C largest, largest first, and the C smallest, smallest first;
            -1 where there are none yet.
        values: float32 `[n, 2, C]`: their products, -inf where there are none; of the smallest with
            the sign changed, so that both fall.

    Raises:
        ValueError: shapes or types do not fit together.
    """
    n, tile = rough.shape
    fits = (
        queries.shape == (n, queries.shape[-1])
        and targets.shape == (tile, queries.shape[-1])
        and error.shape == (n,)
        and ids.shape == values.shape == (n, 2, ids.shape[-1])
    )
    if not fits or rough.dtype not in (np.uint16, np.float32):
        raise ValueError(
            f"rough is {rough.dtype} {list(rough.shape)}, queries {list(queries.shape)}, targets "
            f"{list(targets.shape)}, error {list(error.shape)}, ids {list(ids.shape)}, values "
            f"{list(values.shape)}"
        )
    if tile and ids.shape[2]:
        _fold(rough, queries, targets, error, first, ids, values)


@njit(fastmath={"reassoc", "contract", "nsz"})
def _dot(a, b):
    """The product of two vectors, float32 `[d]`; sums are reordered, so that they are vectors'."""
    total = np.float32(0)
    for k in range(len(a)):
        total += a[k] * b[k]
    return total


@njit
def _before(value, id_, other, other_id):
    return value > other or (value == other and id_ < other_id)


@njit
def _insert(value, id_, values, ids):
    """Put one in its place among those kept, float32 and int32 `[C]`, if it is of them.

    Equal ones are by lower id.
    """
    place = len(values) - 1
    if not _before(value, id_, values[place], ids[place]):
        return
    while place > 0 and _before(value, id_, values[place - 1], ids[place - 1]):
        values[place], ids[place] = values[place - 1], ids[place - 1]
        place -= 1
    values[place], ids[place] = value, id_


@njit(error_model="numpy")
def _limit(kept, error):
    """What a rough product must exceed where the true one may exceed `kept`."""
    if kept == -np.inf:
        return np.float32(kept)
    return np.float32(kept - error * np.float32(1 + _ROUNDING) - np.float32(_ROUNDING) * abs(kept))


@njit
def _multiply_again(sign, query, targets, first, error, rough, columns, ids, values):
    """Fold the true products of the candidates; whether all that may be among the kept were there.

    `rough` float32 and `columns` int32, `[_CANDIDATES]`, hold the candidates, largest first.
    """
    last = len(values) - 1
    for place in range(len(rough)):
        if not rough[place] > _limit(values[last], error):
            return True
        _insert(sign * _dot(query, targets[columns[place]]), first + columns[place], values, ids)
    return not rough[-1] > _limit(values[last], error)


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def _fold(rough, queries, targets, error, first, ids, values):
    """The arguments are those of `fold_ends`."""
    rows, tile = rough.shape
    last = ids.shape[2] - 1
    for row in prange(rows):
        candidates = np.full((2, _CANDIDATES), -np.inf, np.float32)
        columns = np.zeros((2, _CANDIDATES), np.int32)
        high = _limit(values[row, 0, last], error[row])
        low = _limit(values[row, 1, last], error[row])
        for start in range(0, tile, _BLOCK):
            block = rough[row, start : min(start + _BLOCK, tile)]
            passed = 0
            for j in range(len(block)):
                value = float_of(block[j], False)
                passed += (value > high) | (-value > low)
            if passed:
                for j in range(len(block)):
                    value = float_of(block[j], False)
                    if value > high:
                        _insert(value, start + j, candidates[0], columns[0])
                    if -value > low:
                        _insert(-value, start + j, candidates[1], columns[1])
                high, low = max(high, candidates[0, -1]), max(low, candidates[1, -1])
        for end in range(2):
            before_ids, before = ids[row, end].copy(), values[row, end].copy()
            sign = np.float32(1 - 2 * end)
            if not _multiply_again(
                sign, queries[row], targets, first, error[row],
                candidates[end], columns[end], ids[row, end], values[row, end],
            ):  # fmt: skip
                ids[row, end], values[row, end] = before_ids, before
                for j in range(tile):
                    _insert(
                        sign * _dot(queries[row], targets[j]), first + j,
                        values[row, end], ids[row, end],
                    )  # fmt: skip
