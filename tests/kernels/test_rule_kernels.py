"""The growth of rules from sums against the same on explicit columns, held-out ones left out."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fastexplain.kernels.cpu.rules import (
    INSIDE,
    LEAST,
    SHRINK,
    feature_sums,
    grow,
    overlaps,
    predict,
)

WORDS, CLASSES, EXCERPTS, TOKENS, TERMS = 7, 5, 30, 12, 4


def made(seed: int):
    """Texts of random words with random classes, of words and of the words before them.

    The features are the classes, then the words, then all pairs.
    """
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, WORDS, (EXCERPTS, TOKENS))
    lists: list[list[int]] = [[] for _ in range(2 * WORDS + WORDS**2)]
    for feature in range(CLASSES):
        offset = WORDS * (feature % 2)
        for word in np.flatnonzero(rng.random(WORDS) < 0.4):
            lists[offset + word].append(feature)
    for word in range(WORDS):
        lists[word].append(CLASSES + word)
    pairs = CLASSES + WORDS + np.arange(WORDS**2)
    for pair, feature in enumerate(pairs):
        lists[2 * WORDS + pair].append(int(feature))
    starts = np.cumsum([0, *map(len, lists)]).astype(np.int32)
    members = np.array([f for own in lists for f in own], np.int32)
    keys = np.full((EXCERPTS, TOKENS, 3), -1, np.int32)
    keys[..., 0] = tokens
    keys[:, 1:, 1] = WORDS + tokens[:, :-1]
    keys[:, 1:, 2] = 2 * WORDS + WORDS * tokens[:, :-1] + tokens[:, 1:]
    token_of = np.full(CLASSES + WORDS + WORDS**2, -1, np.int32)
    token_of[pairs] = CLASSES + np.arange(WORDS**2) % WORDS
    return rng, keys, starts, members, token_of


def columns_of(keys: np.ndarray, starts: np.ndarray, members: np.ndarray, count: int) -> np.ndarray:
    """Each position's features as 0 or 1, float64 `[positions, features]`."""
    flat = keys.reshape(-1, keys.shape[-1])
    found = np.zeros((len(flat), count))
    for position, own in enumerate(flat):
        for key in own[own >= 0]:
            found[position, members[starts[key] : starts[key + 1]]] = 1
    return found


def naive(x: np.ndarray, y: np.ndarray):
    """Orthogonal least squares by explicit columns: features, fitted values.

    What lowers lies in a feature that raises; one whose value turns below 0 is left out anew.
    """
    barred: list[int] = []
    while True:
        chosen, raises, fitted = grown(x, y, barred)
        # The values that make the same fit of the columns themselves.
        columns = (x - x.mean(axis=0))[:, chosen]
        values = np.linalg.lstsq(columns, fitted - y.mean())[0]
        turned = [
            f for f, up, value in zip(chosen, raises, values, strict=True) if up and value < 0
        ]
        if not turned:
            return chosen, fitted
        barred.append(turned[0])


def grown(x: np.ndarray, y: np.ndarray, barred: list[int]):
    enough = x.sum(axis=0) >= 3
    enough[barred] = False
    left, residual = x - x.mean(axis=0), y - y.mean()
    fitted, chosen, raises, explained = np.full(len(y), y.mean()), [], [], 0.0
    while len(chosen) < TERMS:
        d, r = (left**2).sum(axis=0), left.T @ residual
        raising = [f for f, up in zip(chosen, raises, strict=True) if up]
        inside = (x.T @ x[:, raising] > INSIDE * x.sum(axis=0)[:, None]).any(axis=1)
        usable = enough & (d > 0.5) & ((r > 0) | inside)
        gains = np.where(usable, r**2 / (d + SHRINK), 0)
        best = int(np.argmax(gains >= gains.max() * (1 - 1e-9)))  # the first of equals
        if gains[best] <= 0 or gains[best] < LEAST * explained:
            break
        explained += gains[best]
        direction = left[:, best].copy()
        # The residual loses all that the term explains; the fit takes it held back.
        fitted += direction * r[best] / (d[best] + SHRINK)
        residual = residual - direction * r[best] / d[best]
        left = left - np.outer(direction, direction @ left / d[best])
        left[:, best] = 0
        chosen.append(best)
        raises.append(r[best] > 0)
    return chosen, raises, fitted


