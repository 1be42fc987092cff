"""What rules cost: growing them for a run's layers, and situations in the sweep.

python benches/rules.py RUN [LAYER ...]     CPU seconds and mean scores by layer
python benches/rules.py --sweep [BATCHES]   the same batches with and without situations, in turn
"""

from __future__ import annotations

import sys
import time
from statistics import median

import numpy as np

from fastexplain import Corpus, load_subject, open_run
from fastexplain.explainers.features import Features
from fastexplain.explainers.lookup import layer_tables
from fastexplain.explainers.rules import grow_rules, held_excerpts, predict_rules
from fastexplain.kernels.summary import Summary, smallest_hashes
from fastexplain.run.agreement import agreement
from fastexplain.run.tables import Tables
from fastexplain.sweeping import loop
from fastexplain.sweeping.settings import TABLE_BYTES, check_settings
from fastexplain.sweeping.summaries import Exemplars, kernel_device
from fastexplain.text.kinds import TokenKinds


def rules(path: str, layers: list[int]) -> None:
    """Print seconds and mean scores of each layer; the first one also loads compiled code."""
    run = open_run(path)
    begun = time.process_time()
    features = Features(run, run.tables.rows(run.excerpts))
    print(f"{len(features.phrases):,} features: {time.process_time() - begun:.2f} s of CPU")
    for layer in layers or run.layers:
        begun = time.process_time()
        held = held_excerpts(run, layer)
        found = grow_rules(run, layer, layer_tables(run, layer), held, features)
        grown = time.process_time() - begun
        true, tests = held.activations[:, :, run.skip :], held.tests
        simulated = predict_rules(found, features, held.ids)
        scores = {
            each.split: f"{np.nanmean(each.values[:, 0]):.3f}"
            for each in agreement(true[:, :tests], simulated[:, :tests], held.top[:, :tests])
        }
        print(f"layer {layer}: {grown:.2f} s of CPU, {scores}", flush=True)


def sweeping(batches: int) -> None:
    """Print the CPU time of batches with situations as a multiple of that without, in turns."""
    subject = load_subject("smollm2", device="cpu")
    corpus = Corpus(["stdlib"], subject.tokenizer, excerpts=64 * (batches + 1))
    settings = check_settings(
        subject, corpus, top_k=20, random=25, bottom=False, layers=[0, 1, 2, 3], batch_size=64,
        skip=None, table_bytes=TABLE_BYTES * 4 // 30, compile=False,
    )  # fmt: skip
    kinds = TokenKinds(subject.token_bytes())
    random_ids = smallest_hashes(np.arange(len(corpus), dtype=np.int32), 25, corpus.seed)
    tables = Tables.choose(corpus.tokens, skip=settings.skip, rows=settings.table_rows, kinds=kinds)
    device, ways = kernel_device(subject.device), []
    for own in (tables, tables.without_situations()):
        kept: dict[int, Summary] = loop.empty_start(
            subject, corpus, settings, own, random_ids
        ).summaries
        exemplars = {layer: Exemplars(each, device) for layer, each in kept.items()}
        made = loop.batches_from(corpus, own, kinds, settings, random_ids, 0)
        ways.append((loop.prefetched(made, device), exemplars))
    ratios = []
    for number in range(batches + 1):
        seconds = []
        for source, exemplars in ways if number % 2 else ways[::-1]:
            begun = time.process_time()
            loop.fold_batch(subject, *next(source), exemplars, settings)
            seconds.append(time.process_time() - begun)
        with_, without = seconds if number % 2 else seconds[::-1]
        if number:  # the first compiles
            ratios.append(with_ / without)
    print(f"{len(tables.situations)} situations: {median(ratios):.3f} times the CPU time", ratios)


if __name__ == "__main__":
    if sys.argv[1] == "--sweep":
        sweeping(int(sys.argv[2]) if len(sys.argv) > 2 else 8)
    else:
        rules(sys.argv[1], [int(layer) for layer in sys.argv[2:]])
