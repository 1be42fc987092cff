"""What a run's files of arrays have to hold: names, types, shapes, and ids that there are.

Letters: S excerpts, T tokens of each, N excerpts that are context alone, F units of a site, K top
and B bottom exemplars, R random ones, E exemplars of a sign class, H bins, D excerpts that a bin
keeps, V, P, Q and Z rows of the tables, X numbers of a regression, A the type of activations, C
tokens or neurons that the weights have of each kind.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastexplain.errors import RunError
from fastexplain.kernels.scalars import BINS
from fastexplain.kernels.summary import MOMENTS
from fastexplain.run.arrays import ArrayFile

_EXCERPTS = {
    "tokens": "I32 S T",
    "documents": "I32 S",
    "offsets": "I64 S",
    "context.tokens": "I32 N T",
    "context.documents": "I32 N",
    "context.offsets": "I64 N",
    "vocabulary.bytes": "U8 bytes",
    "vocabulary.ends": "I64 ends",
    "tables.tokens": "I32 V",
    "tables.pairs": "I32 P 2",
    "tables.triples": "I32 Q 3",
    "tables.token_counts": "I64 V",
    "tables.pair_counts": "I64 P",
    "tables.triple_counts": "I64 Q",
    "tables.situations": "I32 Z",
    "tables.situation_counts": "I64 Z",
    "regression.components": "U16 words W",
    "regression.products": "F64 X X",
    "regression.tokens": "F32 V X",
    "regression.pairs": "F32 P X",
    "regression.triples": "F32 Q X",
}

_SITE = {
    "top.ids": "I32 F K",
    "top.activations": "A F K T",
    "bottom.ids": "I32 F B",
    "bottom.activations": "A F B T",
    "random.ids": "I32 R",
    "random.activations": "A R T F",
    "sums": "F64 M F",
    "positive": "I64 F",
    "minimum": "F32 F",
    "maximum": "F32 F",
    "histogram": "I32 F H",
    "histogram.excerpts": "I32 F H D",
    "tables.tokens": "F32 V F",
    "tables.pairs": "F32 P F",
    "tables.triples": "F32 Q F",
    "tables.situations": "F32 Z F",
    "tables.regression": "F32 X F",
}

_SIGNS = {
    "signs.ids": "I32 F 4 E",
    "signs.activations": "A F 4 E T",
    "signs.ups": "U8 F 4 E W",
    "signs.tokens": "I64 4 F",
    "signs.sums": "F64 2 4 F",
    "signs.extremes": "F32 4 F",
}
"""What a site's file has beyond where a sweep kept sign classes; W bytes hold T bits."""

ADDED = (
    "tables.situations", "tables.situation_counts", "tables.triples", "tables.triple_counts",
)  # fmt: skip
"""Those that files up to schema 4 lack."""

_WITH_ADDED = 5

CONTEXT = ("context.tokens", "context.documents", "context.offsets")
"""What stands beside excerpts in their documents; files of earlier versions lack it."""

REGRESSION = tuple(name for name in _EXCERPTS if name.startswith("regression."))
"""Those that are there where a sweep summed for a regression under the tables."""

_TOKENS = {"tokens": "I32 F 2 C", "values": "F32 F 2 C", "spread": "F32 F"}
_NEURONS = {"neurons": "I32 F C 2", "cosines": "F32 F C"}

# What files of earlier versions have in its place: up to schema 3 a bin kept one excerpt.
_FORMER = {"histogram.excerpts": "I32 F H"}

_ACTIVATIONS = ("F32", "F16", "U16")
_NO_ID = -1

# The least that values of an array of whole numbers may be; excerpts' ids have an end too.
_LEAST = {
    "tokens": 0, "context.tokens": 0, "tables.tokens": 0, "tables.pairs": 0,
    "tables.token_counts": 0, "tables.pair_counts": 0, "tables.triples": 0,
    "tables.triple_counts": 0,
    "tables.situations": 0, "tables.situation_counts": 0,
    "vocabulary.ends": 0, "positive": 0, "histogram": 0,
    "signs.tokens": 0, "signs.ids": _NO_ID,
    "top.ids": _NO_ID, "bottom.ids": _NO_ID, "random.ids": _NO_ID, "histogram.excerpts": _NO_ID,
}  # fmt: skip


