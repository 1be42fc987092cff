"""The situations of every token of an excerpt, as codes; see `fastexplain.text.kinds`.

It is none of the five kernels: it runs on the host, where batches are made.
"""

# mypy: no-check-untyped-defs
# (compiled code has no annotations; Numba infers its types)
from __future__ import annotations

import numpy as np
from numba import njit

_NEWLINE, _SPACE, _CLOSE = 0, 1, 8  # kinds, as `fastexplain.text.kinds` numbers them


@njit(cache=True, nogil=True)
def situations(token_ids, kinds, brackets, quotes, skip, count, starts):
    """Codes of situations: a start + a value * the number of kinds + the token's kind.

    Args:
        token_ids: int32 `[E, T]`.
        kinds, brackets, quotes: int8 `[E, T]`, each token's kind, the brackets that it opens less
            those that it closes, its double quotation marks.
        skip: int, first counted token.
        count: int, how many kinds there are.
        starts: int `[4]`, the first code of each aspect, and the number of codes.

    Returns:
        int32 `[E, T, 3]`; -1 before the first counted token.
    """
    excerpts, tokens = token_ids.shape
    codes = np.full((excerpts, tokens, 3), -1, np.int32)
    for e in range(excerpts):
        depth, quoted, line = 0, 0, False
        for t in range(tokens):
            kind = kinds[e, t]
            # A line begins after a newline, and after the white space that indents it.
            if t > 0 and kinds[e, t - 1] != _SPACE:
                line = kinds[e, t - 1] == _NEWLINE
            if t >= skip:
                before = count + 1
                if t > 0:
                    before = count if line else kinds[e, t - 1]
                eighth = 0 if t == skip else 1 + t * 8 // tokens
                inside = (depth > 0 and kind != _CLOSE) + 2 * quoted
                again = _state(token_ids[e], t)
                codes[e, t, 0] = starts[0] + before * count + kind
                codes[e, t, 1] = starts[1] + again * count + kind
                codes[e, t, 2] = starts[2] + (eighth * 4 + inside) * count + kind
            depth = max(depth + brackets[e, t], 0)
            quoted = (quoted + quotes[e, t]) % 2
    return codes


@njit
def _state(row, t):
    """Which of `STATES` the token at t is in; `row` is int32 `[T]`."""
    seen, follows = 0, False
    for j in range(t):
        seen += row[j] == row[t]
        if j < t - 1 and row[j] == row[t - 1]:
            follows = row[j + 1] == row[t]  # the last such place counts
    if seen == 0:
        return 0
    return min(seen, 2) + 2 * follows
