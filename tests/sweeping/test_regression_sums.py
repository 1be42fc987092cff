"""A sweep's sums for a regression under the tables, on a real subject."""

from __future__ import annotations

import numpy as np
import planted
import pytest
import torch

import fastexplain
from fastexplain import Corpus
from fastexplain.sweeping import regression
from fastexplain.sweeping.products import add_products
from fastexplain.sweeping.regression import choose_tables
from fastexplain.sweeping.settings import TABLE_BYTES, check_settings
from fastexplain.text.kinds import TokenKinds

_ROW = planted.NEURONS * 4  # bytes
_NUMBERS = 244


def chosen(subject, corpus: Corpus, rows: int):
    settings = check_settings(
        subject, corpus, top_k=20, random=25, bottom=False, layers=None, batch_size=48, skip=None,
        table_bytes=rows * _ROW, compile=False,
    )  # fmt: skip
    return choose_tables(subject, corpus, settings, TokenKinds(subject.token_bytes()))


def test_sums_are_those_of_the_activations(planted_run, planted_subject) -> None:
    x = planted_run.regression.regressors.of(planted_run.excerpts)[:, planted_run.skip :]
    seen: list[np.ndarray] = []
    planted_subject.trunk(
        torch.from_numpy(planted_run.excerpts), lambda _, acts: seen.append(acts.numpy().copy())
    )
    positive = np.maximum(seen[0][:, planted_run.skip :], 0).astype(np.float64)
    expected = np.einsum("etd,etf->df", x.astype(np.float64), positive, optimize=True)
    found = planted_run.array(0, "tables.regression")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * abs(expected).max())
    flat = x.reshape(-1, x.shape[2]).astype(np.float64)
    products = planted_run.regression.products
    np.testing.assert_allclose(products, flat.T @ flat, rtol=1e-4, atol=1e-5 * products.max())


def test_sums_by_row_are_those_of_the_rows_tokens(planted_run) -> None:
    kept = planted_run.regression
    x = kept.regressors.of(planted_run.excerpts)[:, planted_run.skip :].astype(np.float64)
    families = planted_run.tables.rows(planted_run.excerpts)
    for rows, sums in zip(
        families, (kept.token_sums, kept.pair_sums, kept.triple_sums), strict=True
    ):
        for row in range(0, len(sums), max(len(sums) // 5, 1)):
            expected = x[rows[:, planted_run.skip :] == row].sum(axis=0)
            np.testing.assert_allclose(sums[row], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_activations_in_16_bits_are_added_up_in_float32(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    acts = torch.randn(70, 9, 40000, generator=generator).to(dtype)  # more than a piece
    numbers = torch.randn(70, 7, 5, generator=generator)
    sums = torch.ones(5, 40000)
    add_products(sums, acts, numbers)
    positive = acts[:, 2:].double().clamp(min=0)
    expected = 1 + torch.einsum("btd,btf->df", numbers.double(), positive)
    torch.testing.assert_close(sums.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "excerpts", "there"),
    [(4 * _NUMBERS, 248, True), (4 * _NUMBERS - 1, 248, False), (4 * _NUMBERS, 247, False)],
)
def test_a_regression_takes_many_rows_and_much_text(
    planted_subject, planted_corpus, rows: int, excerpts: int, there: bool
) -> None:
    corpus = Corpus.from_excerpts(planted_corpus.tokens[:excerpts])
    tables, regressors = chosen(planted_subject, corpus, rows)
    assert (regressors is not None) == there
    assert tables.regressors == (_NUMBERS if there else 0)
    assert sum(tables.size) + tables.regressors <= rows
    assert tables.swept[1] - len(tables.pairs) - len(tables.situations) == tables.regressors


def test_a_subject_without_embeddings_has_none(
    planted_subject, planted_corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise NotImplementedError

    monkeypatch.setattr(planted_subject.model, "get_input_embeddings", missing)
    tables, regressors = chosen(planted_subject, planted_corpus, TABLE_BYTES // _ROW)
    assert regressors is None and tables.regressors == 0


def test_a_sweep_that_a_version_before_began_goes_on_without_a_regression(
    planted_subject, planted_corpus, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(done: int) -> None:
        if done >= 100:
            raise KeyboardInterrupt

    arguments = planted_subject, planted_corpus, tmp_path / "run"
    with monkeypatch.context() as before:
        before.setattr(regression, "ROWS_A_NUMBER", 10**9)
        whole = fastexplain.sweep(
            planted_subject, planted_corpus, tmp_path / "whole", batch_size=48
        )
        with pytest.raises(KeyboardInterrupt):
            fastexplain.sweep(*arguments, progress=interrupt, batch_size=48)
    run = fastexplain.sweep(*arguments)
    assert run.regression is None and whole.regression is None
    for file in ("excerpts.safetensors", "layers/00.safetensors"):
        assert (run.path / file).read_bytes() == (whole.path / file).read_bytes()