def check_excerpts(file: ArrayFile, excerpts: int, tokens: int, schema: int) -> None:
    """Raise RunError unless `excerpts.safetensors` has what it must, for S and T."""
    expected = _of_schema(file, _EXCERPTS, schema)
    for group in (CONTEXT, REGRESSION):
        if not any(name in file.arrays for name in group):
            expected = {name: kind for name, kind in expected.items() if name not in group}
    _check(file, expected, {"S": excerpts, "T": tokens})


def check_site(
    file: ArrayFile,
    units: int,
    tokens: int,
    table_rows: Sequence[int],
    schema: int,
    signs: bool,
) -> None:
    """Raise RunError unless a site's file has what it must, for F, T, and V, P, Q, Z and X.

    Args:
        table_rows: V, P, Q, Z and X, which is 0 where there is no regression.
        signs: whether there must be what is kept by sign classes.
    """
    sizes = dict(zip("VPQZX", table_rows, strict=True))
    sizes |= {"F": units, "T": tokens, "W": -(-tokens // 8), "H": BINS, "M": MOMENTS}
    expected = _of_schema(file, _SITE | _SIGNS if signs else _SITE, schema)
    if not sizes["X"]:
        del expected["tables.regression"]
    _check(file, expected, sizes)


def _of_schema(file: ArrayFile, expected: dict[str, str], schema: int) -> dict[str, str]:
    """What a file has to hold by its schema, and what it holds beyond."""
    lacks = set(ADDED) - set(file.arrays) if schema < _WITH_ADDED else ()
    return {name: described for name, described in expected.items() if name not in lacks}


def lacking(name: str, units: int) -> np.ndarray:
    """What stands for an array that files of earlier versions lack: no rows."""
    shape = {"tables.triple_counts": (0,), "tables.triples": (0, units) if units else (0, 3)}[name]
    dtype = {"tables.triple_counts": np.int64}.get(name, np.float32 if units else np.int32)
    return np.zeros(shape, dtype)


def check_weights(
    file: ArrayFile, units: int, sides: Sequence[str], neighbours: Sequence[str]
) -> None:
    """Raise RunError unless a file of weights has what it must, for F."""
    expected = {f"{side}.{name}": kind for side in sides for name, kind in _TOKENS.items()}
    for each in neighbours:
        expected |= {f"{each}.{name}": kind for name, kind in _NEURONS.items()}
    _check(file, expected, {"F": units})


def check_values(file: ArrayFile, name: str, values: np.ndarray, excerpts: int) -> np.ndarray:
    """The same values. Raises RunError where there is an id, a token or a count that can't be."""
    least = _LEAST.get(name)
    # The tables' sums have the names of their rows in the other file.
    if least is not None and values.size and values.dtype.kind == "i":
        most = excerpts - 1 if least == _NO_ID else np.iinfo(values.dtype).max
        low, high = int(values.min()), int(values.max())
        if low < least or high > most:
            raise RunError(
                f"{file.path} is damaged: {name} has values from {low} to {high}, they can be "
                f"from {least} to {most}; sweep again"
            )
    return values


def _check(file: ArrayFile, expected: dict[str, str], sizes: dict[str, int]) -> None:
    sizes = dict(sizes)
    kind = file.arrays["top.activations"].dtype if "top.activations" in file.arrays else ""
    for name, described in expected.items():
        if name not in file.arrays:
            raise RunError(f"{file.path} is damaged: it has no {name}; sweep again")
        former = _FORMER.get(name)
        if former is not None and len(file.arrays[name].shape) == len(former.split()) - 1:
            described = former
        dtype, *letters = described.split()
        array = file.arrays[name]
        wanted = kind if dtype == "A" and kind in _ACTIVATIONS else dtype
        fits = array.dtype == wanted and len(array.shape) == len(letters)
        for letter, size in zip(letters, array.shape, strict=False):
            fits &= size == (int(letter) if letter.isdigit() else sizes.setdefault(letter, size))
        if not fits:
            shape = ", ".join(str(sizes.get(letter, letter)) for letter in letters)
            raise RunError(
                f"{file.path} is damaged: {name} is {array.dtype} {list(array.shape)} and must be "
                f"{wanted} [{shape}]; sweep again"
            )
