"""The numbers that a regression knows of a token, against what they are said to be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastexplain.sweeping.products import TokenNumbers, on_device
from fastexplain.text.regressors import BEFORE, DECAYS, OWN, Regressors, count, rounded

WORDS, LENGTH = 40, 9


def made(seed: int, width: int = 70, excerpts: int = 30) -> tuple[Regressors, np.ndarray]:
    rng = np.random.default_rng(seed)
    token_ids = np.minimum(rng.geometric(0.1, (excerpts, LENGTH)), WORDS) - 1
    return Regressors.fit(rng.standard_normal((WORDS, width), np.float32), token_ids), token_ids


def plainly(components: np.ndarray, own: np.ndarray) -> np.ndarray:
    """One excerpt's numbers, token by token, float64 `[tokens, d]`."""
    size = components.shape[1]
    rows = []
    for t, token in enumerate(own):
        parts = [components[token]]
        for back, most in enumerate(BEFORE, start=1):
            known = min(most, size)
            parts.append(components[own[t - back], :known] if t >= back else np.zeros(known))
        for decay, most in DECAYS:
            shares = [math.exp(-(t - 1 - s) / decay) for s in range(t)]
            total = sum((w * components[own[s]] for s, w in enumerate(shares)), np.zeros(size))
            parts.append((total / math.sqrt(sum(shares)) if shares else total)[:most])
        parts.append(np.array([math.log1p(t) / 2, t / len(own), 1 / max(t, 1), 1]))
        rows.append(np.concatenate(parts))
    return np.array(rows)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([3, 33, 70]))
def test_numbers_are_what_they_are_said_to_be(seed: int, width: int) -> None:
    regressors, token_ids = made(seed, width)
    found = regressors.of(token_ids[:3])
    assert found.shape == (3, LENGTH, count(min(width, OWN))) and found.dtype == np.float32
    assert regressors.count == found.shape[2]
    expected = np.array([plainly(regressors.components, own) for own in token_ids[:3]])
    np.testing.assert_allclose(found, expected, rtol=2**-8, atol=2**-13)


def test_components_have_variance_one_over_the_corpus_and_are_not_correlated() -> None:
    regressors, token_ids = made(0, width=20, excerpts=400)
    own = regressors.components[token_ids.ravel()].astype(np.float64)
    np.testing.assert_allclose(own.mean(axis=0), 0, atol=0.01)
    np.testing.assert_allclose(np.cov(own.T, bias=True), np.eye(20), atol=0.02)


def test_components_without_variance_are_zero() -> None:
    """Embeddings that lie in a plane have two components, the others would be noise."""
    rng = np.random.default_rng(1)
    flat = (rng.standard_normal((WORDS, 2)) @ rng.standard_normal((2, 30))).astype(np.float32)
    components = Regressors.fit(flat, np.arange(WORDS)).components
    assert np.abs(components[:, :2]).max() > 1 and not components[:, 2:].any()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-40000, 40000, width=32), min_size=1))
def test_rounded_numbers_fit_into_16_bits(values: list[float]) -> None:
    given_ = np.array(values, np.float32)
    found = rounded(given_)
    tensor = torch.from_numpy(found)
    assert torch.equal(tensor.bfloat16().float(), tensor)
    assert torch.equal(tensor.half().float(), tensor)
    np.testing.assert_allclose(found, np.clip(given_, -(2**15), 2**15), rtol=2**-8, atol=2**-14)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([5, 70]))
def test_an_excerpts_numbers_are_the_same_bits_whoever_makes_them(seed: int, width: int) -> None:
    """Beside others, alone, by PyTorch, and from the components as they are stored."""
    regressors, token_ids = made(seed, width)
    found = regressors.of(token_ids)
    assert (regressors.of(token_ids[4:5]) == found[4:5]).all()
    assert (Regressors.of_bits(regressors.bits).of(token_ids) == found).all()
    given_ = torch.from_numpy(token_ids)
    by_torch = on_device(torch.from_numpy(regressors.components), given_)
    assert (by_torch.numpy() == found).all()
    assert torch.equal(TokenNumbers(regressors, torch.device("cpu")).of(given_), by_torch)


@pytest.mark.parametrize("size", [1, 16, 64])
def test_few_components_make_few_numbers(size: int) -> None:
    parts = [OWN, *BEFORE, *(most for _, most in DECAYS)]
    assert count(size) == sum(min(part, size) for part in parts) + 4
