"""The CUDA kernels against `fastexplain.kernels.reference`, on fresh random inputs.

Arrays go to the device by Numba, not by torch, so that the same code runs in Numba's simulator
(`NUMBA_ENABLE_CUDASIM=1`), where shapes must be tiny. Outputs are filled with NaN beforehand.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import cuda

from fastexplain import kernels
from fastexplain.kernels import reference
from fastexplain.kernels.cuda import capture as cuda_kernels
from fastexplain.kernels.cuda import merge as cuda_merge
from fastexplain.kernels.cuda import neurons as cuda_neurons
from fastexplain.kernels.scalars import NO_ID, NONLINEARITIES
from fastexplain.kernels.summary import (
    Batch,
    HeldOut,
    LookupTables,
    Preactivations,
    Summary,
    moved,
    narrow,
    smallest_hashes,
    widen,
)

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
if SIMULATED:  # which starts a Python thread for every CUDA thread
    import simulator  # noqa: F401

    cuda_kernels._INSERT_THREADS = 4
    cuda_kernels._THREADS = cuda_kernels._NEURON_THREADS = 8
    cuda_kernels._TABLE_THREADS, cuda_kernels._COPY_BLOCKS = (4, 2), 2
    cuda_kernels._BINS_BLOCK, cuda_kernels._ALONE = (4, 8, 6), 2
    cuda_neurons._THREADS = cuda_neurons._TILE = cuda_merge._THREADS = 4

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
LAYOUTS = ("plain", "gated", "halves", "halves swapped", "padded")

# Summation order differs, and terms are float32 before they are added.
_SUMS = ("sums", "token_sums", "pair_sums", "triple_sums")
_SUM_RELATIVE, _SUM_OF_LARGEST = 1e-5, 1e-6
# What float32 arithmetic may be off by, relative to the value and to what it was made of.
_RELATIVE, _OF_INPUT = 1e-5, 1e-6


def implementation(name: str) -> Callable[..., Any]:
    """The kernel of that name, by the package's own dispatch, which knows no simulated arrays."""
    if not SIMULATED:
        return getattr(kernels, name)
    return getattr(cuda_kernels if name == "capture" else cuda_neurons, name)


def to_device(array: np.ndarray) -> Any:
    return cuda.to_device(np.ascontiguousarray(array))


def to_host(array: Any) -> np.ndarray:
    """A device array's copy in host memory; what is there already is returned as it is."""
    if hasattr(array, "copy_to_host"):
        return array.copy_to_host()
    if hasattr(array, "__cuda_array_interface__"):
        return cuda.as_cuda_array(array).copy_to_host()
    return array


@dataclass(frozen=True)
class CaptureCase:
    """One small sweep. Without a nonlinearity, activations are read; with one, they are made."""

    dtype: str
    neurons: int
    nonlinearity: str | None = None
    layout: str = "plain"
    values: str = "wide"
    excerpts: int = 9
    tokens: int = 7
    lead: int = 1
    skip: int = 1
    top: int = 3
    bottom: int = 2
    random: int = 3
    rows: tuple[int, int, int] = (4, 3, 2)
    seed: int = 0

    def __str__(self) -> str:
        what = self.nonlinearity or "activations"
        return (
            f"capture {what} {self.layout} {self.dtype} [{self.excerpts}, "
            f"{self.lead}+{self.tokens}, {self.neurons}] {self.values} skip {self.skip} "
            f"seed {self.seed}"
        )


