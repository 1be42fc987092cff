"""Every kernel against `reference.py`, on inputs made hard: ties, gaps, few excerpts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastexplain import kernels
from fastexplain.kernels import cpu, cpu_neurons, reference
from fastexplain.kernels.scalars import BINS, NO_ID, histogram_bin, histogram_edges
from fastexplain.kernels.summary import (
    Batch,
    HeldOut,
    LookupTables,
    Summary,
    smallest_hashes,
    widen,
)

SUMS = {"sums", "token_sums", "pair_sums"}
DTYPES = ("float32", "float16", "bfloat16")


def as_dtype(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values as the kernels take `dtype`; bfloat16 by cutting the low 16 bits off."""
    if dtype == "bfloat16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(dtype)


@dataclasses.dataclass
class Case:
    """A small sweep: activations of all excerpts, their table rows, and how they are batched."""

    acts: np.ndarray  # [excerpts, lead + tokens, neurons]
    token_rows: np.ndarray
    pair_rows: np.ndarray
    ids: np.ndarray
    cuts: list[int]
    tokens: int
    top: int
    bottom: int
    random: int
    skip: int
    seed: int
    rows: tuple[int, int]

    def empty(self, ids: np.ndarray) -> Summary:
        return Summary.empty(
            self.acts.shape[2],
            self.tokens,
            self.acts.dtype,
            top=self.top,
            bottom=self.bottom,
            random_ids=smallest_hashes(ids, self.random, self.seed),
            table_rows=self.rows,
            seed=self.seed,
        )

    def batch(self, members: np.ndarray, random_ids: np.ndarray) -> Batch:
        return Batch.make(
            self.ids[members],
            self.token_rows[members],
            self.pair_rows[members],
            skip=self.skip,
            random_ids=random_ids,
        )

    def run(self, module, order: np.ndarray, cuts: list[int]) -> Summary:
        """Sweep the excerpts in the given order, in batches that end at `cuts`."""
        summary = self.empty(self.ids[order])
        for members in np.split(order, cuts):
            if len(members):
                batch = self.batch(members, summary.random_ids)
                module.capture(np.ascontiguousarray(self.acts[members]), batch, summary)
        return summary


@st.composite
def cases(draw) -> Case:
    excerpts = draw(st.integers(1, 12))
    neurons = draw(st.sampled_from([1, 3, 130]))
    tokens = draw(st.sampled_from([2, 5, 9]))
    lead = draw(st.integers(0, 1))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    # Few distinct values make ties; a spread of magnitudes reaches many bins and subnormals.
    kind = draw(st.sampled_from(["ties", "normal", "wide", "negative", "zero"]))
    shape = (excerpts, lead + tokens, neurons)
    values = {
        "ties": lambda: rng.integers(-2, 3, shape).astype(np.float32),
        "normal": lambda: rng.standard_normal(shape, dtype=np.float32),
        "wide": lambda: (
            rng.standard_normal(shape, dtype=np.float32)
            * np.float32(2.0) ** rng.integers(-24, 12, shape)
        ),
        "negative": lambda: -np.abs(rng.standard_normal(shape, dtype=np.float32)) - 0.1,
        "zero": lambda: np.zeros(shape, np.float32),
    }[kind]()
    rows = (draw(st.integers(0, 4)), draw(st.integers(0, 4)))
    return Case(
        acts=as_dtype(values.astype(np.float32), draw(st.sampled_from(DTYPES))),
        token_rows=rng.integers(-1, max(rows[0], 0), (excerpts, tokens)).astype(np.int32),
        pair_rows=rng.integers(-1, max(rows[1], 0), (excerpts, tokens)).astype(np.int32),
        ids=rng.permutation(excerpts * 3)[:excerpts].astype(np.int32),
        cuts=sorted(draw(st.lists(st.integers(0, excerpts), max_size=3))),
        tokens=tokens,
        top=draw(st.integers(1, 5)),
        bottom=draw(st.integers(0, 3)),
        random=draw(st.integers(0, 4)),
        skip=draw(st.integers(0, 1)),
        seed=draw(st.integers(0, 2**31)),
        rows=rows,
    )


