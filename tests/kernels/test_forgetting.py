"""Regressions that forget excerpts, against solving without them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastexplain.kernels.cpu.forgetting import forget

EXCERPTS, TOKENS, SIZE, NEURONS = 12, 6, 8, 5


def case(seed: int, forgotten: int) -> dict[str, np.ndarray]:
    """A corpus of twelve excerpts with z for its tokens, of which each neuron forgets some."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((EXCERPTS, TOKENS, SIZE))
    flat = x.reshape(-1, SIZE)
    lower = np.linalg.cholesky(flat.T @ flat + 0.5 * np.eye(SIZE))
    numbers = np.linalg.solve(lower, flat.T).T.reshape(x.shape).astype(np.float32)
    acts = rng.standard_normal((EXCERPTS, TOKENS, NEURONS)).astype(np.float32)
    ids = np.stack([rng.permutation(EXCERPTS)[:4] for _ in range(NEURONS)]).astype(np.int32)
    ids[0, 3] = -1
    which = np.zeros(ids.shape, bool)
    which[:, :forgotten] = True
    return {"numbers": numbers, "acts": acts, "ids": ids, "which": which}


def run(numbers, acts, ids, which, totals=None, rests=None):
    positive = np.maximum(acts, 0).astype(np.float64)
    weights = np.einsum("etk,etn->nk", numbers.astype(np.float64), positive)
    own = np.stack([acts[ids[n], :, n] for n in range(len(ids))])
    sums = positive.sum(axis=(0, 1))
    totals = sums if totals is None else totals
    return forget(numbers, ids, which, own, weights, totals, sums if rests is None else rests)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 4))
def test_forgetting_equals_solving_without(seed: int, forgotten: int) -> None:
    given_ = case(seed, forgotten)
    numbers, acts, ids, which = given_.values()
    found, predicted = run(**given_)
    for neuron in range(NEURONS):
        gone = ids[neuron][which[neuron] & (ids[neuron] >= 0)]
        z = numbers[gone].reshape(-1, SIZE).astype(np.float64)
        kept = np.delete(np.arange(EXCERPTS), gone)
        right = np.einsum(
            "etk,et->k", numbers[kept].astype(np.float64), np.maximum(acts[kept, :, neuron], 0)
        )
        expected = np.linalg.solve(np.eye(SIZE) - z.T @ z, right)
        np.testing.assert_allclose(found[neuron], expected, rtol=0, atol=1e-6 * abs(expected).max())
        for place, excerpt in enumerate(ids[neuron]):
            if excerpt < 0:
                assert np.isnan(predicted[neuron, place]).all()
            else:
                np.testing.assert_allclose(
                    predicted[neuron, place], numbers[excerpt] @ expected, rtol=1e-4, atol=1e-5
                )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 100))
def test_what_is_forgotten_changes_nothing(seed: int, factor: float) -> None:
    given_ = case(seed, 3)
    found, predicted = run(**given_)
    acts = given_["acts"].copy()
    for neuron, (own, which) in enumerate(zip(given_["ids"], given_["which"], strict=True)):
        acts[own[which & (own >= 0)], :, neuron] *= np.float32(-factor)
    again, predicted_again = run(**given_ | {"acts": acts})
    np.testing.assert_allclose(again, found, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(predicted_again, predicted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rounding", [0, 2.0**-22])
def test_a_neuron_that_fires_in_forgotten_excerpts_alone_has_no_weights(rounding: float) -> None:
    given_ = case(0, 3)
    for neuron, own in enumerate(given_["ids"]):
        kept = np.delete(np.arange(EXCERPTS), own[:3])
        given_["acts"][kept, :, neuron] = -1
    sums = np.maximum(given_["acts"], 0).sum(axis=(0, 1), dtype=np.float64)
    found, predicted = run(**given_, totals=sums, rests=sums * (1 + rounding))
    assert not found.any() and not np.nan_to_num(predicted).any()