def capture_cases(rng: np.random.Generator) -> Iterator[CaptureCase]:
    """What must be seen, then random combinations without end."""
    wide = [1, 3, 5] if SIMULATED else [1, 3, 130, 1537]

    def seed() -> int:
        return int(rng.integers(2**31))

    read, made = [], []
    for number, dtype in enumerate(DTYPES):
        for values in ("ties", "wide", "negative"):
            neurons = wide[number % len(wide)]
            read.append(CaptureCase(dtype, neurons, values=values, seed=seed()))
        read.append(CaptureCase(dtype, 4, lead=0, skip=0, bottom=0, seed=seed()))
        more = {"lead": number % 2, "rows": (0, 0, 0), "random": 0}
        read.append(CaptureCase(dtype, wide[-1], seed=seed(), **more))
    dtypes = list(DTYPES)
    for number, nonlinearity in enumerate(NONLINEARITIES):
        plain, neurons = dtypes[number % len(dtypes)], wide[number % len(wide)]
        made.append(CaptureCase(plain, neurons, nonlinearity, "plain", "normal", seed=seed()))
        neurons = 4 if SIMULATED else 256  # as many as models have, that is, of a whole word
        made.append(
            CaptureCase("bfloat16", neurons, nonlinearity, "gated", "normal", lead=0, seed=seed())
        )
    for number, (layout, dtype) in enumerate(itertools.product(LAYOUTS[1:], dtypes)):
        nonlinearity, neurons = NONLINEARITIES[number % 5], wide[number % len(wide)]
        made.append(CaptureCase(dtype, neurons, nonlinearity, layout, "normal", seed=seed()))
    for pair in itertools.zip_longest(made, read):
        yield from (case for case in pair if case is not None)
    while True:
        nonlinearity = rng.choice([None, *NONLINEARITIES])
        yield CaptureCase(
            dtype=str(rng.choice(list(DTYPES))),
            neurons=int(rng.choice(wide)),
            nonlinearity=nonlinearity,
            layout="plain" if nonlinearity is None else str(rng.choice(LAYOUTS)),
            values=str(rng.choice(["normal", "ties", "wide", "negative", "zero"]))
            if nonlinearity is None
            else "normal",
            excerpts=int(rng.integers(1, 14)),
            tokens=int(rng.choice([2, 5, 9])),
            lead=int(rng.integers(2)),
            skip=int(rng.integers(2)),
            top=int(rng.integers(1, 6)),
            bottom=int(rng.integers(3)),
            random=int(rng.integers(4)),
            rows=(int(rng.integers(5)), int(rng.integers(5)), int(rng.integers(5))),
            seed=seed(),
        )


def check_capture(case: CaptureCase) -> None:
    """Two batches into one summary. The activations to rounding, the summary exactly theirs."""
    rng = np.random.default_rng(case.seed)
    ids = rng.permutation(3 * case.excerpts)[: case.excerpts].astype(np.int32)
    slow = _empty(case, ids)
    fast = moved(slow, to_device)
    for members in np.array_split(np.arange(case.excerpts), 2):
        if len(members) == 0:
            continue
        batch = _batch(case, rng, ids[members], slow.random_ids)
        acts, pre = _inputs(case, rng, len(members))
        expected = acts.copy() if pre is None else reference.activations(pre, case.neurons)
        place, device_pre = _on_device(acts, pre, in_place=case.seed % 2 == 0)
        implementation("capture")(place, moved(batch, to_device), fast, device_pre)
        found = to_host(place)
        if pre is None:
            _same("activations that were to be read", found, expected)
        else:
            _activated(pre, found, expected)
        reference.capture(found, batch, slow)
    compare_summaries(moved(fast, to_host), slow)


def check_fault(dtype: str, nonlinearity: str | None, bad: float, seed: int) -> None:
    """The excerpt with a counted value that is not finite is named; one not counted is ignored."""
    case = CaptureCase(dtype, 5, nonlinearity, "plain", "normal", seed=seed)
    rng = np.random.default_rng(seed)
    ids = np.arange(10, 10 + case.excerpts, dtype=np.int32)
    for place, expected in (((4, 5, 3), 14), ((4, 1, 3), int(NO_ID))):
        summary = _empty(case, ids)
        fast = moved(summary, to_device)
        batch = _batch(case, rng, ids, summary.random_ids)
        acts, pre = _inputs(case, rng, case.excerpts)
        source = acts if pre is None else pre.gate
        source[place] = narrow(np.array([bad], np.float32), source.dtype)[0]
        device_acts, device_pre = _on_device(acts, pre)
        implementation("capture")(device_acts, moved(batch, to_device), fast, device_pre)
        found = int(to_host(fast.fault)[0])
        assert found == expected, f"fault is {found}, not {expected}, for {bad} at {place}"


def check_merge(case: CaptureCase) -> None:
    """Two disjoint summaries into one, against the reference."""
    rng = np.random.default_rng(case.seed)
    ids = rng.permutation(3 * case.excerpts)[: case.excerpts].astype(np.int32)
    parts = []
    for part in np.array_split(ids, 2):
        summary = _empty(case, part)
        acts, _ = _inputs(case, rng, len(part))
        reference.capture(acts, _batch(case, rng, part, summary.random_ids), summary)
        parts.append(summary)
    merged = implementation("merge")(*(moved(part, to_device) for part in parts))
    compare_summaries(moved(merged, to_host), reference.merge(*parts))


