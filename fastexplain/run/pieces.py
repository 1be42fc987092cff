"""Hashes of a file in pieces, so that a part of it can be verified without reading the rest.

Measured (`benches/NOTES.md`): one neuron's values lie in some 2,200 places of a layer's file of an
8B model. With pieces of a page they are verified in 2 ms; larger pieces hash more that nobody asked
for, smaller ones take more calls. XXH3 finds damage, it is no protection from forgery.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import xxhash

PIECE = 4096
"""Bytes of a piece; the last one of a file may be shorter."""


def hashes_of(path: Path) -> np.ndarray:
    """The hashes of a file's pieces, uint64 `[pieces]`. Raises OSError if it can't be read."""
    with path.open("rb") as file:
        size = path.stat().st_size
        if size == 0:
            return np.zeros(0, np.uint64)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            view = memoryview(mapped)
            try:
                return hashes_at(view, np.arange(-(-size // PIECE)))
            finally:
                view.release()


def hashes_at(view: memoryview, pieces: np.ndarray) -> np.ndarray:
    """The hashes of some pieces of a file's bytes, uint64 `[pieces]`."""
    starts = (pieces * PIECE).tolist()
    found = (xxhash.xxh3_64_intdigest(view[start : start + PIECE]) for start in starts)
    return np.fromiter(found, np.uint64, len(starts))


def hash_of(hashes: np.ndarray) -> str:
    """One hash for a whole file, from those of its pieces."""
    return xxhash.xxh3_128_hexdigest(hashes.astype("<u8").tobytes())
