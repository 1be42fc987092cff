"""Documents of the words w0 to w199, and what a corpus of them should hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from fastexplain import Corpus

WORDS = 200


def spelled(ids) -> str:
    """Words with a line end after every fifth."""
    return "".join(f"w{i}" + ("\n" if place % 5 == 4 else " ") for place, i in enumerate(ids))


def random_ids(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, WORDS, count).tolist()


def write_rows(path: Path, documents) -> Path:
    path.write_text("".join(json.dumps({"text": spelled(ids)}) + "\n" for ids in documents))
    return path


def windows(documents, length: int = 64):
    """What a corpus should hold, the simple way: {excerpt: (document, offset)} of first places."""
    found: dict[tuple[int, ...], tuple[int, int]] = {}
    for number, ids in enumerate(documents):
        for offset in range(0, len(ids) - length + 1, length):
            found.setdefault(tuple(ids[offset : offset + length]), (number, offset))
    return found


def held(corpus: Corpus):
    places = zip(corpus.documents.tolist(), corpus.offsets.tolist(), strict=True)
    return dict(zip(map(tuple, corpus.tokens.tolist()), places, strict=True))
