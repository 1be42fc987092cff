"""Times of the kernels on a GPU, what is hoped of them, and where a batch's time goes."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from fastexplain import kernels
from fastexplain.bench.geometries import random_subject
from fastexplain.bench.machine import (
    TOKENS,
    CaptureForm,
    capture_bandwidth,
    copy_bandwidth,
    first_captures,
    matrix_rate,
    median_seconds,
    synchronize,
    zipf_tokens,
)
from fastexplain.bench.turns import BATCH, table_bytes
from fastexplain.bench.ways import Way, make_ways
from fastexplain.kernels.cuda import capture as cuda_capture
from fastexplain.kernels.cuda.queue import Queue
from fastexplain.kernels.summary import HeldOut, LookupTables

CUDA = torch.device("cuda")
_EXCERPTS, _NEURONS = 1024, 6400  # [65536, 6400] activations, of GPT-2 XL
_ALL_NEURONS, _HELD_OUT = 300_000, 10  # about GPT-2 XL's, and the excerpts of a score
_ROWS = (4369, 1086, 370)  # of a gigabyte of tables for smollm2's neurons
_LOOKUP_ROWS = (600, 220, 75)  # the same gigabyte for 300,000

BARS: tuple[tuple[str, str, float], ...] = (
    ("capture plain over copy", "kernels/capture plain/of_copy", 0.85),
    ("capture fused over copy", "kernels/capture gelu_tanh/of_copy", 0.85),
    ("capture gated over copy", "kernels/capture silu gated/of_copy", 0.85),
    ("gpt2-xl: sweep over eager trunk", "gpt2-xl/ratios/BEST/trunk", 1.5),
    ("gpt2-xl: sweep over compiled trunk", "gpt2-xl/ratios/sweep_compiled/trunk_compiled", 0.97),
    ("gpt2-xl: the same with tables", "gpt2-xl/ratios/sweep_compiled_tables/trunk_compiled", 0.92),
    ("gpt2-xl: sweep over the peer's way", "gpt2-xl/ratios/BEST/peer", 3.0),
    ("gpt2-xl: sweep, tokens/s", "gpt2-xl/ways/BEST/tokens_per_second", 150_000),
    ("llama-8b: sweep over compiled trunk", "llama-8b/ratios/sweep_compiled/trunk_compiled", 0.97),
    ("llama-8b: the same with tables", "llama-8b/ratios/sweep_compiled_tables/trunk_compiled",
     0.92),
    ("llama-8b: sweep over the peer's way", "llama-8b/ratios/BEST/peer", 3.0),
    ("llama-8b: sweep, tokens/s", "llama-8b/ways/BEST/tokens_per_second", 31_000),
)  # fmt: skip
"""What is hoped for: a name, where the record has the number, and the least that it should be.

