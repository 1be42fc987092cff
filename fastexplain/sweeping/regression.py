"""Whether a sweep sums for a regression under the tables, and which rows are left to these."""

from __future__ import annotations

import torch
from torch import Tensor

from fastexplain.run.tables import Tables
from fastexplain.subject.model import Subject
from fastexplain.sweeping.settings import Settings
from fastexplain.text.corpus import Corpus
from fastexplain.text.kinds import TokenKinds
from fastexplain.text.regressors import OWN, Regressors, count

ROWS_A_NUMBER = 4
"""Rows of the tables that there must be for each of the numbers: with fewer, rows gain more."""
TOKENS_A_NUMBER = 64
"""Counted tokens of the corpus that there must be for each: of fewer nothing is learnt."""


def choose_tables(
    subject: Subject, corpus: Corpus, settings: Settings, kinds: TokenKinds
) -> tuple[Tables, Regressors | None]:
    """The tables' rows, and a regression's numbers where there is one."""
    embeddings = _embeddings(subject)
    components = 0 if embeddings is None else min(OWN, embeddings.shape[1])
    size = count(components)
    counted = len(corpus) * (corpus.tokens.shape[1] - settings.skip)
    enough = settings.table_rows >= ROWS_A_NUMBER * size and counted >= TOKENS_A_NUMBER * size
    if embeddings is None or not enough:
        return choose_without(corpus, settings, kinds), None
    rows = settings.table_rows - size
    chosen = Tables.choose(corpus.tokens, skip=settings.skip, rows=rows, kinds=kinds)
    table = embeddings.detach().to("cpu", torch.float32).numpy()
    return chosen.with_regressors(size), Regressors.fit(table, corpus.tokens)


def choose_without(corpus: Corpus, settings: Settings, kinds: TokenKinds) -> Tables:
    """The tables' rows where there is no regression."""
    rows = settings.table_rows
    return Tables.choose(corpus.tokens, skip=settings.skip, rows=rows, kinds=kinds)


def _embeddings(subject: Subject) -> Tensor | None:
    """The subject's input embeddings, `[vocabulary, width]`; None where it has no such matrix."""
    try:
        weight = subject.model.get_input_embeddings().weight
    except (AttributeError, NotImplementedError):
        return None
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        return None
    return weight if len(weight) >= subject.vocabulary_size else None
