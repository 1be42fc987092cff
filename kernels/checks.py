"""What is checked of the kernels' arguments before compiled code, which checks nothing, reads them.

Shapes and dtypes of all arrays; of arrays on the host also that no index points outside of what it
is an index of. Reading those of a device would wait for it: there they are as the host made them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastexplain.kernels.measuring import MOST_EXCERPTS, SUMS, Binary, ExcerptSums
from fastexplain.kernels.scalars import BINS, NO_ID, NONLINEARITIES
from fastexplain.kernels.signs import CLASSES, Signs
from fastexplain.kernels.summary import (
    MOMENTS,
    Batch,
    HeldOut,
    LookupTables,
    Preactivations,
    Summary,
    in_range,
)

Layout = Mapping[str, tuple[str, str]]
"""By an array's name its dtype, "acts" for that of the activations, and a letter for each axis."""

SUMMARY: Layout = {
    "top_keys": ("float32", "FK"), "top_ids": ("int32", "FK"), "top_acts": ("acts", "FKT"),
    "bottom_keys": ("float32", "FQ"), "bottom_ids": ("int32", "FQ"), "bottom_acts": ("acts", "FQT"),
    "random_ids": ("int32", "R"), "random_acts": ("acts", "RTF"),
    "sums": ("float64", "MF"), "positive": ("int64", "F"),
    "minimum": ("float32", "F"), "maximum": ("float32", "F"),
    "histogram": ("int32", "FH"), "histogram_ids": ("int32", "DFH"),
    "token_sums": ("float32", "VF"), "pair_sums": ("float32", "PF"),
    "triple_sums": ("float32", "UF"), "fault": ("int32", "1"),
}  # fmt: skip
_SIGNS: Layout = {
    "keys": ("float32", "FCE"), "ids": ("int32", "FCE"), "acts": ("acts", "FCET"),
    "ups": ("uint8", "FCEW"), "tokens": ("int64", "CF"), "sums": ("float64", "2CF"),
}  # fmt: skip
_BATCH: Layout = {
    "ids": ("int32", "B"), "random_slots": ("int32", "B"), "positions": ("int32", "N"),
    "segment_starts": ("int32", "Z"), "segment_rows": ("int32", "S"),
}  # fmt: skip
_TABLES: Layout = {
    "token_sums": ("float32", "VF"), "pair_sums": ("float32", "PF"),
    "triple_sums": ("float32", "UF"),
    "token_counts": ("int64", "V"), "pair_counts": ("int64", "P"), "triple_counts": ("int64", "U"),
    "positive_sums": ("float64", "F"),
}  # fmt: skip
_HELD_OUT: Layout = {
    "ids": ("int32", "FE"), "activations": ("float32", "FET"),
    "token_rows": ("int32", "XT"), "pair_rows": ("int32", "XT"),
    "triple_rows": ("int32", "XT"),
}  # fmt: skip
_EXCERPT_SUMS: Layout = {"sums": ("float64", "NEM"), "ranked": ("int16", "NZ")}

ACTIVATIONS = ("float32", "float16", "uint16")
"""Dtypes of activations; uint16 is bfloat16, as are int16 and PyTorch's own."""
_DTYPES = {
    name: np.dtype(name) for name in (*ACTIVATIONS, "uint8", "float64", "int16", "int32", "int64")
}
_BFLOAT16 = ("int16", "bfloat16")


def dtype_of(array: Any) -> str:
    """An array's dtype by name; bfloat16 in each of its forms is uint16."""
    name = getattr(array.dtype, "name", None) or str(array.dtype).removeprefix("torch.")
    return "uint16" if name in _BFLOAT16 else name


def check_capture(acts: Any, batch: Batch, summary: Summary, pre: Preactivations | None) -> None:
    """Raise ValueError or TypeError unless `capture` can take these; its docs say what they are."""
    dtype, sizes = _activations(acts, summary.top_acts)
    _fit(SUMMARY, summary, sizes | {"M": MOMENTS, "H": BINS, "1": 1}, dtype)
    sizes |= {"T": summary.top_acts.shape[2], "R": summary.random_ids.shape[0]}
    _check_batch(batch, sizes)
    _check_sources(acts, pre, sizes, dtype)
    if isinstance(batch.ids, np.ndarray):
        tables = summary.token_sums, summary.pair_sums, summary.triple_sums
        in_range("random_slots", batch.random_slots, -1, sizes["R"])
        in_range("positions", batch.positions, 0, sizes["B"] * sizes["T"])
        in_range("segment_starts", batch.segment_starts[[0, -1]], 0, len(batch.positions) + 1)
        lengths = np.diff(batch.segment_starts)
        in_range("lengths of segments", lengths, 0, len(batch.positions) + 1)
        rows = sum(map(len, tables))
        in_range("segment_rows", batch.segment_rows[lengths > 0], 0, rows)


