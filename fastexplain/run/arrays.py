"""A safetensors file of a run: read lazily, and what is read is verified before.

Only the slices that are asked for leave the disk, and only their pieces are hashed (`pieces.py`).
"""

from __future__ import annotations

import json
import math
import mmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from fastexplain.errors import RunError
from fastexplain.run.pieces import PIECE, hashes_at

_LENGTH = 8  # bytes at the beginning that say how long the header is

# NumPy's names of safetensors' types. It has none for bfloat16, which runs keep as 16 bits.
_TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BOOL": "?",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1",
}  # fmt: skip


class Array(NamedTuple):
    """What a file's header says of an array: safetensors' name of its type, shape, place."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class ArrayFile:
    """One file, open.

    Args:
        path: of the file.
        hashes: of its pieces, uint64 `[pieces]`; None for a run that has none.

    Attributes:
        path: the same.
        arrays: by name, what the file has.

    Raises:
        RunError: the file is missing, damaged, or no safetensors file.
    """

    def __init__(self, path: Path, hashes: np.ndarray | None) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._bytes = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            pieces = -(-len(self._bytes) // PIECE)
            if hashes is not None and len(hashes) != pieces:
                raise self._damaged(f"it has {len(self._bytes):,} bytes, other than were written")
            self._hashes = hashes
            self._verified = np.zeros(pieces, dtype=bool)
            self._verify(np.zeros(1, np.int64))
            data = _LENGTH + int.from_bytes(self._bytes[:_LENGTH], "little")
            if data > len(self._bytes):
                raise self._damaged("its header is longer than the file")
            self._verify(np.arange(-(-data // PIECE)))
            with safe_open(path, framework="np"):  # checks the whole header
                pass
            header = json.loads(bytes(self._bytes[_LENGTH:data]))
        except FileNotFoundError as error:
            raise RunError(f"{path} is missing; copy the run again, or sweep again") from error
        except OSError as error:
            raise RunError(f"{path} can't be read: {error.strerror or error}") from error
        except (SafetensorError, ValueError) as error:  # an empty file can't be mapped
            raise self._damaged(str(error)) from error
        header.pop("__metadata__", None)
        self.arrays = {
            name: Array(
                entry["dtype"],
                tuple(entry["shape"]),
                *(data + offset for offset in entry["data_offsets"]),
            )
            for name, entry in header.items()
        }
        # Of a few places safetensors' own slices take five times as long.
        self._views = {
            name: np.ndarray(each.shape, _TYPES[each.dtype], self._bytes, each.start)
            for name, each in self.arrays.items()
            if each.dtype in _TYPES
        }

    def read(self, name: str, place: tuple[Any, ...] = ()) -> np.ndarray:
        """An array, or a part of it.

        Args:
            name: of the array.
            place: `(x,)` for a part along the first axis, `(..., x)` along the last, where x is an
                index or a slice of consecutive ones; empty for the whole array.

        Raises:
            RunError: what was read is not what was written.
            IndexError: there is no such place.
        """
        if name not in self._views:
            raise self._damaged(f"{name} is of a type that no run has")
        array = self.arrays[name]
        bounds = _bounds(array, place)
        if self._hashes is not None and not self._is_verified(array):
            self._verify(_pieces(array, *bounds))
        return np.array(self._views[name][place])

    def verify(self) -> None:
        """Verify the whole file. Raises RunError if it is not what was written."""
        self._verify(np.arange(len(self._verified)))

    def _is_verified(self, array: Array) -> bool:
        """Whether all of an array is, as it is soon of one whose columns are read."""
        return bool(self._verified[array.start // PIECE : -(-array.end // PIECE)].all())

    def _verify(self, pieces: np.ndarray) -> None:
        if self._hashes is None:
            return
        known = self._verified[pieces]
        if known.all():  # where much is read again, making them distinct takes most of the time
            return
        pieces = np.unique(pieces[~known])
        wrong = pieces[hashes_at(self._bytes, pieces) != self._hashes[pieces]]
        if len(wrong):
            raise self._damaged(f"bytes from {wrong[0] * PIECE:,} on are not those written")
        self._verified[pieces] = True

    def _damaged(self, what: str) -> RunError:
        return RunError(f"{self.path} is damaged ({what}); copy the run again, or sweep again")


def _bounds(array: Array, place: tuple[Any, ...]) -> tuple[int, int, int]:
    """The axis of a place, where it begins and ends. Raises IndexError where there is none."""
    if not place:
        return 0, 0, array.shape[0] if array.shape else 1
    axis = len(array.shape) - 1 if len(place) == 2 else 0
    count, x = array.shape[axis], place[-1]
    low, high, _ = x.indices(count) if isinstance(x, slice) else (x, x + 1, 1)
    if not 0 <= low <= high <= count:
        raise IndexError(f"place {x} of {count}")
    return axis, low, high


def _pieces(array: Array, axis: int, low: int, high: int) -> np.ndarray:
    """The numbers of the pieces that a part of an array lies in, some of them repeated."""
    if array.start == array.end or low == high:
        return np.zeros(0, np.int64)
    blocks = math.prod(array.shape[:axis])  # that the part repeats in
    size = (array.end - array.start) // math.prod(array.shape[: axis + 1])  # of one place in bytes
    block = size * array.shape[axis] if array.shape else size
    if blocks == 1:  # most parts by far; what follows takes 0.2 ms
        first, last = array.start + low * size, array.start + high * size - 1
        return np.arange(first // PIECE, last // PIECE + 1)
    starts = array.start + np.arange(blocks) * block + low * size
    firsts, lasts = starts // PIECE, (starts + (high - low) * size - 1) // PIECE
    longest = int((lasts - firsts).max()) + 1
    if longest == 1:
        return firsts
    spans = firsts[:, None] + np.arange(longest)
    return np.minimum(spans, lasts[:, None]).ravel()
