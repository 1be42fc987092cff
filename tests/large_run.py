"""A made-up run of as many neurons as one likes: by default GPT-2 XL's 48 layers of 6,400.

It is small, since its exemplars are short and few, but whole: written by the package's own writers,
with explanations and scores of all neurons.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from fastexplain import Run, open_run
from fastexplain.kernels.scalars import BINS
from fastexplain.records import NeuronId
from fastexplain.results import ExplanationRow, Scores
from fastexplain.run.tables import Tables
from fastexplain.run.writing import RunWriter
from fastexplain.text.corpus import Corpus

EXCERPTS, TOKENS, TOP, RANDOM = 64, 8, 2, 3
WORDS = [f" w{number}" for number in range(100)]

_NO = np.zeros(0, np.int32)
_GROUP = 20_000


def large_run(path: Path, layers: int = 48, width: int = 6400, explained: int = 1) -> Run:
    """Write the run.

    Args:
        path: of the new directory.
        explained: one neuron in so many has a lookup, and one in ten of these also a rule and a
            model's explanation; all take minutes to store.
    """
    rng = np.random.default_rng(0)
    corpus = Corpus.from_excerpts(
        rng.integers(0, len(WORDS), (EXCERPTS, TOKENS)).astype(np.int32), seed=0
    )
    tokens, counts = np.unique(corpus.tokens[:, 1:], return_counts=True)
    tables = Tables(
        tokens.astype(np.int32),
        np.zeros((0, 2), np.int32), np.zeros((0, 3), np.int32),
        counts.astype(np.int64), _NO.astype(np.int64), _NO.astype(np.int64),
    )  # fmt: skip
    with RunWriter(path) as writer:
        writer.write_excerpts(corpus, tables, [word.encode() for word in WORDS])
        for layer in range(layers):
            writer.write_site(str(layer), _site(rng, width, len(tokens), layer / layers))
        counted = EXCERPTS * (TOKENS - 1)
        writer.write_manifest(
            {
                "subject": {"name": "made-up", "revision": "1", "architecture": "none"},
                "corpus": {"sources": ["made-up"], "excerpts": EXCERPTS, "seed": 0},
                "versions": {},
                "settings": {"skip": 1, "table_rows": len(tokens)},
                "sites": [
                    {
                        **{"name": str(layer), "kind": "mlp"},
                        **{"units": width, "counted_tokens": counted},
                    }
                    for layer in range(layers)
                ],
                "sweep": {
                    "neurons": layers * width, "excerpts": EXCERPTS,
                    "tokens": EXCERPTS * TOKENS, "seconds": 1.0, "tokens_per_second": 1.0,
                },
            }
        )  # fmt: skip
    run = open_run(path)
    with run.database() as database:
        for layer in range(layers):
            rows = _explanations(rng, layer, width, explained)
            for start in range(0, len(rows), _GROUP):
                database.add_explanations(rows[start : start + _GROUP])
    return run


def _site(rng: np.random.Generator, width: int, rows: int, depth: float) -> dict[str, np.ndarray]:
    """Arrays of a site; the neurons of deeper ones are active more rarely and more strongly."""
    acts = rng.standard_normal((16, width)) * np.exp(rng.standard_normal(width) / 2)
    acts = np.where(acts > depth, acts * (1 + 3 * depth), -0.1 * np.abs(acts)).astype(np.float32)
    scale = EXCERPTS * (TOKENS - 1) / len(acts)
    positive = np.maximum(acts, 0)
    powers = [*(acts.astype(np.float64) ** power for power in (1, 2, 3, 4)), positive]
    top = np.sort(rng.random((width, TOP, TOKENS), np.float32) * acts.max(axis=0)[:, None, None])
    random = rng.random((RANDOM, TOKENS, width), np.float32) * acts.max(axis=0)
    chosen = rng.integers(0, EXCERPTS // 2, (width, 1)) + EXCERPTS // 4 * np.arange(TOP)
    return {
        "top.ids": chosen.astype(np.int32),
        "top.activations": top[:, ::-1].astype(np.float16),
        "bottom.ids": np.zeros((width, 0), np.int32),
        "bottom.activations": np.zeros((width, 0, TOKENS), np.float16),
        "random.ids": np.arange(RANDOM, dtype=np.int32),
        "random.activations": random.astype(np.float16),
        "sums": np.array([power.sum(axis=0) * scale for power in powers]),
        "positive": ((acts > 0).sum(axis=0) * scale).astype(np.int64),
        "minimum": acts.min(axis=0),
        "maximum": acts.max(axis=0),
        "histogram": np.zeros((width, BINS), np.int32),
        "histogram.excerpts": np.full((width, BINS, 1), -1, np.int32),
        "tables.tokens": rng.random((rows, width), np.float32) * positive.mean(axis=0) * 10,
        "tables.pairs": np.zeros((0, width), np.float32),
        "tables.triples": np.zeros((0, width), np.float32),
        "tables.situations": np.zeros((0, width), np.float32),
    }


def _explanations(
    rng: np.random.Generator, layer: int, width: int, explained: int
) -> list[ExplanationRow]:
    words = rng.integers(0, len(WORDS), (width, 3)).tolist()
    scores = np.clip(rng.normal(0.6 - layer / 100, 0.2, (width, 8)), -1, 1).tolist()
    rows = []
    for index in range(0, width, explained):
        neuron = NeuronId(layer, index)
        first, second, third = (WORDS[word].strip() for word in words[index])
        table, text, rule, other = (Scores(s, s, None, 5, 5) for s in scores[index][:4])
        entries = [
            {"token": WORDS[word], "previous": None, "ids": [word], "mean": mean, "count": 5}
            for word, mean in zip(words[index], (3.1, 2.0, 1.2), strict=True)
        ]
        listed = f"'{first}' 3.1, '{second}' 2, '{third}' 1.2"
        rows.append(
            ExplanationRow(
                *(neuron, "lookup", "lookup", "lookup-3", listed, entries),
                parameters={"entries": 3, "default": 0.1},
                scores=table,
                text_scores=text,
            )
        )
        if index % (10 * explained) == 0:
            said = f"forms of the word '{first}'"
            rows.append(
                ExplanationRow(
                    *(neuron, "rule", "rule", "rule-2", said),
                    [{"term": said, "value": 1.0, "mean": 1.1, "count": 5}],
                    {"default": 0.1, "first": False},
                    scores=rule,
                )
            )
            said = f"the word {first}, most of all after {second} (neuron {neuron})"
            rows.append(
                ExplanationRow(neuron, "model", "some-model", "explainer-1", said, scores=other)
            )
    return rows


if __name__ == "__main__":
    began = time.perf_counter()
    large_run(Path(sys.argv[1]))
    sys.stdout.write(f"{time.perf_counter() - began:.1f} s\n")
