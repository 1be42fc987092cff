"""The ends of products, exact from rough ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastexplain.kernels.cpu import ends as kernel
from fastexplain.kernels.cpu.ends import fold_ends


def naive(queries: np.ndarray, targets: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and values `[n, 2, C]` of all products in float64, equal ones by lower id."""
    products = queries.astype(np.float64) @ targets.astype(np.float64).T
    both = np.stack([products, -products], axis=1)
    ids = np.argsort(-both, axis=2, kind="stable")[..., :count]
    return ids, np.take_along_axis(both, ids, 2)


def folded(
    queries: np.ndarray, targets: np.ndarray, count: int, tile: int, half: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The same by the kernel, tile by tile, from products in bfloat16 or float32."""
    q, t = torch.from_numpy(queries), torch.from_numpy(targets)
    rough = (q.bfloat16(), t.bfloat16()) if half else (q, t)
    lost = [(a - b.float()).norm(dim=1) for a, b in zip((q, t), rough, strict=True)]
    length = [torch.maximum(a.norm(dim=1), b.float().norm(dim=1))
              for a, b in zip((q, t), rough, strict=True)]  # fmt: skip
    error = lost[0] * length[1].max() + length[0] * (lost[1].max() + 1e-6 * length[1].max())
    ids = np.full((len(q), 2, count), -1, np.int32)
    values = np.full((len(q), 2, count), -np.inf, np.float32)
    for first in range(0, len(t), tile):
        products = rough[0] @ rough[1][first : first + tile].t()
        bits = products.view(torch.uint16).numpy() if half else products.numpy()
        part = targets[first : first + tile]
        fold_ends(bits, queries, part, error.numpy(), first, ids, values)
    return ids, values


@settings(max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 7, 64, 129, 500]),
    st.sampled_from([5, 130, 1000]),
    st.sampled_from([0.0, 0.01, 3.0]),
    st.booleans(),
)
def test_the_ends_are_those_of_exact_products(seed, total, tile, apart, half) -> None:
    """Also where all targets nearly agree, so that rough products tell nothing of them."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=24)
    queries = rng.normal(size=(6, 24)).astype(np.float32)
    targets = (centre + apart * rng.normal(size=(total, 24))).astype(np.float32)
    ids, values = folded(queries, targets, 10, tile, half)
    kept = min(10, total)
    expected_ids, expected = naive(queries, targets, kept)
    np.testing.assert_allclose(values[..., :kept], expected, rtol=1e-5, atol=1e-5)
    exact = np.einsum("nd,necd->nec", queries, targets[ids[..., :kept]].astype(np.float64))
    np.testing.assert_allclose(exact * [[[1], [-1]]], expected, rtol=1e-5, atol=1e-5)
    assert (ids[..., kept:] == -1).all() and np.isneginf(values[..., kept:]).all()
    if apart == 0.0:  # all products are equal
        assert (ids[..., :kept] == np.arange(kept)).all()
    if apart == 3.0 and not half:
        np.testing.assert_array_equal(ids[..., :kept], expected_ids)


def test_more_candidates_than_there_is_room_for(monkeypatch) -> None:
    """With 3,000 targets within what bfloat16 can tell, the tile is multiplied whole."""
    rng = np.random.default_rng(0)
    centre = rng.normal(size=64)
    targets = (centre + 1e-4 * rng.normal(size=(3000, 64))).astype(np.float32)
    queries = (centre + rng.normal(size=(4, 64))).astype(np.float32)
    rough = torch.from_numpy(queries).bfloat16() @ torch.from_numpy(targets).bfloat16().t()
    assert all(len(set(row.tolist())) < kernel._CANDIDATES for row in rough)
    ids, values = folded(queries, targets, 10, 1500, half=True)
    _, expected = naive(queries, targets, 10)
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert len(np.unique(ids[0])) == 20


def test_what_does_not_fit_is_refused() -> None:
    right = {
        "rough": np.zeros((2, 3), np.float32), "queries": np.zeros((2, 4), np.float32),
        "targets": np.zeros((3, 4), np.float32), "error": np.zeros(2, np.float32), "first": 0,
        "ids": np.zeros((2, 2, 5), np.int32), "values": np.zeros((2, 2, 5), np.float32),
    }  # fmt: skip
    for name, wrong in (
        ("rough", np.zeros((2, 3), np.float64)),
        ("queries", np.zeros((3, 4), np.float32)),
        ("targets", np.zeros((3, 5), np.float32)),
        ("error", np.zeros(3, np.float32)),
        ("values", np.zeros((2, 2, 4), np.float32)),
    ):
        with pytest.raises(ValueError, match=name):
            fold_ends(**(right | {name: wrong}))
    fold_ends(**(right | {"rough": np.zeros((2, 0), np.float32), "targets": np.zeros((0, 4))}))
