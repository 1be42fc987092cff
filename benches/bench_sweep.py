"""`fastexplain bench` on real weights and text: the embedded SmolLM2 over the standard library.

The ways of `fastexplain.bench.ways` take turns batch by batch, and what is reported is the median,
over turns, of their ratios within one turn: `sweep_over_trunk` 1.03 is a sweep that is 3% faster
than the bare trunk. The turns run over the whole corpus, since insertion gets rarer as exemplars
get better.
"""

from __future__ import annotations

import numpy as np
import torch

from fastexplain import Corpus, Subject
from fastexplain.bench.machine import TOKENS, seconds_of
from fastexplain.bench.ways import Bare, Floor, Peer, Sweeper, floor_operations
from fastexplain.models.loading import find_trunk

BATCH = 64
# Eight layers in place of thirty: their trunk takes about 1.2 s a batch on 2 cores.
LAYERS = list(range(8))
# The part of the default memory that these layers have of it in a sweep of all.
TABLE_BYTES = 2**30 * len(LAYERS) // 30


def test_sweep_beside_the_trunk(benchmark, subject: Subject, corpus: Corpus) -> None:
    """The trunk ends where the sweep does, at the activations of the highest layer."""
    tokens = np.array(corpus.tokens)

    batches = iter(torch.from_numpy(tokens).split(BATCH))

    def trunk() -> None:
        subject.trunk(next(batches), lambda layer, acts: None, LAYERS)

    shared = {"layers": LAYERS, "batch_size": BATCH}
    ways = {
        "trunk": trunk,
        "sweep_without_tables": Sweeper(subject, tokens, table_bytes=0, **shared).step,
        "sweep": Sweeper(subject, tokens, table_bytes=TABLE_BYTES, **shared).step,
        "concatenate_topk_gather": Peer(subject, tokens, **shared).step,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}

    def turn() -> None:
        for name, step in ways.items():
            times[name].append(seconds_of(step, subject.device))

    rounds = len(corpus) // BATCH - 1
    benchmark.pedantic(turn, rounds=rounds, iterations=1, warmup_rounds=1)
    times = {name: values[1:] for name, values in times.items()}
    seconds = {name: np.array(values) for name, values in times.items()}
    for name, values in seconds.items():
        benchmark.extra_info[f"{name}_tokens_per_second_{len(LAYERS)}_layers"] = round(
            BATCH * TOKENS / float(np.median(values))
        )
        if name != "trunk":
            benchmark.extra_info[f"{name}_over_trunk"] = round(
                float(np.median(seconds["trunk"] / values)), 4
            )
    print(benchmark.extra_info)


def test_trunk_beside_the_whole_model(benchmark, subject: Subject, corpus: Corpus) -> None:
    """What the matrix products alone allow, the trunk, and the model with its head."""
    tokens = np.array(corpus.tokens)
    floor = Floor(subject, BATCH * floor_operations(subject))
    ways = {
        "matrix_products": floor,
        "trunk": Bare(subject, tokens, find_trunk(subject.model), batch_size=BATCH),
        "model_with_head": Bare(subject, tokens, subject.model, batch_size=BATCH),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}

    def turn() -> None:
        for name, way in ways.items():
            times[name].append(seconds_of(way.step, subject.device))

    benchmark.pedantic(turn, rounds=3, iterations=1, warmup_rounds=1)
    times["matrix_products"] = [time * floor.share for time in times["matrix_products"]]
    for name, values in times.items():
        benchmark.extra_info[f"{name}_tokens_per_second"] = round(
            BATCH * TOKENS / float(np.median(values))
        )
    print(benchmark.extra_info)
