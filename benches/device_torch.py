"""Checks that need a GPU and torch on it: a large shape, a CUDA graph, a compiled model."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import torch

from fastexplain.bench.geometries import random_subject
from fastexplain.bench.machine import TOKENS, zipf_tokens
from fastexplain.kernels.scalars import BINS, histogram_edges
from fastexplain.kernels.summary import Batch, Preactivations, Summary, smallest_hashes
from fastexplain.run.tables import Tables
from fastexplain.sweeping.summaries import Exemplars, kernel_dtype, on_device, on_host

CUDA = torch.device("cuda")
_LARGE = (512, 6400)  # excerpts and neurons: GPT-2 XL's layer, a sweep's batch
_TOP, _RANDOM = 20, 25
_ROWS = 4000


def check_large(nonlinearity: str | None, gated: bool, seed: int) -> None:
    """`capture` of `[512, 64, 6400]` bfloat16 against plain torch, in float64 where it adds."""
    generator = torch.Generator(CUDA).manual_seed(seed)
    excerpts, neurons = _LARGE

    def draw() -> torch.Tensor:
        shape = (excerpts, TOKENS, neurons)
        return torch.randn(shape, generator=generator, device=CUDA).bfloat16()

    tokens = zipf_tokens(excerpts, 20_000, seed=seed)
    tables = Tables.choose(tokens, skip=1, rows=_ROWS)
    families = dict(zip(("token", "pair", "triple"), tables.rows(tokens), strict=True))
    ids = np.arange(excerpts, dtype=np.int32)
    random_ids = smallest_hashes(ids, _RANDOM, 0)
    kept = _exemplars(neurons, torch.bfloat16, random_ids, tables.size)
    batch = Batch.make(
        ids, *families.values(), skip=1, random_ids=random_ids, table_rows=tables.size
    )
    if nonlinearity is None:
        acts, pre = draw(), None
    else:
        gate, up = draw(), draw() if gated else None
        acts = torch.full_like(gate, float("nan"))
        pre = Preactivations(nonlinearity, gate, up)
    kept.update(acts, on_device(batch, CUDA), pre)
    found = kept.summary()
    if pre is not None:
        exact = _activated(pre)
        error = (acts.double() - exact).abs()
        allowed = exact.abs() * (2.0**-8 + 1e-5) + 1e-6
        assert bool((error <= allowed).all()), f"activations are off by up to {error.max():.3g}"
        del exact, error, allowed

    counted = acts[:, 1:]
    maxima = counted.amax(1).float()
    keys, places = torch.sort(maxima, dim=0, descending=True, stable=True)
    _equal("top keys", np.sort(found.top_keys, 1)[:, ::-1], keys[:_TOP].T)
    order = np.lexsort((found.top_ids, -found.top_keys), axis=1)
    best = places[:_TOP].T
    _equal("top ids", np.take_along_axis(found.top_ids, order, 1), best.int())
    rows = acts[best.flatten(), :, torch.arange(neurons, device=CUDA).repeat_interleave(_TOP)]
    rows_found = np.take_along_axis(found.top_acts, order[..., None], 1)
    _equal("top activations", rows_found, rows.view(torch.uint16).view(neurons, _TOP, TOKENS))
    chosen = torch.from_numpy(random_ids.astype(np.int64)).to(CUDA)
    _equal("random activations", found.random_acts, acts[chosen].view(torch.uint16))

    _equal("positive", found.positive, (counted > 0).sum((0, 1)))
    _equal("minimum", found.minimum, counted.amin((0, 1)).float())
    _equal("maximum", found.maximum, counted.amax((0, 1)).float())
    edges = torch.from_numpy(histogram_edges()).to(CUDA)
    bins = torch.bucketize(maxima, edges, right=True)
    histogram = torch.zeros(neurons, BINS, dtype=torch.int32, device=CUDA)
    histogram.scatter_add_(1, bins.T.contiguous(), torch.ones_like(bins.T, dtype=torch.int32))
    _equal("histogram", found.histogram, histogram)
    exact = counted.double()
    for power in range(1, 5):
        terms = exact**power
        size = terms.abs().sum((0, 1))
        _close(f"sum of x**{power}", found.sums[power - 1], terms.sum((0, 1)), size)
    del terms
    positive = exact.clamp(min=0)
    total = positive.sum((0, 1))
    _close("sum of max(x, 0)", found.sums[4], total, total)
    for name, which in families.items():
        table = getattr(found, f"{name}_sums")
        place = torch.from_numpy(which[:, 1:].astype(np.int64)).to(CUDA).flatten()
        total = torch.zeros(len(table) + 1, neurons, dtype=torch.float64, device=CUDA)
        # What has no row goes to one past the last.
        place = torch.where(place < 0, len(table), place)
        total.index_add_(0, place, positive.reshape(-1, neurons))
        _close(f"{name} sums", table, total[:-1], total[:-1])


def _activated(pre: Preactivations) -> torch.Tensor:
    x = pre.gate.double()
    f = {
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        "silu": torch.nn.functional.silu,
        "relu": torch.relu,
        "relu2": lambda x: torch.relu(x).square(),
    }[pre.nonlinearity]
    return f(x) if pre.up is None else f(x) * pre.up.double()


def _exemplars(
    neurons: int, dtype: torch.dtype, random_ids: np.ndarray, rows: tuple[int, int, int]
) -> Exemplars:
    summary = Summary.empty(
        neurons, TOKENS, kernel_dtype(dtype), top=_TOP, bottom=0,
        random_ids=random_ids, table_rows=rows, seed=0,
    )  # fmt: skip
    return Exemplars(summary, CUDA)


def check_graph(nonlinearity: str | None, seed: int) -> None:
    """Captures in a CUDA graph, replayed for several batches: to the bit what launches give.

    The graph has the memory of one batch, into which each batch is copied.
    """
    generator = torch.Generator(CUDA).manual_seed(seed)
    excerpts, neurons, rounds = 64, 384, 4
    tokens = zipf_tokens(rounds * excerpts, 500, seed=seed)
    tables = Tables.choose(tokens, skip=1, rows=100)
    ids = np.arange(len(tokens), dtype=np.int32)
    random_ids = smallest_hashes(ids, _RANDOM, 0)
    inputs = torch.randn(
        rounds, excerpts, TOKENS, neurons, generator=generator, device=CUDA
    ).bfloat16()
    batches = [
        on_device(
            Batch.make(
                ids[rows], *tables.rows(tokens[rows]), skip=1, random_ids=random_ids,
                table_rows=tables.size,
            ),
            CUDA,
        )
        for rows in (slice(n * excerpts, (n + 1) * excerpts) for n in range(rounds))
    ]  # fmt: skip

    def step(kept: Exemplars, batch: Batch, source: torch.Tensor, acts: torch.Tensor) -> None:
        if nonlinearity is None:
            acts.copy_(source)
            kept.update(acts, batch)
        else:
            kept.update(acts, batch, Preactivations(nonlinearity, source))

    acts = torch.empty_like(inputs[0])
    launched = _exemplars(neurons, torch.bfloat16, random_ids, tables.size)
    for source, batch in zip(inputs, batches, strict=True):
        step(launched, batch, source, acts)

    warm = _exemplars(neurons, torch.bfloat16, random_ids, tables.size)
    replayed = _exemplars(neurons, torch.bfloat16, random_ids, tables.size)
    place, source = on_device(on_host(batches[0]), CUDA), inputs[0].clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(warm, place, source, acts)  # compiles and allocates, which a graph can't hold
    torch.cuda.synchronize()
    gc.collect()  # what Numba frees meanwhile would break the graph off
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step(replayed, place, source, acts)
    for number, batch in enumerate(batches):
        source.copy_(inputs[number])
        for array, new in zip(place, batch, strict=True):
            if isinstance(array, torch.Tensor):
                array.copy_(new)
        acts.fill_(float("nan"))
        graph.replay()
    ours, theirs = (kept.finalize(tables.size[1]) for kept in (replayed, launched))
    for name, array in theirs.items():
        _equal(name, ours[name], array)


def check_compiled(geometry: str) -> None:
    """Capture inside torch.compile's layers, and fused in eager ones, against what hooks see."""
    subject = random_subject(geometry, layers=3, device=CUDA.type, dtype="float32")
    tokens = zipf_tokens(96, subject.vocabulary_size, seed=1)
    ids = np.arange(len(tokens), dtype=np.int32)
    rows = np.full(tokens.shape, -1, np.int32)
    batch = on_device(
        Batch.make(ids, rows, rows, rows, skip=1, random_ids=ids[:_RANDOM], table_rows=(0, 0, 0)),
        CUDA,
    )
    seen: dict[int, torch.Tensor] = {}
    subject.trunk(
        torch.from_numpy(tokens),
        lambda layer, acts: seen.update({layer: acts[:, len(subject.lead) + 1 :].double()}),
    )
    for compiled in (False, True):
        kept = {
            layer: _exemplars(width, torch.float32, ids[:_RANDOM], (0, 0, 0))
            for layer, width in enumerate(subject.widths)
        }

        def fold(layer: int, acts: torch.Tensor, pre: Any, kept: Any = kept) -> None:
            assert pre is not None, f"layer {layer} was not fused"
            kept[layer].update(acts, batch, pre)

        subject.trunk(torch.from_numpy(tokens), None, fold=fold, compiled=compiled)
        for layer, acts in seen.items():
            found = kept[layer].summary()
            how = f"layer {layer}, {'compiled' if compiled else 'eager'}"
            # Relative to the size of what is added up: matrix products add in other orders.
            size = acts.abs().amax().item()
            for name, value, expected in (
                ("mean", found.sums[0] / acts[..., 0].numel(), acts.mean((0, 1))),
                ("maximum", found.maximum, acts.amax((0, 1))),
                ("minimum", found.minimum, acts.amin((0, 1))),
            ):
                off = np.abs(value - expected.cpu().numpy()).max() / size
                assert off < 1e-3, f"{how}: {name} is off by {off:.2g} of the largest activation"


def _equal(what: str, found: np.ndarray, expected: torch.Tensor | np.ndarray) -> None:
    if isinstance(expected, torch.Tensor):
        expected = expected.cpu().numpy()
    np.testing.assert_array_equal(found, expected, err_msg=what)


def _close(what: str, found: np.ndarray, expected: torch.Tensor, size: torch.Tensor) -> None:
    """A sum to rounding, by the sum of its terms' sizes: those of either sign may cancel."""
    off = np.abs(found - expected.cpu().numpy())
    worst = (off / np.maximum(size.cpu().numpy(), 1e-30)).max(initial=0)
    assert worst < 1e-6, f"{what} is off by {worst:.2g} of its terms"
