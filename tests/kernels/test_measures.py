"""The kernels of scores against `reference_measures.py`, SciPy, scikit-learn and planted values."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from fastexplain import kernels
from fastexplain.kernels import reference_measures as reference
from fastexplain.kernels.measuring import MEASURES, Binary, interval_share

SHAPES = [(6, 5, 8), (4, 1, 9), (3, 10, 6), (2, 3, 0), (3, 0, 4), (0, 2, 3)]
UNSORTED = ("correlation", "raw_correlation")


def case(rng, shape, *, ties=False, gaps=True) -> tuple[np.ndarray, np.ndarray, Binary]:
    """True and simulated, some neurons without a scale or threshold; with gaps some missing."""
    true = rng.standard_normal(shape)
    simulated = true + rng.standard_normal(shape)
    if ties:
        true, simulated = np.round(true), np.round(simulated)
        true[::3], simulated[1::3] = 0.1, 0.1  # constants
    if rng.random() < 0.5:  # sorted in another way
        true, simulated = (x.astype(np.float32).astype(np.float64) for x in (true, simulated))
    if gaps:
        true[rng.random(shape) < 0.1] = np.nan
        simulated[rng.random(shape[:2]) < 0.2] = np.nan
    neurons = shape[0]
    scale = rng.choice([0.0, np.nan, 1.0, 2.0], neurons, p=[0.1, 0.1, 0.4, 0.4])
    threshold = rng.choice([np.nan, 0.0, 0.5], neurons)
    return true, simulated, Binary(scale, threshold, 0.7 * simulated)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.sampled_from(SHAPES), st.booleans(), st.booleans())
def test_sums_measures_and_bootstrap_equal_the_reference(seed, shape, ties, sort) -> None:
    rng = np.random.default_rng(seed)
    true, simulated, binary = case(rng, shape, ties=ties)
    arguments = (true, simulated, binary if sort else None)
    fast, slow = kernels.excerpt_sums(*arguments), reference.excerpt_sums(*arguments)
    np.testing.assert_array_equal(fast.ranked, slow.ranked)
    np.testing.assert_allclose(fast.sums, slow.sums, atol=1e-11)
    weights = rng.random(shape[:2]) * (rng.random(shape[:2]) < 0.7)
    for own in (None, weights):
        found, expected = kernels.measures(fast, own), reference.measures(slow, own)
        np.testing.assert_allclose(found, expected, atol=1e-11)
    top = rng.random(shape[:2]) < 0.5
    for found, expected in zip(
        kernels.bootstrap(fast, top, resamples=12, seed=seed),
        reference.bootstrap(slow, top, 12, seed),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, atol=1e-11)
    thresholds = kernels.best_threshold(true, simulated, binary.scale)
    np.testing.assert_allclose(thresholds, reference.best_threshold(true, simulated, binary.scale))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_narrow_numbers_are_taken_exactly(dtype: str) -> None:
    true, simulated, binary = case(np.random.default_rng(1), (4, 3, 7))
    narrow = [x.astype(dtype) for x in (true, simulated)]
    wide = [x.astype(np.float64) for x in narrow]
    binary = binary._replace(calibrated=binary.calibrated.astype(dtype))
    for found, expected in zip(
        kernels.excerpt_sums(*narrow, binary), kernels.excerpt_sums(*wide, binary), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def named(found: np.ndarray) -> dict[str, float]:
    return dict(zip(MEASURES, found.tolist(), strict=True))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.booleans())
def test_measures_agree_with_scipy_and_scikit_learn(seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    true, simulated = rng.standard_normal((2, 1, 4, 16))
    simulated += true
    if ties:
        true, simulated = np.round(true, 1), np.round(simulated)
    calibrated = 0.6 * simulated + 0.1
    binary = Binary(np.array([4.0]), np.array([0.3]), calibrated)
    found = named(kernels.measures(kernels.excerpt_sums(true, simulated, binary))[0])
    raw, y, c = (each.ravel() for each in (true, simulated, calibrated))
    x = np.maximum(raw, 0)
    active, predicted = x >= 0.4, y >= 0.3
    expected = {
        "correlation": scipy.stats.pearsonr(x, y).statistic,
        "raw_correlation": scipy.stats.pearsonr(raw, y).statistic,
        "spearman": scipy.stats.spearmanr(x, y).statistic,
        "r_squared": sklearn.metrics.r2_score(x, c),
        "deviation_explained": 1 - abs(x - c).mean() / abs(x - x.mean()).mean(),
        "auprc": sklearn.metrics.average_precision_score(active, y),
        "f1": sklearn.metrics.f1_score(active, predicted),
        "iou": sklearn.metrics.jaccard_score(active, predicted),
        "cosine": sklearn.metrics.pairwise.cosine_similarity(
            active[None].astype(float), predicted[None].astype(float)
        )[0, 0],
    }
    assert found == pytest.approx(expected, abs=1e-10)


def test_the_best_threshold_is_the_best_of_scikit_learns_curve() -> None:
    rng = np.random.default_rng(2)
    true = np.maximum(rng.standard_normal((8, 5, 20)), 0)
    simulated = np.round(true + rng.standard_normal(true.shape), 1)
    scale = true.max(axis=(1, 2))
    for own, y, m, found in zip(
        true, simulated, scale, kernels.best_threshold(true, simulated, scale), strict=True
    ):
        active = (10 * own.ravel() / m) >= 1
        curve = sklearn.metrics.precision_recall_curve(active, y.ravel())
        precision, recall, thresholds = curve
        best = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
        assert sklearn.metrics.f1_score(active, y.ravel() >= found) == pytest.approx(best.max())
        assert found in thresholds


def test_planted_values() -> None:
    true = np.array([[[-2.0, -1, 0, 4, 8], [0, 1, 2, 0, 9]]])
    positive = np.maximum(true, 0)
    binary = Binary(np.array([9.0]), np.array([0.9]), positive)
    perfect = named(kernels.measures(kernels.excerpt_sums(true, positive, binary))[0])
    assert 0.9 < perfect.pop("raw_correlation") < 1
    assert perfect == pytest.approx(dict.fromkeys(perfect, 1), abs=1e-15)
    opposite = named(kernels.measures(kernels.excerpt_sums(true, -positive, binary))[0])
    assert opposite["correlation"] == pytest.approx(-1)
    assert opposite["spearman"] == pytest.approx(-1)
    assert opposite["f1"] == opposite["iou"] == 0  # active tokens are there, none is predicted
    assert np.isnan(opposite["cosine"])
    flat = named(kernels.measures(kernels.excerpt_sums(true, 0 * true + 0.1, binary))[0])
    assert {name for name, value in flat.items() if np.isnan(value)} == {
        "correlation", "raw_correlation", "spearman", "cosine"
    }  # fmt: skip
    silent = named(kernels.measures(kernels.excerpt_sums(-abs(true), positive, binary))[0])
    assert {name for name, value in silent.items() if not np.isnan(value)} == {"raw_correlation"}


def test_a_tenth_of_the_scale_is_active_and_less_is_not() -> None:
    true = np.array([[[0.999, 1.0, 0, 0]]])
    sums = kernels.excerpt_sums(true, true, Binary(np.array([10.0]), np.array([0.5]), true))
    assert sums.sums[0, 0, -2] == kernels.discretize(true, np.array([10.0])).sum() == 1


def test_without_scale_threshold_or_calibration_only_their_measures_are_undefined() -> None:
    true, simulated, _ = case(np.random.default_rng(3), (1, 4, 9), gaps=False)
    nothing = np.full(1, np.nan)
    for binary, there in [
        (None, {*UNSORTED}),
        (Binary(nothing, nothing, np.full(true.shape, np.nan)), {*UNSORTED, "spearman"}),
        (Binary(np.ones(1), nothing, np.full(true.shape, np.nan)),
         {*UNSORTED, "spearman", "auprc"}),
    ]:  # fmt: skip
        sums = kernels.excerpt_sums(true, simulated, binary)
        found = named(kernels.measures(sums)[0])
        assert {name for name, value in found.items() if not np.isnan(value)} == there
        ends = kernels.bootstrap(sums, np.zeros((1, 4), bool), resamples=20)
        for end in (ends.low, ends.high):
            assert {name for name, v in named(end[0]).items() if not np.isnan(v)} == there


def test_a_weight_counts_an_excerpt_so_often() -> None:
    true, simulated, binary = case(np.random.default_rng(4), (1, 3, 12), gaps=False)
    binary = Binary(np.ones(1), np.zeros(1), binary.calibrated)
    times = [2, 0, 1]
    repeated = [np.repeat(x, times, axis=1) for x in (true, simulated, binary.calibrated)]
    expected = kernels.excerpt_sums(*repeated[:2], binary._replace(calibrated=repeated[2]))
    sums = kernels.excerpt_sums(true, simulated, binary)
    found = named(kernels.measures(sums, np.array([times], float))[0])
    expected = named(kernels.measures(expected)[0])
    for name in set(MEASURES) - {"spearman", "deviation_explained"}:  # approximate by their docs
        assert found[name] == pytest.approx(expected[name], abs=1e-12)


def test_kinds_are_redrawn_apart_and_all_neurons_see_the_same_draws() -> None:
    rng = np.random.default_rng(5)
    true = np.repeat(rng.standard_normal((1, 6, 9)), 3, axis=0)
    simulated = true + np.repeat(rng.standard_normal((1, 6, 9)), 3, axis=0)
    top = np.repeat([[True, True, True, False, False, False]], 3, axis=0)
    found = kernels.bootstrap(kernels.excerpt_sums(true, simulated), top, resamples=40)
    assert (found.low[0] == found.low)[:, :2].all() and (found.low < found.high)[:, :2].all()
    assert (found.counts[:, :2] == 3).all() and (found.counts[:, 2:] == 0).all()
    # Tops alike and randoms alike: whatever is drawn, the excerpts are the same.
    alike = np.repeat(true[:, [0, 3]], 3, axis=1)
    other = np.repeat(simulated[:, [0, 3]], 3, axis=1)
    same = kernels.bootstrap(kernels.excerpt_sums(alike, other), top, resamples=40)
    np.testing.assert_allclose(same.low[:, :2], same.high[:, :2], atol=1e-12)


def test_one_excerpt_of_a_kind_gives_no_interval() -> None:
    true, simulated, _ = case(np.random.default_rng(6), (2, 4, 9), gaps=False)
    simulated[0, 3] = np.nan  # leaves one random excerpt
    top = np.array([[True, True, False, False]] * 2)
    found = kernels.bootstrap(kernels.excerpt_sums(true, simulated), top, resamples=20)
    assert np.isnan(found.low[0]).all() and not np.isnan(found.low[1, :2]).any()


def test_the_share_beyond_an_interval_is_hesterbergs() -> None:
    for tops, randoms in [(0, 5), (5, 5), (0, 8), (20, 20), (0, 4)]:
        own = min(n for n in (tops, randoms) if n)
        t = scipy.stats.t.ppf(0.975, tops + randoms - 1 - (tops > 0))
        expected = scipy.stats.norm.cdf(-np.sqrt(own / (own - 1)) * t)
        assert interval_share(tops, randoms) == pytest.approx(expected, rel=0.03, abs=2e-5)
    assert interval_share(0, 10**6) == pytest.approx(0.025, rel=1e-4)
    assert interval_share(1, 5) == 0


def test_intervals_cover_the_truth() -> None:
    """Excerpts that differ in strength and in the simulator's error: 8 of them, as in a split."""
    rng = np.random.default_rng(7)

    def drawn(neurons: int, excerpts: int) -> tuple[np.ndarray, np.ndarray, Binary]:
        shape = (neurons, excerpts, 32)
        x = rng.exponential(1, shape) * (rng.random(shape) < 0.1)
        x *= rng.uniform(0.5, 1.5, (neurons, excerpts, 1))
        y = x + rng.normal(0, 0.5, (neurons, excerpts, 1)) + rng.normal(0, 0.5, shape)
        return x, y, Binary(np.full(neurons, 3.0), np.full(neurons, 0.6), 0.6 * y)

    truth = kernels.measures(kernels.excerpt_sums(*drawn(8, 2000))).mean(axis=0)
    found = kernels.bootstrap(kernels.excerpt_sums(*drawn(400, 8)), np.zeros((400, 8), bool))
    covered = dict(
        zip(MEASURES, ((found.low <= truth) & (truth <= found.high)).mean(axis=0), strict=True)
    )
    assert all(0.85 <= share <= 0.99 for share in covered.values()), covered
    assert covered["correlation"] >= 0.9


@pytest.mark.parametrize(
    "arguments, says",
    [
        ((np.zeros((2, 3)), np.zeros((2, 3))), r"expected arrays \[N, E, T\]"),
        ((np.zeros((2, 3, 4)), np.zeros((2, 3, 5))), r"got \[2, 3, 5\] beside \[2, 3, 4\]"),
        ((np.zeros((1, 8001, 1)), np.zeros((1, 8001, 1))), "8000 at most"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arguments, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        kernels.excerpt_sums(*arguments)


def test_wrong_weights_tops_and_resamples_are_refused() -> None:
    sums = kernels.excerpt_sums(*np.zeros((2, 2, 3, 4)))
    with pytest.raises(ValueError, match=r"weights are \[2, 2\]"):
        kernels.measures(sums, np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"`top` is \[3\]"):
        kernels.bootstrap(sums, np.zeros(3, bool))
    with pytest.raises(ValueError, match="0 resamples"):
        kernels.bootstrap(sums, np.zeros((2, 3), bool), resamples=0)
