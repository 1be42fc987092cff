"""The kernels alone: bandwidth of `capture`, and all neurons at once against a NumPy loop."""

from __future__ import annotations

import numpy as np
import pytest

from fastexplain import kernels
from fastexplain.kernels.summary import Batch, Summary, smallest_hashes

EXCERPTS, TOKENS, NEURONS, BATCHES = 64, 64, 1536, 24


@pytest.fixture(scope="module")
def batches() -> list[np.ndarray]:
    """Batches of activations, together far larger than the caches."""
    rng = np.random.default_rng(0)
    shape = (EXCERPTS, TOKENS, NEURONS)
    return [rng.standard_normal(shape, dtype=np.float32) for _ in range(8)]


@pytest.mark.parametrize("tables", [False, True], ids=["alone", "with_tables"])
def test_capture(benchmark, batches: list[np.ndarray], tables: bool) -> None:
    """GB/s of activations read, once the exemplars are good and insertion is rare."""
    rng = np.random.default_rng(1)
    rows = (1900, 3900) if tables else (0, 0)
    random_ids = smallest_hashes(np.arange(BATCHES * EXCERPTS, dtype=np.int32), 25, 0)
    summary = Summary.empty(
        NEURONS, TOKENS, np.dtype(np.float32), top=20, bottom=0, random_ids=random_ids,
        table_rows=rows, seed=0,
    )  # fmt: skip
    laid_out = []
    for number in range(BATCHES):
        # Tokens fall off as their rank does, as in text; about half have a pair in the tables.
        token = np.minimum(rng.zipf(1.2, (EXCERPTS, TOKENS)) - 1, 50_000)
        token_rows = np.where(token < rows[0], token, -1).astype(np.int32)
        pair = rng.integers(-rows[1], max(rows[1], 1), (EXCERPTS, TOKENS))
        pair_rows = np.where(tables & (pair >= 0), pair, -1).astype(np.int32)
        ids = np.arange(number * EXCERPTS, (number + 1) * EXCERPTS, dtype=np.int32)
        laid_out.append(Batch.make(ids, token_rows, pair_rows, skip=1, random_ids=random_ids))
    numbers = iter(range(BATCHES))

    def step() -> None:
        number = next(numbers)
        kernels.capture(batches[number % len(batches)], laid_out[number], summary)

    benchmark.pedantic(step, rounds=BATCHES - 4, iterations=1, warmup_rounds=4)
    benchmark.extra_info["gigabytes_per_second"] = round(
        batches[0].nbytes / benchmark.stats.stats.median / 1e9, 2
    )
    print(benchmark.extra_info)


def test_copy(benchmark, batches: list[np.ndarray]) -> None:
    """The machine's own copy, for comparison: GB/s of one side."""
    target = np.empty_like(batches[0])
    turns = iter(range(1000))
    benchmark.pedantic(
        lambda: np.copyto(target, batches[next(turns) % len(batches)]), rounds=40, iterations=1
    )
    benchmark.extra_info["gigabytes_per_second"] = round(
        target.nbytes / benchmark.stats.stats.median / 1e9, 2
    )
    print(benchmark.extra_info)


@pytest.mark.parametrize("way", ["fastexplain", "numpy_loop"])
def test_correlate(benchmark, way: str) -> None:
    """Scores of 4,608 neurons on 10 excerpts of 64 tokens."""
    rng = np.random.default_rng(0)
    true = rng.standard_normal((4608, 640), dtype=np.float32)
    simulated = true + rng.standard_normal((4608, 640), dtype=np.float32)
    ways = {
        "fastexplain": lambda: kernels.correlate(true, simulated),
        "numpy_loop": lambda: [
            np.corrcoef(x, y)[0, 1] for x, y in zip(true, simulated, strict=True)
        ],
    }
    benchmark.pedantic(ways[way], rounds=5, iterations=1, warmup_rounds=1)
