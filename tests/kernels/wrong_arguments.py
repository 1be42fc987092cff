"""Calls each kernel with arguments of which one is wrong; run in a process of its own.

`python wrong_arguments.py SEED COUNT` prints, by kernel, how many calls were refused, and how many
worked, since what was changed was of no consequence. Compiled code that reads what is not there may
end the process.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

import numpy as np

from fastexplain import kernels
from fastexplain.kernels.measuring import Binary
from fastexplain.kernels.signs import Signs
from fastexplain.kernels.summary import Batch, HeldOut, LookupTables, Preactivations, Summary

NEURONS, TOKENS, EXCERPTS, ROWS = 40, 6, 5, (4, 3, 2)


def arguments_of(kernel: str, rng: np.random.Generator) -> list[Any]:
    """Right arguments of a kernel."""
    ids = np.arange(EXCERPTS, dtype=np.int32)
    rows = [rng.integers(-1, n, (EXCERPTS, TOKENS)).astype(np.int32) for n in ROWS]
    acts = rng.standard_normal((EXCERPTS, TOKENS + 1, NEURONS), dtype=np.float32)
    summary = Summary.empty(
        NEURONS, TOKENS, acts.dtype, top=3, bottom=2, random_ids=ids[:2], table_rows=ROWS, seed=0
    )
    if kernel == "capture":
        batch = Batch.make(ids, *rows, skip=1, random_ids=ids[:2], table_rows=ROWS)
        pre = Preactivations("silu", acts, acts.copy()) if rng.random() < 0.5 else None
        return [acts, batch, summary, pre]
    if kernel == "capture_signs":
        batch = Batch.make(ids, *rows, skip=1, random_ids=ids[:2], table_rows=ROWS)
        signs = Signs.empty(NEURONS, TOKENS, acts.dtype, exemplars=2)
        return [acts, batch, signs, Preactivations("silu", acts, acts.copy())]
    if kernel == "merge":
        return [summary, summary]
    if kernel == "discretize":
        return [acts, np.ones(EXCERPTS, np.float32)]
    if kernel == "correlate":
        return [acts, acts.copy()]
    if kernel in ("excerpt_sums", "measures", "bootstrap", "best_threshold"):
        binary = Binary(np.ones(EXCERPTS), np.ones(EXCERPTS, np.float32), acts.copy())
        if kernel == "excerpt_sums":
            return [acts, acts.copy(), binary if rng.random() < 0.5 else None]
        if kernel == "best_threshold":
            return [acts, acts.copy(), binary.scale]
        sums = kernels.excerpt_sums(acts, acts, binary)
        top = np.arange(TOKENS + 1) < 3
        each = np.broadcast_to(top, (EXCERPTS, TOKENS + 1))
        return [sums, each.astype(np.float64) if kernel == "measures" else each]
    counts = [np.full(n, 9, np.int64) for n in ROWS]
    sums = summary.token_sums, summary.pair_sums, summary.triple_sums
    tables = LookupTables(*sums, *counts, np.ones(NEURONS), 99)
    chosen = np.stack([rng.permutation(EXCERPTS)[:3] for _ in range(NEURONS)]).astype(np.int32)
    return [tables, HeldOut(chosen, np.ones((NEURONS, 3, TOKENS), np.float32), *rows, 1)]


def changed(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An array with another shape, dtype, or one other value."""
    kind = rng.choice(["shorter", "longer", "axis", "dtype", "value"])
    axis = int(rng.integers(array.ndim))
    if kind == "shorter":
        return np.ascontiguousarray(np.delete(array, np.s_[-1:], axis))
    if kind == "longer":
        return np.concatenate([array] * int(rng.integers(2, 4)), axis)
    if kind == "axis":
        return array[..., None] if rng.random() < 0.5 else array.reshape(-1)
    if kind == "dtype":
        with np.errstate(invalid="ignore"):  # empty slots hold infinity
            return array.astype(rng.choice(["f8", "f4", "f2", "u2", "i2", "i4", "i8", "?"]))
    result = array.copy()
    if result.size and result.dtype.kind == "i":
        bits = np.iinfo(result.dtype).bits
        result.flat[rng.integers(result.size)] ^= result.dtype.type(1) << rng.integers(bits - 1)
        if rng.random() < 0.3:
            result.flat[rng.integers(result.size)] *= -1
    return result


def wrong(arguments: list[Any], rng: np.random.Generator) -> list[Any]:
    """The arguments with one array, or one number, changed."""
    place = rng.choice([i for i, each in enumerate(arguments) if each is not None])
    argument = arguments[place]
    if isinstance(argument, np.ndarray):
        new = changed(argument, rng)
    else:
        name = rng.choice([n for n in argument._fields if n not in ("seed", "nonlinearity")])
        value = getattr(argument, name)
        if isinstance(value, np.ndarray):
            new = argument._replace(**{name: changed(value, rng)})
        elif value is None:
            new = argument
        else:
            new = argument._replace(**{name: int(rng.choice([-7, -1, 2, 6, 50, 10**6]))})
    return [*arguments[:place], new, *arguments[place + 1 :]]


def main(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    outcomes: dict[str, Counter[str]] = {name: Counter() for name in kernels.__all__}
    for _ in range(count):
        for name in kernels.__all__:
            try:
                getattr(kernels, name)(*wrong(arguments_of(name, rng), rng))
                outcomes[name]["worked"] += 1
            except (ValueError, TypeError) as error:
                assert "\n" not in str(error), error  # Numba's own are long
                outcomes[name]["refused"] += 1
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