def check_signs(acts: Any, batch: Batch, signs: Signs, pre: Preactivations) -> None:
    """Raise ValueError or TypeError unless `capture_signs` can take these."""
    dtype, sizes = _activations(acts, signs.acts)
    _fit(_SIGNS, signs, sizes | {"C": len(CLASSES), "2": 2}, dtype)
    if signs.ups.shape[3] != -(-signs.acts.shape[3] // 8):
        raise ValueError(f"ups has {signs.ups.shape[3]} bytes for {signs.acts.shape[3]} tokens")
    if signs.keys.shape[2] == 0:
        raise ValueError("a class has no exemplars; 1 at least")
    sizes["T"] = signs.acts.shape[3]
    _check_batch(batch, sizes)
    if pre.up is None:
        raise ValueError("without a factor, up, there are no classes")
    _check_sources(acts, pre, sizes, dtype)


def _activations(acts: Any, kept: Any) -> tuple[np.dtype, dict[str, int]]:
    """The dtype of activations, which must be that of those kept, and their B, L and F."""
    name = dtype_of(acts)
    if name not in ACTIVATIONS or name != dtype_of(kept):
        raise TypeError(f"activations are {acts.dtype}, the summary {kept.dtype}")
    if len(acts.shape) != 3:
        raise ValueError(f"activations are {list(acts.shape)}; expected three axes, [B, L, F]")
    return _DTYPES[name], dict(zip("BLF", acts.shape, strict=True))


def _check_batch(batch: Batch, known: dict[str, int]) -> None:
    """Raise ValueError unless a batch is one of B excerpts of T tokens in L positions."""
    sizes = dict(known)
    _fit(_BATCH, batch, sizes)
    excerpts, length, tokens = sizes["B"], sizes["L"], sizes["T"]
    if length < tokens or not 0 <= batch.skip < max(tokens, 1):
        raise ValueError(
            f"of {length} positions none is counted, or too few are there: the summary has "
            f"{tokens} tokens, and {batch.skip} are skipped"
        )
    if sizes["N"] % max(excerpts * tokens, 1) or sizes["Z"] != sizes["S"] + 1:
        raise ValueError(
            f"a batch of {excerpts} excerpts of {tokens} tokens has a multiple of "
            f"{excerpts * tokens} positions and a segment's start more than rows, not "
            f"{sizes['N']}, {sizes['Z']} and {sizes['S']}"
        )
    if isinstance(batch.ids, np.ndarray):
        in_range("ids", batch.ids, 0, int(NO_ID))


def _check_sources(
    acts: Any, pre: Preactivations | None, sizes: dict[str, int], dtype: np.dtype
) -> None:
    """Raise ValueError unless activations `[B, L, F]` can be made of these, and lie in a row."""
    for name, array, start in _sources(pre):
        shape = tuple(array.shape)
        if dtype_of(array) != dtype.name or len(shape) != 3 or shape[:2] != tuple(acts.shape[:2]):
            raise ValueError(
                f"{name} is {array.dtype} {list(shape)}, the activations {acts.dtype} "
                f"{list(acts.shape)}"
            )
        if not 0 <= start <= shape[2] - sizes["F"]:
            raise ValueError(f"{name} has {shape[2]} columns, not {sizes['F']} from {start} on")
    if pre is not None and pre.nonlinearity not in NONLINEARITIES:
        raise ValueError(f"'{pre.nonlinearity}' is not one of {', '.join(NONLINEARITIES)}")
    for name, array in [("acts", acts), *((name, array) for name, array, _ in _sources(pre))]:
        if isinstance(array, np.ndarray) and not array.flags.c_contiguous:
            raise ValueError(f"{name} must be contiguous")


def check_merge(a: Summary, b: Summary) -> None:
    """Raise ValueError unless both are summaries of the same neurons, settings and seed."""
    _fit(SUMMARY, a, {"M": MOMENTS, "H": BINS, "1": 1}, a.top_acts.dtype)
    for name in a._fields:
        x, y = getattr(a, name), getattr(b, name)
        differ = x != y if name == "seed" else (x.shape, x.dtype) != (y.shape, y.dtype)
        if differ:
            raise ValueError(f"summaries of different {name} can't be merged")


def check_floating(array: Any) -> None:
    """Raise TypeError unless an array has floating numbers, or bfloat16 as 16-bit integers."""
    if dtype_of(array) not in (*ACTIVATIONS, "float64"):
        raise TypeError(
            f"activations are {array.dtype}; expected floating numbers, or bfloat16 as uint16"
        )


def check_lookup(tables: LookupTables, excerpts: HeldOut | None) -> None:
    """Raise ValueError unless `lookup` can take these; without `excerpts`, of the tables alone."""
    sizes: dict[str, int] = {}
    _fit(_TABLES, tables, sizes)
    if excerpts is None:
        return
    _fit(_HELD_OUT, excerpts, sizes)
    if not 0 <= excerpts.skip <= sizes["T"]:
        raise ValueError(f"skip is {excerpts.skip}; excerpts have {sizes['T']} tokens")
    if isinstance(excerpts.ids, np.ndarray):
        in_range("ids", excerpts.ids, -1, sizes["X"])
        # Of a large corpus a call reads the rows of few excerpts.
        used = np.zeros(sizes["X"], bool)
        used[excerpts.ids[excerpts.ids >= 0]] = True
        in_range("token_rows", excerpts.token_rows[used], -1, sizes["V"])
        in_range("pair_rows", excerpts.pair_rows[used], -1, sizes["P"])
        in_range("triple_rows", excerpts.triple_rows[used], -1, sizes["U"])


def check_excerpts(true: Any, simulated: Any, binary: Binary | None, scale: Any = None) -> None:
    """Raise ValueError or TypeError unless `excerpt_sums` or `best_threshold` can take these."""
    shape = tuple(true.shape)
    calibrated, threshold = None, None
    if binary is not None:
        scale, threshold, calibrated = binary
    for array, expected in ((true, shape), (simulated, shape), (calibrated, shape),
                            (scale, shape[:1]), (threshold, shape[:1])):  # fmt: skip
        if array is None:
            continue
        check_floating(array)
        if tuple(array.shape) != expected or len(shape) != 3:
            raise ValueError(
                f"expected arrays [N, E, T] of one shape and a number for each neuron, got "
                f"{list(array.shape)} beside {list(shape)}"
            )
    if shape[1] > MOST_EXCERPTS:
        raise ValueError(f"a neuron has {shape[1]} excerpts; {MOST_EXCERPTS} at most")


def check_weights(sums: ExcerptSums, weights: np.ndarray | None) -> None:
    """Raise ValueError or TypeError unless `measures` can take these."""
    _check_sums(sums)
    if weights is None:
        return
    check_floating(weights)
    if weights.shape != sums.sums.shape[:2]:
        raise ValueError(
            f"weights are {list(weights.shape)}, for sums of {list(sums.sums.shape[:2])} excerpts"
        )


def check_bootstrap(sums: ExcerptSums, top: np.ndarray, resamples: int) -> None:
    """Raise ValueError or TypeError unless `bootstrap` can take these."""
    _check_sums(sums)
    if top.dtype != np.bool_:
        raise TypeError(f"`top` is {top.dtype}; expected bool")
    if top.shape != sums.sums.shape[:2]:
        raise ValueError(
            f"`top` is {list(top.shape)}, for sums of {list(sums.sums.shape[:2])} excerpts"
        )
    if resamples < 1:
        raise ValueError(f"{resamples} resamples; expected 1 or more")


def _check_sums(sums: ExcerptSums) -> None:
    """Raise ValueError unless these are as `excerpt_sums` makes them."""
    _fit(_EXCERPT_SUMS, sums, {"M": len(SUMS)})
    in_range("ranked", sums.ranked, -1, 4 * sums.sums.shape[1])


def _sources(pre: Preactivations | None) -> list[tuple[str, Any, int]]:
    """What activations are made of: name, array, first column."""
    if pre is None:
        return []
    both = [("gate", pre.gate, pre.gate_start), ("up", pre.up, pre.up_start)]
    return both[: 1 if pre.up is None else 2]


def _fit(layout: Layout, record: Any, sizes: dict[str, int], acts: Any = None) -> None:
    """Raise ValueError unless arrays are as laid out; a letter's size is that of its first axis."""
    for name, (dtype, letters) in layout.items():
        array = getattr(record, name)
        shape, wanted = array.shape, acts if dtype == "acts" else _DTYPES[dtype]
        fits = len(shape) == len(letters)
        for letter, size in zip(letters, shape, strict=False):
            fits = fits and sizes.setdefault(letter, size) == size
        if not fits or (array.dtype != wanted and dtype_of(array) != str(wanted)):
            expected = ", ".join(str(sizes.get(letter, letter)) for letter in letters)
            raise ValueError(
                f"{name} is {array.dtype} {list(shape)}; expected {wanted} [{expected}]: "
                "the arrays do not fit together"
            )
