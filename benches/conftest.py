"""What the benchmarks share: the embedded subject, a corpus, and the ways of others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastexplain import Corpus, Subject, load_subject
from fastexplain.exemplars import Exemplars
from fastexplain.kernels.summary import Batch, Summary, smallest_hashes
from fastexplain.tables import Tables

BATCH = 64


@pytest.fixture(scope="session")
def subject() -> Subject:
    return load_subject("smollm2", device="cpu")


@pytest.fixture(scope="session")
def corpus(subject: Subject) -> Corpus:
    return Corpus(["stdlib"], subject.tokenizer, excerpts=1536)


class Sweeper:
    """The sweep's loop over some layers, a batch at a time, so that ways can take turns."""

    def __init__(self, subject: Subject, corpus: Corpus, layers: list[int], rows: int) -> None:
        self.subject, self.corpus, self.layers = subject, corpus, layers
        self.tables = Tables.choose(corpus.tokens, skip=1, rows=rows)
        self.random_ids = smallest_hashes(np.arange(len(corpus), dtype=np.int32), 25, 0)
        self.exemplars = {
            layer: Exemplars(
                Summary.empty(
                    subject.widths[layer], 64, np.dtype(np.float32), top=20, bottom=0,
                    random_ids=self.random_ids, seed=0,
                    table_rows=(len(self.tables.tokens), len(self.tables.pairs)),
                ),
                torch.device("cpu"),
            )
            for layer in layers
        }  # fmt: skip

    def batch(self, number: int) -> tuple[torch.Tensor, Batch]:
        rows = slice(number * BATCH, (number + 1) * BATCH)
        token_ids = np.array(self.corpus.tokens[rows])
        ids = np.arange(rows.start, rows.stop, dtype=np.int32)
        laid_out = Batch.make(ids, *self.tables.rows(token_ids), skip=1, random_ids=self.random_ids)
        return torch.from_numpy(token_ids), laid_out

    def step(self, number: int) -> None:
        token_ids, batch = self.batch(number)
        self.subject.trunk(
            token_ids, lambda layer, acts: self.exemplars[layer].update(acts, batch), self.layers
        )


class Peer:
    """Capture as it is commonly done: concatenate with what was kept, `topk`, gather."""

    def __init__(self, subject: Subject, corpus: Corpus, layers: list[int]) -> None:
        self.subject, self.corpus, self.layers = subject, corpus, layers
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def capture(self, layer: int, acts: torch.Tensor) -> None:
        acts = acts.transpose(1, 2)  # [excerpts, neurons, tokens]
        maxima = acts[:, :, 1:].amax(dim=2)
        if layer in self.kept:
            values, kept = self.kept[layer]
            maxima, acts = torch.cat([values, maxima]), torch.cat([kept, acts])
        values, places = maxima.topk(min(20, len(maxima)), dim=0)
        self.kept[layer] = values, acts.gather(0, places[..., None].expand(-1, -1, acts.shape[2]))

    def step(self, number: int) -> None:
        token_ids = torch.from_numpy(
            np.array(self.corpus.tokens[number * BATCH : (number + 1) * BATCH])
        )
        self.subject.trunk(token_ids, self.capture, self.layers)
