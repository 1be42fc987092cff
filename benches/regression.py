"""What a regression under the tables costs a sweep, and gains.

    python benches/regression.py sweeping [--batches 6] [--layers 0 1 2 3] [--table-memory 12GB]
    python benches/regression.py scores RUN [--layers 0 4 12 20 28]

The first sweeps SmolLM2 with and without, batch by batch in turns in one process, and prints the
ratio of their CPU seconds; with `--table-memory` for larger tables than those without, and
`--excerpts` of a larger text. The second prints the mean scores of a run's lookup explanations and
the CPU seconds that they took; runs with and without come of `fastexplain sweep` here and at an
earlier commit.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import checkout  # noqa: F401, first: it makes fastexplain importable
import numpy as np

from fastexplain import Corpus, load_subject, open_run
from fastexplain.cli.common import size_of
from fastexplain.explainers.lookup import explain_by_lookup
from fastexplain.kernels.summary import smallest_hashes
from fastexplain.sweeping import loop
from fastexplain.sweeping.prefetch import prefetched
from fastexplain.sweeping.products import TokenNumbers
from fastexplain.sweeping.regression import choose_tables, choose_without
from fastexplain.sweeping.settings import TABLE_BYTES, check_settings
from fastexplain.sweeping.summaries import Exemplars, kernel_device
from fastexplain.text.kinds import TokenKinds

_TEXT = 512  # excerpts that tables and components are chosen from
_LAYERS = 30  # of SmolLM2, which share the memory of all tables


def sweeping(batches: int, layers: Sequence[int], excerpts: int, table_bytes: int) -> None:
    """Print the CPU time of batches with a regression as a multiple of that without, in turns.

    Args:
        batches: of 64 excerpts.
        layers: whose activations are folded.
        excerpts: that tables are chosen from.
        table_bytes: of a whole run's tables with a regression; those without have `TABLE_BYTES`.
    """
    subject = load_subject("smollm2", device="cpu")
    corpus = Corpus(["stdlib"], subject.tokenizer, excerpts=max(excerpts, 64 * (batches + 1)))
    settings, small = (
        check_settings(
            subject, corpus, top_k=20, random=25, bottom=False, layers=layers, batch_size=64,
            skip=None, table_bytes=own * len(layers) // _LAYERS, compile=False,
        )
        for own in (table_bytes, TABLE_BYTES)
    )  # fmt: skip
    kinds = TokenKinds(subject.token_bytes())
    random_ids = smallest_hashes(np.arange(len(corpus), dtype=np.int32), 25, corpus.seed)
    device, ways = kernel_device(subject.device), []
    tables, regressors = choose_tables(subject, corpus, settings, kinds)
    assert regressors is not None
    numbers = TokenNumbers(regressors, device)
    for own, made in ((tables, numbers), (choose_without(corpus, small, kinds), None)):
        kept = loop.empty_start(subject, corpus, settings, own, random_ids).summaries
        exemplars = {layer: Exemplars(each, device) for layer, each in kept.items()}
        coming = loop.batches_from(corpus, own, kinds, settings, random_ids, 0)
        ways.append((prefetched(coming, device), exemplars, made))
    ratios, spent = [], []
    for number in range(batches + 1):
        seconds = []
        for source, exemplars, made in ways if number % 2 else ways[::-1]:
            begun = time.process_time()
            loop.fold_batch(subject, *next(source), exemplars, settings, made)
            seconds.append(time.process_time() - begun)
        with_, without = seconds if number % 2 else seconds[::-1]
        if number:  # the first compiles
            ratios.append(with_ / without)
            spent.append(without)
    middle, least, most = np.median(ratios), min(ratios), max(ratios)
    print(
        f"with a regression {middle:.3f} times the CPU seconds of a batch without "
        f"({least:.3f} to {most:.3f}; without {np.median(spent):.2f} s)"
    )


def scores(path: Path, layers: Sequence[int] | None) -> None:
    """Print the mean scores of a run's lookup explanations."""
    run = open_run(path)
    if layers:
        run.layers = [layer for layer in run.layers if layer in layers]
    begun = time.process_time()
    found = [
        [(row.scores.top_and_random, row.scores.random_only) for row in rows]
        for rows in explain_by_lookup(run)
    ]
    seconds = time.process_time() - begun
    means = [np.nanmean(np.array(own, float), axis=0) for own in found]
    print(f"{run.tables.size} rows; regression: {run.regression is not None}; {seconds:.1f} CPU s")
    for name, column in zip(("top and random", "random"), np.transpose(means), strict=True):
        print(f"{name} {column.mean():.4f} ({', '.join(f'{mean:.3f}' for mean in column)})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    tasks = parser.add_subparsers(required=True, dest="task")
    speed = tasks.add_parser("sweeping")
    speed.add_argument("--batches", type=int, default=6)
    speed.add_argument("--layers", type=int, nargs="+", default=[0, 1, 2, 3])
    speed.add_argument("--excerpts", type=int, default=_TEXT)
    speed.add_argument("--table-memory", type=size_of, default=TABLE_BYTES)
    gain = tasks.add_parser("scores")
    gain.add_argument("run", type=Path)
    gain.add_argument("--layers", type=int, nargs="+")
    options = parser.parse_args()
    if options.task == "sweeping":
        sweeping(options.batches, options.layers, options.excerpts, options.table_memory)
    else:
        scores(options.run, options.layers)


if __name__ == "__main__":
    main()