def ordered(summary: Summary) -> Summary:
    """With the exemplars in order: merging with nothing sorts them."""
    nothing = Summary.empty(
        len(summary.positive),
        summary.top_acts.shape[2],
        summary.top_acts.dtype,
        top=summary.top_keys.shape[1],
        bottom=summary.bottom_keys.shape[1],
        random_ids=np.full(len(summary.random_ids), NO_ID, np.int32),
        table_rows=(len(summary.token_sums), len(summary.pair_sums)),
        seed=summary.seed,
    )
    return reference.merge(summary, nothing)


def assert_same(a: Summary, b: Summary) -> None:
    """Equal bit for bit, sums to rounding."""
    for field in dataclasses.fields(Summary):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if field.name in SUMS:
            # Of float32 terms: relative to the largest sum that rounding could have touched.
            scale = np.abs(x).max() if x.size else 0.0
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6 * scale, err_msg=field.name)
        else:
            np.testing.assert_array_equal(x, y, err_msg=field.name)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_capture_equals_the_reference(case: Case) -> None:
    order = np.arange(len(case.ids))
    fast, slow = (case.run(module, order, case.cuts) for module in (cpu, reference))
    assert_same(ordered(fast), ordered(slow))


@settings(max_examples=60, deadline=None)
@given(cases(), st.randoms(use_true_random=False))
def test_capture_does_not_depend_on_the_order_or_size_of_batches(case: Case, random) -> None:
    order = list(range(len(case.ids)))
    straight = case.run(cpu, np.array(order), [])
    random.shuffle(order)
    assert_same(ordered(straight), ordered(case.run(cpu, np.array(order), case.cuts)))