BEST is the faster of the eager and the compiled sweep without tables.
"""


def machine_rates() -> dict[str, float]:
    """Copy in bytes a second, read and written; bfloat16 matrix products in operations a second."""
    return {"copy": copy_bandwidth(CUDA), "matrix": matrix_rate(CUDA, torch.bfloat16)}


Steps = Iterator[tuple[str, Callable[[], Any]]]
"""Names and what is to be done under them, one after another."""


def kernel_steps(copy: float) -> Steps:
    """Times of `capture`, and of the kernels that work on all neurons at once, beside the copy."""

    def timed(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        torch.cuda.empty_cache()
        one = run()
        return {**one, "of_copy": one["bytes_per_second"] / copy}

    for steps in (_capture_steps(), _neuron_steps()):
        for name, run in steps:
            yield name, functools.partial(timed, run)


def _capture_steps() -> Steps:
    """`capture` of `[65536, 6400]` bfloat16: reading, making activations, and with tables.

    `first_seconds` are those of a sweep's first batches, in which most exemplars are taken; the
    host's launches are in them, which the others are without.
    """
    forms: dict[str, dict[str, Any]] = {
        "plain": {},
        "gelu_tanh": {"nonlinearity": "gelu_tanh"},
        "silu gated": {"nonlinearity": "silu", "gated": True},
        "plain with tables": {"table_rows": _ROWS},
        "silu gated with tables": {"nonlinearity": "silu", "gated": True, "table_rows": _ROWS},
    }

    def timed(form: CaptureForm) -> dict[str, Any]:
        return {**capture_bandwidth(form), "first_seconds": first_captures(form)}

    for name, more in forms.items():
        form = CaptureForm(_EXCERPTS, _NEURONS, torch.bfloat16, CUDA, **more)
        yield f"capture {name}", functools.partial(timed, form)


def _without_allocation(run: Callable[[], object]) -> Callable[[], object]:
    """The call with the arrays of its first time for its results, so that none is allocated."""
    kept: list[Any] = []
    allocate = Queue.empty

    def again() -> object:
        places = iter(kept)

        def empty(queue: Any, shape: Any, dtype: Any) -> Any:
            array = next(places, None)
            if array is None:
                array = allocate(queue, shape, dtype)
                kept.append(array)
            return array

        with mock.patch.object(Queue, "empty", empty):
            return run()

    return again


def _neuron_steps() -> Steps:
    """The kernels that work on all neurons at once: 300,000, ten excerpts of 64 tokens each.

    Bytes are those of the large arrays, read and written once.
    """

    def timed(name: str) -> dict[str, Any]:
        run, size = _neuron_work()[name]
        seconds = median_seconds(_without_allocation(run), CUDA)
        return {"seconds": seconds, "bytes": size, "bytes_per_second": size / seconds}

    for name in ("discretize", "correlate", "lookup"):
        yield name, functools.partial(timed, name)


@functools.cache
def _neuron_work() -> dict[str, tuple[Callable[[], object], int]]:
    """What to call and its bytes, by kernel, all on the same arrays."""
    shape = (_ALL_NEURONS, _HELD_OUT, TOKENS)
    generator = torch.Generator(CUDA).manual_seed(0)
    true = torch.randn(shape, generator=generator, device=CUDA)
    simulated = true + torch.randn(shape, generator=generator, device=CUDA)
    scale = true.amax((1, 2))
    sparse = [
        torch.rand(count, _ALL_NEURONS, generator=generator, device=CUDA) for count in _LOOKUP_ROWS
    ]
    rng = np.random.default_rng(0)
    excerpts = 4096
    tokens = zipf_tokens(excerpts, 4 * sum(_LOOKUP_ROWS), seed=0)
    token_rows = np.where(tokens < _LOOKUP_ROWS[0], tokens, -1).astype(np.int32)
    pair_rows, triple_rows = (
        np.maximum(rng.integers(-3 * count, count, tokens.shape), -1).astype(np.int32)
        for count in _LOOKUP_ROWS[1:]
    )
    first = rng.integers(excerpts, size=(_ALL_NEURONS, 1))
    step = 2 * rng.integers(1, excerpts // 2, size=(_ALL_NEURONS, 1)) + 1  # odd: no id twice
    ids = ((first + step * np.arange(_HELD_OUT)) % excerpts).astype(np.int32)

    def there(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(CUDA)

    tables = LookupTables(
        *sparse,
        *(there(np.full(count, 10_000, np.int64)) for count in _LOOKUP_ROWS),
        torch.full((_ALL_NEURONS,), 1e6, dtype=torch.float64, device=CUDA),
        100_000_000,
    )
    held_out = HeldOut(there(ids), true, there(token_rows), there(pair_rows), there(triple_rows), 1)
    values = true.numel()
    return {
        "discretize": (lambda: kernels.discretize(true, scale), values * 5),
        "correlate": (lambda: kernels.correlate(true, simulated), values * 8),
        "lookup": (lambda: kernels.lookup(tables, held_out),
                   values * 8 + sum(table.nbytes for table in sparse)),
    }  # fmt: skip


def look_up(record: dict[str, Any], path: str) -> float | None:
    """The number at a path of `BARS`; None where it was not measured."""
    value: Any = record
    for key in path.split("/"):
        if key == "BEST":
            value = _best(value)
        elif not isinstance(value, dict):
            return None
        else:
            value = value.get(key)
        if value is None:
            return None
    return float(value)


def _best(ways: Any) -> Any:
    """Of the sweeps without tables the one with the largest numbers."""
    found = [ways[name] for name in ("sweep", "sweep_compiled") if name in ways]
    return max(found, key=lambda way: next(iter(way.values())), default=None)


def bars(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of `BARS` that the record's parts are about, with what was found."""
    return [
        {"name": name, "least": least, "found": look_up(record, path)}
        for name, path, least in BARS
        if path.split("/")[0] in record
    ]


