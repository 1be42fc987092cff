"""Tokens a second of the sweep, beside the bare trunk and the common way, side by side in one run.

Machines are noisy, so the ways take turns batch by batch and what is reported is the median, over
batches, of their ratios within one turn: `sweep_over_trunk` 1.03 means 3% slower than the trunk
alone. The turns run over the whole corpus, since insertion gets rarer as exemplars get better.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from conftest import BATCH, Peer, Sweeper

from fastexplain import Corpus, Subject

# Eight layers in place of thirty: their trunk takes about 1.2 s a batch on 2 cores.
LAYERS = list(range(8))
# As many table rows a neuron as the default memory gives the whole of SmolLM2.
ROWS = 2**30 // (4 * 46_080)


def _seconds(step: Callable[..., None], *arguments: int) -> float:
    started = time.perf_counter()
    step(*arguments)
    return time.perf_counter() - started


def test_sweep_beside_the_trunk(benchmark, subject: Subject, corpus: Corpus) -> None:
    sweeper, plain = Sweeper(subject, corpus, LAYERS, ROWS), Sweeper(subject, corpus, LAYERS, 0)
    peer = Peer(subject, corpus, LAYERS)

    def trunk(number: int) -> None:
        token_ids, _ = plain.batch(number)
        subject.trunk(token_ids, lambda layer, acts: None, LAYERS)

    ways = {
        "trunk": trunk,
        "sweep_without_tables": plain.step,
        "sweep": sweeper.step,
        "concatenate_topk_gather": peer.step,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    trunk(0)

    def turn(number: int) -> None:
        for name, step in ways.items():
            times[name].append(_seconds(step, number))

    numbers = iter(range(len(corpus) // BATCH))
    benchmark.pedantic(lambda: turn(next(numbers)), rounds=len(corpus) // BATCH, iterations=1)
    seconds = {name: np.array(values) for name, values in times.items()}
    for name, values in seconds.items():
        benchmark.extra_info[f"{name}_tokens_per_second_{len(LAYERS)}_layers"] = round(
            BATCH * 64 / float(np.median(values))
        )
        if name != "trunk":
            benchmark.extra_info[f"{name}_over_trunk"] = round(
                float(np.median(values / seconds["trunk"])), 4
            )
    print(benchmark.extra_info)


def test_trunk_beside_the_whole_model(benchmark, subject: Subject, corpus: Corpus) -> None:
    """What the matrix products alone allow, the trunk, and the model with its head."""
    token_ids = torch.from_numpy(np.array(corpus.tokens[:BATCH])).long()
    tokens = token_ids.numel()
    config = subject.model.config
    hidden, wide = config.hidden_size, config.intermediate_size
    heads = config.num_attention_heads, config.num_key_value_heads
    key_width = hidden * heads[1] // heads[0]
    shapes = [(hidden, hidden)] * 2 + [(hidden, key_width)] * 2 + [(hidden, wide)] * 3
    with torch.inference_mode():
        products = [(torch.randn(tokens, a), torch.randn(a, b)) for a, b in shapes]

        def matrices() -> None:
            for _ in range(config.num_hidden_layers):
                for left, right in products:
                    left @ right

        def whole() -> None:
            subject.model(input_ids=token_ids, use_cache=False)

        ways = {
            "matrix_products": matrices,
            "trunk": lambda: subject.trunk(token_ids, None),
            "model_with_head": whole,
        }
        times: dict[str, list[float]] = {name: [] for name in ways}

        def turn() -> None:
            for name, way in ways.items():
                times[name].append(_seconds(way))

        benchmark.pedantic(turn, rounds=3, iterations=1, warmup_rounds=1)
    for name, values in times.items():
        benchmark.extra_info[f"{name}_tokens_per_second"] = round(tokens / float(np.median(values)))
    print(benchmark.extra_info)