@settings(max_examples=40)
@given(st.integers(0, 2**32))
def test_rules_from_sums_are_those_of_explicit_columns(seed: int) -> None:
    rng, keys, starts, members, token_of = made(seed)
    features, neurons = len(token_of), 3
    acts = rng.standard_normal((EXCERPTS, TOKENS, neurons)).astype(np.float32)
    x = columns_of(keys, starts, members, features)
    acts += 2 * (x[:, rng.integers(0, features, neurons)].reshape(acts.shape) > 0)
    positive = np.maximum(acts, 0).astype(np.float64)
    sums = np.einsum("pf,pn->nf", x, positive.reshape(-1, neurons))
    counts, shared = np.zeros(features, np.int64), np.zeros((CLASSES, features), np.int32)
    overlaps(keys, starts, members, CLASSES, counts, shared)
    np.testing.assert_array_equal(counts, x.sum(axis=0))
    np.testing.assert_array_equal(shared, x[:, :CLASSES].T @ x)

    held = np.stack([rng.permutation(EXCERPTS)[:4] for _ in range(neurons)]).astype(np.int32)
    held[0, 1:] = -1
    own = np.stack([acts[held[n], :, n] for n in range(neurons)])
    chosen, values, default, left, means = grow(
        sums, positive.sum(axis=(0, 1)), EXCERPTS * TOKENS, counts, shared, token_of,
        CLASSES + WORDS, held, own, keys, starts, members, TERMS,
    )  # fmt: skip
    every = np.arange(EXCERPTS, dtype=np.int32)[None].repeat(neurons, axis=0)
    predicted = predict(chosen, values, default, every, keys, starts, members)
    for n in range(neurons):
        kept = np.repeat(~np.isin(np.arange(EXCERPTS), held[n]), TOKENS)
        y = positive[:, :, n].ravel()[kept]
        wanted, fitted = naive(x[kept], y)
        assert [f for f in chosen[n] if f >= 0] == wanted
        np.testing.assert_allclose(predicted[n].ravel()[kept], fitted, rtol=1e-4, atol=1e-4)
        for k, feature in enumerate(wanted):
            there = x[kept][:, feature] > 0
            assert left[n, k] == there.sum()
            np.testing.assert_allclose(means[n, k], y[there].mean(), rtol=1e-5)


def test_a_tables_rows_are_added_to_the_features_of_their_keys() -> None:
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    keys = np.array([[0, -1], [1, 2], [-1, -1], [2, -1]], np.int32)
    starts, members = np.array([0, 1, 3, 4], np.int32), np.array([0, 1, 2, 1], np.int32)
    totals = np.zeros((3, 3))
    feature_sums(rows, keys, starts, members, totals)
    np.testing.assert_array_equal(totals, [rows[0], 2 * rows[1] + rows[3], rows[1]])


def test_a_neuron_that_is_silent_outside_of_what_is_held_out_has_no_rule() -> None:
    _, keys, starts, members, token_of = made(0)
    features = len(token_of)
    counts, shared = np.zeros(features, np.int64), np.zeros((CLASSES, features), np.int32)
    overlaps(keys, starts, members, CLASSES, counts, shared)
    nothing = np.zeros((1, features))
    chosen, values, default, *_ = grow(
        nothing, np.zeros(1), EXCERPTS * TOKENS, counts, shared, token_of, CLASSES + WORDS,
        np.full((1, 2), -1, np.int32), np.zeros((1, 2, TOKENS), np.float32),
        keys, starts, members, TERMS,
    )  # fmt: skip
    assert (chosen == -1).all() and not values.any() and default == [0]