def tune_steps() -> Steps:
    """`capture` by `fold`'s registers and the threads that are wanted, in two models' shapes.

    Fewer registers let a multiprocessor hold more threads; as many threads are wanted as fill an
    H200 once, or twice where that is over 100,000.
    """

    def timed(registers: int, threads: int, form: CaptureForm) -> dict[str, float]:
        torch.cuda.empty_cache()
        with mock.patch.multiple(cuda_capture, _REGISTERS=registers, _WANTED_THREADS=threads):
            return capture_bandwidth(form)

    for name, (neurons, more) in _TUNED_FORMS.items():
        form = CaptureForm(BATCH["cuda"], neurons, torch.bfloat16, CUDA, **more)
        for registers, threads in _TUNED:
            label = f"{name}, {registers} registers, {threads} threads"
            yield label, functools.partial(timed, registers, threads, form)


_TUNED_FORMS: dict[str, tuple[int, dict[str, Any]]] = {
    "gpt2-xl": (6400, {"nonlinearity": "gelu_tanh"}),
    "llama-8b": (14336, {"lead": 1, "nonlinearity": "silu", "gated": True}),
}
_TUNED = ((128, 61_000), (96, 76_000), (80, 91_000), (96, 61_000), (128, 1 << 17), (96, 1 << 17))


def profile_steps() -> Steps:
    """A batch of the bare and of the swept trunk, with the host's time and each kernel's."""
    for geometry, layers in _PROFILED:
        for way in ("trunk_compiled", "sweep_compiled", "sweep_compiled_tables"):
            label = f"{geometry}, {layers} layers, {way}"
            yield label, functools.partial(_profile, geometry, layers, way)


_PROFILED = (("gpt2-xl", 12), ("gpt2", 12), ("llama-8b", 6))
_PROFILE_STEPS, _LISTED = 8, 20


@functools.lru_cache(maxsize=1)
def _ways_of(geometry: str, layers: int) -> dict[str, Way]:
    """The ways of one subject, the last one that was asked for."""
    gc.collect()  # the one before, of which a model's own references to itself may be left
    torch.cuda.empty_cache()
    torch._dynamo.reset()
    subject = random_subject(geometry, layers=layers, device=CUDA.type, dtype="bfloat16")
    tokens = zipf_tokens(_PROFILE_STEPS * BATCH["cuda"], subject.vocabulary_size, seed=0)
    size = table_bytes(subject)
    return make_ways(subject, tokens, batch_size=BATCH["cuda"], table_bytes=size)[0]


def _profile(geometry: str, layers: int, way: str) -> dict[str, Any]:
    """Times in seconds: `host` until a batch is queued, `whole` until it is done, and by name.

    Of these, `kernels` are the device's, `calls` the host's own, in a batch of its own, which the
    profiler makes slower.
    """
    ways = _ways_of(geometry, layers)
    with ways[way].prepared():
        for _ in range(_PROFILE_STEPS - 3):
            ways[way].step()
        synchronize(CUDA)
        began = time.perf_counter()
        ways[way].step()
        host = time.perf_counter() - began
        synchronize(CUDA)
        whole = time.perf_counter() - began
        on_cpu, on_gpu = ProfilerActivity.CPU, ProfilerActivity.CUDA
        with profile(activities=[on_gpu if CUDA.type == "cuda" else on_cpu]) as profiled:
            ways[way].step()
            synchronize(CUDA)
        with profile(activities=[on_cpu]) as called:
            ways[way].step()
    if not profiled.key_averages():
        raise RuntimeError("the profiler saw no kernel")
    kernels_seen = _longest(profiled, "device_time_total")
    for each in kernels_seen[:8]:
        print(f"{each['seconds'] * 1e3:19.3f} ms {each['count']:5}x  {each['name'][:60]}")
    calls = _longest(called, "self_cpu_time_total")
    for each in calls[:6]:
        print(
            f"{each['seconds'] * 1e3:14.3f} ms of the host {each['count']:5}x  {each['name'][:40]}"
        )
    print(f"{host * 1e3:19.3f} ms of the host, {whole * 1e3:.3f} ms in all", flush=True)
    return {"host": host, "whole": whole, "kernels": kernels_seen, "calls": calls}


def _longest(profiled: profile, time: str) -> list[dict[str, Any]]:
    """What took longest by that attribute of the profiler's averages."""
    found = sorted(profiled.key_averages(), key=lambda each: -getattr(each, time))
    return [
        {"name": each.key[:80], "count": each.count, "seconds": getattr(each, time) / 1e6}
        for each in found[:_LISTED]
    ]
