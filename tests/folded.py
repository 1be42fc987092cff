"""A run of activations that a test makes itself, folded and written as a sweep does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fastexplain import Corpus, Run, open_run
from fastexplain.kernels import capture
from fastexplain.kernels.summary import Batch, Summary, smallest_hashes
from fastexplain.run.regression import Regression
from fastexplain.run.tables import Tables
from fastexplain.run.writing import RunWriter
from fastexplain.sweeping.products import TokenNumbers
from fastexplain.sweeping.summaries import Exemplars
from fastexplain.text.kinds import TokenKinds
from fastexplain.text.regressors import Regressors

SKIP = 1
_BATCH = 64  # excerpts


def folded_run(
    out: Path,
    token_ids: np.ndarray,
    acts: np.ndarray,
    words: Sequence[bytes],
    *,
    rows: int,
    kinds: TokenKinds | None = None,
    regressors: Regressors | None = None,
) -> Run:
    """A run of one layer.

    Args:
        out: where it is written.
        token_ids: int32 `[excerpts, tokens]`.
        acts: float32 `[excerpts, tokens, neurons]`.
        words: the vocabulary.
        rows: of the tables.
        kinds: situations are summed by them, if not None.
        regressors: what is under the tables, if not None.
    """
    excerpts, length = token_ids.shape
    cpu = torch.device("cpu")
    tables = Tables.choose(token_ids, skip=SKIP, rows=rows, kinds=kinds)
    if regressors is not None:
        tables = tables.with_regressors(regressors.count)
    ids = np.arange(excerpts, dtype=np.int32)
    random_ids = smallest_hashes(ids, 25, 0)
    summary = Summary.empty(
        acts.shape[2], length, np.dtype(np.float32), top=20, bottom=0, random_ids=random_ids,
        table_rows=tables.swept, seed=0,
    )  # fmt: skip
    kept = Exemplars(summary, cpu)
    for start in range(0, excerpts, _BATCH):
        own = slice(start, start + _BATCH)
        text, part = token_ids[own], np.ascontiguousarray(acts[own])
        situations = None if kinds is None else tables.situation_rows(text, SKIP, kinds)
        batch = Batch.make(
            ids[own], *tables.rows(text), skip=SKIP, random_ids=random_ids,
            table_rows=tables.swept, situation_rows=situations,
        )  # fmt: skip
        capture(part, batch, summary)
        if regressors is not None:
            x = TokenNumbers(regressors, cpu).of(torch.from_numpy(text))[:, SKIP:]
            kept.add_products(torch.from_numpy(part), x)
    shared = regressors and Regression.over(regressors, tables, token_ids, SKIP)
    counted = excerpts * (length - SKIP)
    site = {"name": "0", "kind": "mlp", "units": acts.shape[2], "counted_tokens": counted}
    sweep = {"neurons": acts.shape[2], "excerpts": excerpts, "tokens": token_ids.size}
    with RunWriter(out) as writer:
        writer.write_excerpts(Corpus.from_excerpts(token_ids), tables, list(words), shared)
        writer.write_site("0", kept.finalize(tables.size[1], tables.regressors))
        writer.write_manifest(
            {
                "subject": {"name": "made"},
                "settings": {"skip": SKIP, "table_rows": rows},
                "sites": [site],
                "sweep": sweep | {"seconds": 1.0, "tokens_per_second": 1.0},
            }
        )
    return open_run(out)
