"""The kernels alone: bandwidth of `capture`, and all neurons at once against a NumPy loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastexplain import kernels
from fastexplain.bench.machine import CaptureForm, capture_bandwidth, copy_bandwidth
from fastexplain.kernels.summary import HeldOut, LookupTables

EXCERPTS, TOKENS, NEURONS = 64, 64, 1536
CPU = torch.device("cpu")


@pytest.mark.parametrize("nonlinearity", [None, "silu"], ids=["reading", "making"])
@pytest.mark.parametrize("tables", [False, True], ids=["alone", "with_tables"])
def test_capture(benchmark, tables: bool, nonlinearity: str | None) -> None:
    """GB/s read and written, beside those of a copy, once the exemplars are good."""
    form = CaptureForm(
        EXCERPTS, NEURONS, torch.float32, CPU, nonlinearity=nonlinearity,
        gated=nonlinearity is not None, table_rows=(1900, 2900, 1000) if tables else (0, 0, 0),
    )  # fmt: skip
    found = benchmark.pedantic(capture_bandwidth, (form,), rounds=1)  # it repeats itself
    benchmark.extra_info["gigabytes_per_second"] = round(found["bytes_per_second"] / 1e9, 2)
    benchmark.extra_info["of_copy"] = round(found["bytes_per_second"] / copy_bandwidth(CPU), 3)
    print(benchmark.extra_info)


@pytest.mark.parametrize("way", ["fastexplain", "numpy_loop"])
def test_correlate(benchmark, way: str) -> None:
    """Scores of 4,608 neurons on 10 excerpts of 64 tokens; NumPy finds the correlation alone."""
    rng = np.random.default_rng(0)
    true = rng.standard_normal((4608, 10, 64), dtype=np.float32)
    simulated = true + rng.standard_normal(true.shape, dtype=np.float32)
    ways = {
        "fastexplain": lambda: kernels.correlate(true, simulated),
        "numpy_loop": lambda: [
            np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(true, simulated, strict=True)
        ],
    }
    benchmark.pedantic(ways[way], rounds=5, iterations=1, warmup_rounds=1)


@pytest.mark.parametrize("neurons", [1536, 14336])
def test_lookup(benchmark, neurons: int) -> None:
    """Predictions for all neurons of a layer, on 5 excerpts of their own and 5 that all share."""
    rng = np.random.default_rng(0)
    excerpts, rows = 2048, (4400, 1100, 300)
    token_rows = np.minimum(rng.zipf(1.2, (excerpts, TOKENS)) - 1, rows[0]).astype(np.int32)
    token_rows[token_rows == rows[0]] = -1
    pair_rows, triple_rows = (
        np.maximum(rng.integers(-count, count, (excerpts, TOKENS)), -1).astype(np.int32)
        for count in rows[1:]
    )
    tables = LookupTables(
        *(rng.random((count, neurons), dtype=np.float32) * 30 for count in rows),
        *(np.full(count, 30, np.int64) for count in rows),
        positive_sums=np.full(neurons, excerpts * TOKENS / 2.0),
        count=excerpts * TOKENS,
    )
    ids = rng.integers(5, excerpts, (neurons, 10)).astype(np.int32)
    ids[:, 5:] = np.arange(5)
    activations = rng.random((neurons, 10, TOKENS), dtype=np.float32)
    held_out = HeldOut(ids, activations, token_rows, pair_rows, triple_rows, 1)
    benchmark.pedantic(
        lambda: kernels.lookup(tables, held_out), rounds=10, iterations=1, warmup_rounds=1
    )
    benchmark.extra_info["neurons_per_second"] = round(neurons / benchmark.stats.stats.median)
    print(benchmark.extra_info)
