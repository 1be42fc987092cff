"""The two checks of measures, on measures of which it is known what they notice."""

from __future__ import annotations

import numpy as np
import pytest

from fastexplain.kernels import correlate
from fastexplain.puzzles.sanity import add, check, lose, thresholds_of


def neurons(seed=0, count=30):
    """True activations `[N, 4, 20]`, sparse, and simulations that follow them with some noise."""
    rng = np.random.default_rng(seed)
    true = np.where(rng.random((count, 4, 20)) < 0.15, rng.uniform(8, 10, (count, 4, 20)), 0)
    true[:, 0, :3] = 10
    return true, np.clip(true + rng.uniform(-1, 1, true.shape), 0, None)


def fit(true, undisturbed, thresholds):
    active = true > 5

    def measured(simulated):
        labelled = simulated > thresholds[:, None, None]
        hits = (active & labelled).sum(axis=(1, 2))
        return {
            "correlation": correlate(true, simulated).correlation,
            "recall": hits / active.sum(axis=(1, 2)),
            "precision": hits / labelled.sum(axis=(1, 2)),
            "changed": (simulated != undisturbed).sum(axis=(1, 2)).astype(float),
            "constant": np.ones(len(true)),
            "undefined": np.full(len(true), np.nan),
        }

    return measured


def test_it_is_known_of_each_measure_what_it_notices():
    found = check(fit, *neurons())
    notices = {name: (lost.notices, added.notices) for name, (lost, added) in found.items()}
    assert notices == {
        "correlation": (True, True),
        "recall": (True, False),
        "precision": (False, True),
        "changed": (False, False),  # it rises
        "constant": (False, False),
        "undefined": (False, False),
    }
    lost, added = found["correlation"]
    assert lost.neurons == added.neurons == 30 and lost.before == pytest.approx(added.before)
    assert found["recall"][0].drop == pytest.approx(0.5, abs=0.05)
    assert found["precision"][1].drop == pytest.approx(0.45, abs=0.06)
    assert found["changed"][0].before == 0 and found["changed"][1].drop < 0
    assert found["undefined"][0].neurons == 0 and np.isnan(found["undefined"][0].drop)


def test_chance_alone_is_not_noticed():
    """A measure of pure noise falls for no more neurons than chance has it."""
    rng = np.random.default_rng(1)
    noise = lambda true, *_: lambda _: {"noise": rng.normal(size=len(true))}  # noqa: E731
    for found in check(noise, *neurons(count=200))["noise"]:
        assert not found.notices and abs(found.drop) < 0.3


def test_half_of_the_labels_are_lost_or_as_many_added():
    _, simulated = neurons()
    simulated[:, 3, 15:] = np.nan
    thresholds = thresholds_of(simulated)
    rng = np.random.default_rng(0)
    for own, threshold in zip(simulated, thresholds, strict=True):
        labels = own > threshold
        less, more = lose(own, threshold, rng), add(own, threshold, rng)
        assert (less > threshold).sum() == labels.sum() - labels.sum() // 2
        assert ((less > threshold) <= labels).all()
        assert (less == own)[~labels & np.isfinite(own)].all()
        assert (more > threshold).sum() == 2 * labels.sum() and (more == own)[labels].all()
        assert (np.isnan(less) == np.isnan(own)).all() and (np.isnan(more) == np.isnan(own)).all()


def test_no_more_are_added_than_there_are_tokens():
    own = np.array([[9.0, 8.0, 1.0, np.nan]])
    more = add(own, 4.5, np.random.default_rng(0))
    assert more[0, 2] in (8, 9) and np.isnan(more[0, 3])


def test_neurons_with_fewer_than_two_labels_are_left_out():
    true, simulated = neurons(count=3)
    simulated[1] = 0
    simulated[2] = 0
    simulated[2, 0, 0] = 9
    lost, added = check(fit, true, simulated)["correlation"]
    assert lost.neurons == added.neurons == 1