def check_discretize(dtype: str, shape: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.choice([-1.0, 0.0, 0.1, 0.3, 0.7, 1.0, 2.9, 3.0], shape).astype(np.float32)
    acts = narrow(values * rng.random(shape, dtype=np.float32).round(1), np.dtype(DTYPES[dtype]))
    scale = widen(acts).reshape(shape[0], -1).max(axis=1)
    scale[::3] = rng.choice([-1.0, 0.0, 0.5], len(scale[::3]))
    found = implementation("discretize")(to_device(acts), to_device(scale))
    _same("values", to_host(found), reference.discretize(acts, scale))


def check_correlate(kind: str, shape: tuple[int, int, int], seed: int) -> None:
    """`[neurons, excerpts, tokens]`, with gaps, ties, constants or a large offset."""
    rng = np.random.default_rng(seed)
    true = rng.standard_normal(shape).astype(np.float32)
    if kind == "ties":
        true = np.round(true)
    elif kind == "constant":
        true[::2] = np.float32(0.1)
    elif kind == "large":
        true += np.float32(1e4)
    simulated = (true + rng.standard_normal(shape)).astype(np.float32)
    if kind == "gaps":
        simulated[rng.random(shape) < 0.3] = np.nan
        simulated[0] = np.nan
    found = implementation("correlate")(to_device(true), to_device(simulated))
    expected = reference.correlate(true, simulated)
    for name in expected._fields:
        np.testing.assert_allclose(
            to_host(getattr(found, name)), getattr(expected, name),
            rtol=1e-7, atol=1e-9, err_msg=name,
        )  # fmt: skip


def check_lookup(shape: tuple[int, int, int], skip: int, seed: int) -> None:
    """`[neurons, excerpts held out, tokens]`; some are missing, some tokens are in no table."""
    rng = np.random.default_rng(seed)
    neurons, held, tokens = shape
    excerpts, rows = 2 * held + 3, (5, 7, 6)
    acts = rng.standard_normal((excerpts, tokens, neurons), dtype=np.float32)
    families = [rng.integers(-1, count, (excerpts, tokens)).astype(np.int32) for count in rows]
    ids = np.stack([rng.permutation(excerpts)[:held] for _ in range(neurons)]).astype(np.int32)
    true = acts[ids, :, np.arange(neurons)[:, None]]
    ids[rng.random(ids.shape) < 0.2] = -1
    tables = _tables(acts, families, rows, skip)
    held_out = HeldOut(ids, true, *families, skip)
    found = implementation("lookup")(moved(tables, to_device), moved(held_out, to_device))
    expected = reference.lookup(tables, held_out)
    np.testing.assert_allclose(to_host(found), expected, rtol=1e-5, atol=1e-6)


def compare_summaries(fast: Summary, slow: Summary) -> None:
    """Equal bit for bit once exemplars are in order, sums to rounding; raises AssertionError."""
    for end in ("top", "bottom"):
        ours, theirs = (_ordered(summary, end) for summary in (fast, slow))
        for what, x, y in zip(("keys", "ids", "activations"), ours, theirs, strict=True):
            _same(f"{end} {what}", x, y)
    for name in Summary._fields:
        x, y = getattr(fast, name), getattr(slow, name)
        if name in _SUMS:
            largest = np.abs(y).max(initial=0)
            np.testing.assert_allclose(
                x, y, rtol=_SUM_RELATIVE, atol=_SUM_OF_LARGEST * largest, err_msg=name
            )
        elif not name.startswith(("top", "bottom")):
            _same(name, x, y)


def _ordered(summary: Summary, end: str) -> list[np.ndarray]:
    keys, ids, acts = (getattr(summary, f"{end}_{what}") for what in ("keys", "ids", "acts"))
    order = np.lexsort((ids, -keys), axis=1)
    kept = np.take_along_axis(acts, order[..., None], axis=1)
    return [np.take_along_axis(keys, order, axis=1), np.take_along_axis(ids, order, axis=1), kept]


def _same(what: str, x: Any, y: Any) -> None:
    np.testing.assert_array_equal(x, y, err_msg=what)


def _activated(pre: Preactivations, found: np.ndarray, expected: np.ndarray) -> None:
    """Within one unit of the last place in 16 bits, and what float32 arithmetic loses."""
    exact = widen(expected).astype(np.float64)
    size = 1.0 if pre.up is None else max(float(np.abs(widen(pre.up)).max(initial=0)), 1.0)
    allowed = _RELATIVE * np.abs(exact) + _OF_INPUT * size
    if found.dtype == np.uint16:
        allowed += np.spacing(np.abs(widen(expected))) * 2.0**16
    elif found.dtype == np.float16:
        allowed += np.spacing(np.abs(expected)).astype(np.float64)
    wrong = ~(np.abs(widen(found) - exact) <= allowed)  # NaN is wrong
    assert not wrong.any(), (
        f"{wrong.sum()} of {wrong.size} activations are off, the first at "
        f"{np.argwhere(wrong)[0].tolist()}: {widen(found)[wrong][0]}, not {exact[wrong][0]}"
    )


def _empty(case: CaptureCase, ids: np.ndarray) -> Summary:
    return Summary.empty(
        case.neurons,
        case.tokens,
        np.dtype(DTYPES[case.dtype]),
        top=case.top,
        bottom=case.bottom,
        random_ids=smallest_hashes(ids, case.random, case.seed),
        table_rows=case.rows,
        seed=case.seed,
    )


def _batch(
    case: CaptureCase, rng: np.random.Generator, ids: np.ndarray, random_ids: np.ndarray
) -> Batch:
    rows = [
        rng.integers(-1, max(count, 0), (len(ids), case.tokens)).astype(np.int32)
        for count in case.rows
    ]
    return Batch.make(ids, *rows, skip=case.skip, random_ids=random_ids, table_rows=case.rows)


def _inputs(
    case: CaptureCase, rng: np.random.Generator, excerpts: int
) -> tuple[np.ndarray, Preactivations | None]:
    """Activations to read; or NaN in their place, and what to make them of."""
    dtype = np.dtype(DTYPES[case.dtype])

    def values(width: int) -> np.ndarray:
        shape = (excerpts, case.lead + case.tokens, width)
        normal = rng.standard_normal(shape, dtype=np.float32)
        drawn = {
            "normal": lambda: 3 * normal,
            "ties": lambda: np.round(normal),
            "wide": lambda: normal * np.float32(2.0) ** rng.integers(-24, 12, shape),
            "negative": lambda: -np.abs(normal) - np.float32(0.1),
            "zero": lambda: np.zeros(shape, np.float32),
        }[case.values]()
        if case.nonlinearity is not None:
            special = rng.choice(np.array([0, -0.0, 1, -1, 12, -12, 1e-30], np.float32), shape)
            drawn = np.where(rng.random(shape) < 0.3, special, drawn)
        return narrow(drawn.astype(np.float32), dtype)

    if case.nonlinearity is None:
        return values(case.neurons), None
    unwritten = narrow(np.full(values(case.neurons).shape, np.nan, np.float32), dtype)
    if case.layout in ("plain", "gated"):
        up = values(case.neurons) if case.layout == "gated" else None
        return unwritten, Preactivations(case.nonlinearity, values(case.neurons), up)
    gate_start, up_start, wider = {
        "halves": (0, case.neurons, 0),
        "halves swapped": (case.neurons, 0, 0),
        "padded": (1, case.neurons + 3, 5),
    }[case.layout]
    both = values(2 * case.neurons + wider)
    return unwritten, Preactivations(case.nonlinearity, both, both, gate_start, up_start)


def _on_device(
    acts: np.ndarray, pre: Preactivations | None, in_place: bool = True
) -> tuple[Any, Preactivations | None]:
    """Both on the device; a gate as wide as the activations may be in their memory."""
    if pre is None:
        return to_device(acts), None
    gate = to_device(pre.gate)
    up = gate if pre.up is pre.gate else None if pre.up is None else to_device(pre.up)
    place = gate if in_place and pre.gate.shape == acts.shape else to_device(acts)
    return place, pre._replace(gate=gate, up=up)


def _tables(
    acts: np.ndarray, families: list[np.ndarray], rows: tuple[int, int, int], skip: int
) -> LookupTables:
    """What a sweep's tables would hold of `acts` `[excerpts, tokens, neurons]`."""
    positive = np.maximum(acts[:, skip:], 0).astype(np.float64)
    sums, counts = [], []
    for which, count in zip(families, rows, strict=True):
        known = which[:, skip:] >= 0
        total = np.zeros((count, acts.shape[2]))
        np.add.at(total, which[:, skip:][known], positive[known])
        sums.append(total.astype(np.float32))
        counts.append(np.bincount(which[:, skip:][known], minlength=count).astype(np.int64))
    return LookupTables(
        *sums, *counts, positive.sum(axis=(0, 1)), positive.shape[0] * positive.shape[1]
    )
