"""Quantiles from histograms: near those of the values themselves, and in their order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastexplain.kernels.scalars import BINS, histogram_edges
from fastexplain.run.quantiles import Quantiles

TOP = 5


def of(largest: np.ndarray, random: int = 0) -> Quantiles:
    """Those of excerpts' largest activations, float32 `[N, S]`, the first of them random ones."""
    bins = np.searchsorted(histogram_edges(), largest, side="right")
    histogram = np.stack([np.bincount(own, minlength=BINS) for own in bins])
    top = np.sort(largest, axis=1)[:, ::-1][:, :TOP]
    return Quantiles(histogram, top, largest[:, :random].T)


def true_share(largest: np.ndarray, values: np.ndarray) -> np.ndarray:
    return (largest.T[None] < values[:, None]).mean(axis=1)


@given(seed=st.integers(0, 1000), spread=st.floats(0.1, 2), random=st.sampled_from([0, 25]))
def test_quantiles_are_exact_at_the_top_and_within_a_bin_elsewhere(
    seed: int, spread: float, random: int
) -> None:
    rng = np.random.default_rng(seed)
    largest = np.exp(rng.standard_normal((3, 400)) * spread).astype(np.float32)
    values = np.exp(rng.standard_normal((50, 3)) * spread).astype(np.float32)
    found, true = of(largest, random).ranks(values), true_share(largest, values)
    edges = histogram_edges()
    bins, own = (np.searchsorted(edges, each, side="right") for each in (largest.T, values))
    share = (bins[None] == own[:, None]).mean(axis=1)
    assert (np.abs(np.minimum(found, 1) - true) <= share + 1e-6).all()
    top = values > np.sort(largest, axis=1)[:, -TOP]
    np.testing.assert_allclose(np.minimum(found, 1)[top], true[top], atol=1e-6)


@given(seed=st.integers(0, 1000), random=st.sampled_from([0, 12]))
def test_larger_values_never_rank_lower(seed: int, random: int) -> None:
    rng = np.random.default_rng(seed)
    largest = (np.exp(rng.standard_normal((2, 60)) * 3) - 0.5).astype(np.float32)
    values = np.sort((np.exp(rng.standard_normal((200, 2)) * 4) - 1).astype(np.float32), axis=0)
    assert (np.diff(of(largest, random).ranks(values), axis=0) >= -1e-6).all()


def test_a_neuron_of_one_value_is_told_by_the_random_excerpts() -> None:
    """In nine of ten excerpts it fires, always alike: that it fires is nothing special."""
    rng = np.random.default_rng(0)
    largest = np.where(rng.random((1, 400)) < 0.9, 0.93, -1).astype(np.float32)
    [[common]] = of(largest, random=25).ranks(np.array([[0.93]], np.float32))
    assert common < 0.2
    rare = np.where(np.arange(400) < 8, 0.93, -1)[None, ::-1].astype(np.float32)
    assert of(rare, random=25).ranks(np.array([[0.93]], np.float32))[0, 0] >= 0.97


def test_ends_of_the_distribution() -> None:
    ranks = of(np.array([[0.0, 1.0, 2.0, 4.0], [-1.0, -1.0, -2.0, -3.0]], np.float32)).ranks
    found = ranks(np.array([[-5, -5], [0, 0], [4, -1], [6, 1]], np.float32))
    assert found[:, 0] == pytest.approx([0, 0, 0.75, 1.5])
    assert found[:3, 1] == pytest.approx([0, 0, 0])  # below 2**-14 nothing is told apart
    assert found[3, 1] > 1  # never active in the sweep