@settings(max_examples=100, deadline=None)
@given(cases())
def test_merge_equals_the_reference_and_one_sweep_of_everything(case: Case) -> None:
    parts = [case.run(cpu, part, []) for part in np.split(np.arange(len(case.ids)), case.cuts)]
    merged, slow = parts[0], parts[0]
    for part in parts[1:]:
        merged, slow = cpu_neurons.merge(merged, part), reference.merge(slow, part)
    assert_same(ordered(merged), ordered(slow))
    assert_same(ordered(merged), ordered(case.run(reference, np.arange(len(case.ids)), [])))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_merge_commutes_and_associates(case: Case) -> None:
    a, b, c = (case.run(cpu, part, []) for part in np.array_split(np.arange(len(case.ids)), 3))
    assert_same(kernels.merge(a, b), kernels.merge(b, a))
    assert_same(kernels.merge(kernels.merge(a, b), c), kernels.merge(a, kernels.merge(b, c)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_capture_names_the_excerpt_with_a_value_that_is_not_finite(dtype: str, bad: float) -> None:
    values = np.ones((3, 5, 7), np.float32)
    values[1, 4, 6] = bad
    for module in (cpu, reference):
        summary = Summary.empty(
            7, 5, as_dtype(values, dtype).dtype, top=2, bottom=0,
            random_ids=np.zeros(0, np.int32), table_rows=(0, 0), seed=0,
        )  # fmt: skip
        rows = np.full((3, 5), -1, np.int32)
        batch = Batch.make(
            np.array([10, 11, 12], np.int32), rows, rows, skip=1, random_ids=summary.random_ids
        )
        module.capture(as_dtype(values, dtype), batch, summary)
        assert summary.fault[0] == 11


def test_capture_ignores_what_is_not_counted() -> None:
    values = np.ones((1, 6, 3), np.float32)
    values[0, :2] = np.nan  # one position before the excerpt, and one that is skipped
    summary = Summary.empty(
        3, 5, values.dtype, top=1, bottom=1,
        random_ids=np.zeros(0, np.int32), table_rows=(1, 0), seed=0,
    )  # fmt: skip
    rows = np.zeros((1, 5), np.int32)
    batch = Batch.make(
        np.array([4], np.int32), rows, rows - 1, skip=1, random_ids=summary.random_ids
    )
    kernels.capture(values, batch, summary)
    assert summary.fault[0] == NO_ID
    assert (summary.token_sums == 4).all() and (summary.positive == 4).all()
    assert (summary.top_keys == 1).all() and (summary.bottom_keys == -1).all()


def test_capture_refuses_another_dtype_than_the_summary_has() -> None:
    summary = Summary.empty(
        3, 5, np.dtype(np.float32), top=1, bottom=0,
        random_ids=np.zeros(0, np.int32), table_rows=(0, 0), seed=0,
    )  # fmt: skip
    rows = np.full((1, 5), -1, np.int32)
    batch = Batch.make(np.zeros(1, np.int32), rows, rows, skip=0, random_ids=summary.random_ids)
    with pytest.raises(TypeError, match="float16"):
        kernels.capture(np.zeros((1, 5, 3), np.float16), batch, summary)


@given(st.floats(width=32, allow_nan=False))
def test_histogram_bins_are_those_between_the_edges(value: float) -> None:
    bits = int(np.float32(value).view(np.int32))
    assert histogram_bin(bits) == np.searchsorted(histogram_edges(), np.float32(value), "right")


def test_histogram_edges_are_log_spaced() -> None:
    edges = histogram_edges()
    assert len(edges) == BINS - 1
    np.testing.assert_allclose(edges[1:] / edges[:-1], 2**0.25, rtol=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_discretize_equals_the_reference(data) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    shape = data.draw(st.sampled_from([(1, 4), (5, 3, 7), (0, 4), (2, 0)]))
    values = rng.choice([-1.0, 0.0, 0.1, 0.3, 0.7, 1.0, 2.9, 3.0], shape).astype(np.float32)
    acts = as_dtype(values, data.draw(st.sampled_from(DTYPES)))
    scale = np.where(
        rng.random(len(acts)) < 0.8, widen(acts).max(tuple(range(1, acts.ndim)), initial=-1), -1
    ).astype(np.float32)
    np.testing.assert_array_equal(
        kernels.discretize(acts, scale), reference.discretize(acts, scale)
    )


def test_discretize_follows_the_formula_at_its_edges() -> None:
    acts = np.array([[-1, 0, 0.05, 0.1, 0.99, 1, 5]], np.float32)
    assert kernels.discretize(acts, np.ones(1, np.float32)).tolist() == [[0, 0, 0, 1, 9, 10, 10]]
    assert not kernels.discretize(acts, np.zeros(1, np.float32)).any()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_correlate_equals_the_reference_and_numpy(data) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    tokens = data.draw(st.integers(0, 40))
    kind = data.draw(st.sampled_from(["normal", "ties", "constant", "large"]))
    true = rng.standard_normal((6, tokens)).astype(np.float32)
    if kind == "ties":
        true = np.round(true)
    elif kind == "constant":
        true[:] = np.float32(0.1)
    elif kind == "large":
        true = true + np.float32(1e4)
    simulated = (true + rng.standard_normal((6, tokens))).astype(np.float32)
    gaps = data.draw(st.booleans())
    if gaps:
        simulated[rng.random((6, tokens)) < 0.3] = np.nan
    result = kernels.correlate(true, simulated)
    np.testing.assert_allclose(result, reference.correlate(true, simulated), rtol=1e-9, atol=1e-12)
    if tokens > 3 and kind in ("normal", "large") and not gaps:
        expected = [np.corrcoef(x, y)[0, 1] for x, y in zip(true, simulated, strict=True)]
        np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_correlate_is_undefined_where_a_side_does_not_vary() -> None:
    vary, flat = np.arange(5, dtype=np.float32)[None], np.full((1, 5), 0.1, np.float32)
    assert np.isnan(kernels.correlate(vary, flat)[0])
    assert np.isnan(kernels.correlate(flat, vary)[0])
    assert kernels.correlate(vary, 3 * vary)[0] == pytest.approx(1)


def test_correlate_refuses_arrays_of_different_shapes() -> None:
    with pytest.raises(ValueError, match=r"\[N, M\]"):
        kernels.correlate(np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32))


def tables_of(acts: np.ndarray, token_rows: np.ndarray, pair_rows: np.ndarray, rows, skip: int):
    """Lookup tables from the activations `[excerpts, tokens, neurons]`, added up in NumPy."""
    positive = np.maximum(acts[:, skip:], 0).astype(np.float64)

    def table(which: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        sums, counts = np.zeros((count, acts.shape[2])), np.zeros(count, np.int64)
        known = which[:, skip:] >= 0
        np.add.at(sums, which[:, skip:][known], positive[known])
        np.add.at(counts, which[:, skip:][known], 1)
        return sums.astype(np.float32), counts

    token_sums, token_counts = table(token_rows, rows[0])
    pair_sums, pair_counts = table(pair_rows, rows[1])
    return LookupTables(
        token_sums, pair_sums, token_counts, pair_counts,
        positive.sum(axis=(0, 1)), positive.shape[0] * positive.shape[1],
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 1), st.booleans())
def test_lookup_equals_the_reference(seed: int, skip: int, sparse: bool) -> None:
    rng = np.random.default_rng(seed)
    excerpts, tokens, neurons, rows = 6, 5, 4, (5, 7)
    acts = rng.standard_normal((excerpts, tokens, neurons)).astype(np.float32)
    if sparse:
        acts -= 1.5
    token_rows = rng.integers(-1, rows[0], (excerpts, tokens)).astype(np.int32)
    pair_rows = rng.integers(-1, rows[1], (excerpts, tokens)).astype(np.int32)
    tables = tables_of(acts, token_rows, pair_rows, rows, skip)
    ids = np.stack([rng.permutation(excerpts)[:3] for _ in range(neurons)]).astype(np.int32)
    ids[0, 1] = -1
    own = np.stack([acts[ids[n], :, n] for n in range(neurons)])
    held_out = HeldOut(ids, own, token_rows, pair_rows, skip)
    np.testing.assert_allclose(
        kernels.lookup(tables, held_out), reference.lookup(tables, held_out), rtol=1e-4, atol=1e-6
    )


def test_lookup_holds_a_neurons_own_excerpts_out_exactly() -> None:
    """All that the tables know comes from the excerpt itself: nothing may be left to predict by."""
    rng = np.random.default_rng(1)
    own = rng.random((1, 8, 3)).astype(np.float32)
    others = np.zeros((20, 8, 3), np.float32)
    acts = np.concatenate([own, others])
    token_rows = np.zeros((21, 8), np.int32)
    token_rows[0] = np.arange(8) % 4
    pair_rows = np.full((21, 8), -1, np.int32)
    tables = tables_of(acts, token_rows, pair_rows, (4, 0), 0)
    # What float32 tables would have rounded off, made large enough to be seen if it leaked.
    tables.token_sums *= np.float32(1 + 2**-22)
    ids = np.zeros((3, 1), np.int32)
    predicted = kernels.lookup(
        tables, HeldOut(ids, own.transpose(2, 0, 1).copy(), token_rows, pair_rows, 0)
    )
    assert (predicted == 0).all()


def test_lookup_of_pure_noise_scores_about_zero() -> None:
    rng = np.random.default_rng(2)
    excerpts, tokens, neurons, rows = 300, 64, 200, (50, 200)
    acts = rng.standard_normal((excerpts, tokens, neurons)).astype(np.float32)
    token_rows = rng.integers(-1, rows[0], (excerpts, tokens)).astype(np.int32)
    pair_rows = rng.integers(-1, rows[1], (excerpts, tokens)).astype(np.int32)
    tables = tables_of(acts, token_rows, pair_rows, rows, 1)
    # The excerpts in which the neuron is strongest, as a score's are.
    ids = np.argsort(-acts[:, 1:].max(axis=1), axis=0)[:10].T.astype(np.int32)
    own = np.stack([acts[ids[n], :, n] for n in range(neurons)])
    predicted = kernels.lookup(
        tables, HeldOut(np.ascontiguousarray(ids), own, token_rows, pair_rows, 1)
    )
    scores = kernels.correlate(
        np.maximum(own, 0).reshape(neurons, -1), predicted.reshape(neurons, -1)
    )
    assert abs(scores.mean()) < 0.02
    assert np.abs(scores).max() < 0.3
