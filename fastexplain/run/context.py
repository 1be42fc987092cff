"""What stands beside an excerpt in its document."""

from __future__ import annotations

import numpy as np


def neighbours_of(places: np.ndarray, length: int) -> np.ndarray:
    """The excerpts directly before and behind each one in its document, int32 `[2, excerpts]`.

    -1 where there is none. Of a million excerpts it takes a fifth of a second.

    Args:
        places: `[excerpts]`, as `Run.places`.
        length: tokens of an excerpt.
    """
    documents, offsets = places["document"], places["offset"]
    order = np.lexsort((offsets, documents)).astype(np.int32)
    first, second = order[:-1], order[1:]
    adjoin = documents[first] == documents[second]
    adjoin &= offsets[second] - offsets[first] == length
    found = np.full((2, len(order)), -1, np.int32)
    found[0, second[adjoin]] = first[adjoin]
    found[1, first[adjoin]] = second[adjoin]
    return found
