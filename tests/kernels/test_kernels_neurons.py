"""The kernels for all neurons at once against `reference.py`, on inputs made hard."""

from __future__ import annotations

import dataclasses

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels import DTYPES, Case, as_dtype, assert_same, cases, ordered

from fastexplain import kernels
from fastexplain.kernels import reference
from fastexplain.kernels.cpu import capture as cpu
from fastexplain.kernels.cpu import neurons, threads
from fastexplain.kernels.summary import Agreement, HeldOut, LookupTables, widen

SHAPES = [(6, 40), (6, 1), (6, 0), (0, 5), (5, 3, 17), (4, 1, 9), (3, 0, 4), (3, 4, 0), (0, 2, 3)]


@settings(max_examples=100, deadline=None)
@given(cases())
def test_merge_equals_the_reference_and_one_sweep_of_everything(case: Case) -> None:
    parts = [case.run(cpu, part, []) for part in np.split(np.arange(len(case.ids)), case.cuts)]
    merged, slow = parts[0], parts[0]
    for part in parts[1:]:
        merged, slow = kernels.merge(merged, part), reference.merge(slow, part)
    assert_same(ordered(merged), ordered(slow))
    assert_same(ordered(merged), ordered(case.run(reference, np.arange(len(case.ids)), [])))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_merge_commutes_and_associates(case: Case) -> None:
    a, b, c = (case.run(cpu, part, []) for part in np.array_split(np.arange(len(case.ids)), 3))
    assert_same(kernels.merge(a, b), kernels.merge(b, a))
    assert_same(kernels.merge(kernels.merge(a, b), c), kernels.merge(a, kernels.merge(b, c)))


def merge_case() -> Case:
    """Nine excerpts with ties and empty slots."""
    rng = np.random.default_rng(0)
    return Case(
        acts=as_dtype(rng.integers(-2, 3, (9, 5, 6)).astype(np.float32), "bfloat16"),
        token_rows=rng.integers(-1, 3, (9, 5)).astype(np.int32),
        pair_rows=rng.integers(-1, 2, (9, 5)).astype(np.int32),
        triple_rows=rng.integers(-1, 2, (9, 5)).astype(np.int32),
        ids=rng.permutation(30)[:9].astype(np.int32),
        cuts=[6],
        tokens=5,
        top=7,
        bottom=2,
        random=3,
        skip=1,
        seed=1,
        rows=(3, 2, 2),
    )


@pytest.mark.parametrize(
    "change", [{"top": 8}, {"bottom": 0}, {"random": 4}, {"seed": 2}, {"rows": (3, 2, 4)}]
)
def test_merge_refuses_summaries_that_were_made_differently(change: dict) -> None:
    case = merge_case()
    a, b = (c.empty(c.ids) for c in (case, dataclasses.replace(case, **change)))
    with pytest.raises(ValueError, match="can't be merged"):
        kernels.merge(a, b)


def discretize_case(rng: np.random.Generator, shape: tuple[int, ...], dtype: str):
    values = rng.choice([-1.0, 0.0, 0.1, 0.3, 0.7, 1.0, 2.9, 3.0], shape).astype(np.float32)
    acts = as_dtype(values, dtype)
    largest = widen(acts).max(tuple(range(1, acts.ndim)), initial=-1)
    return acts, np.where(rng.random(len(acts)) < 0.8, largest, -1).astype(np.float32)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([(1, 4), (5, 3, 7), (0, 4), (2, 0)]),
    st.sampled_from(DTYPES),
)
def test_discretize_equals_the_reference(seed: int, shape: tuple[int, ...], dtype: str) -> None:
    acts, scale = discretize_case(np.random.default_rng(seed), shape, dtype)
    np.testing.assert_array_equal(
        kernels.discretize(acts, scale), reference.discretize(acts, scale)
    )


def test_discretize_follows_the_formula_at_its_edges() -> None:
    acts = np.array([[-1, 0, 0.05, 0.1, 0.99, 1, 5]], np.float32)
    assert kernels.discretize(acts, np.ones(1, np.float32)).tolist() == [[0, 0, 0, 1, 9, 10, 10]]
    assert not kernels.discretize(acts, np.zeros(1, np.float32)).any()


def test_discretize_refuses_a_scale_of_another_length() -> None:
    with pytest.raises(ValueError, match="a scale for each row"):
        kernels.discretize(np.zeros((3, 4), np.float32), np.ones(4, np.float32))


def correlate_case(
    rng: np.random.Generator, shape: tuple[int, ...], kind: str, dtypes: tuple[str, str], gaps: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Activations and simulations; where there are gaps, one neuron has no token at all."""
    true = rng.standard_normal(shape)
    simulated = true + rng.standard_normal(shape)
    if kind == "ties":
        true, simulated = np.round(true), np.round(simulated)
    elif kind == "constant":
        true[::2] = 0.1
        simulated[1::2] = 0.1
    elif kind == "constant in an excerpt":
        # Each excerpt's own constant: it varies over all of them together.
        true[:] = rng.standard_normal((*shape[:-1], 1))
    elif kind == "large":
        true, simulated = true + 1e4, simulated + 1e4
    if gaps:
        true[rng.random(shape) < 0.2] = np.nan
        simulated[rng.random(shape) < 0.2] = np.nan
        simulated[:1] = np.nan
    return as_dtype(true, dtypes[0]), as_dtype(simulated, dtypes[1])


def assert_agree(fast: Agreement, slow: Agreement) -> None:
    for name in Agreement._fields:
        x, y = getattr(fast, name), getattr(slow, name)
        assert x.dtype == y.dtype and x.shape == y.shape
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-11, err_msg=name)


CORRELATE_KINDS = ["normal", "ties", "constant", "constant in an excerpt", "large"]


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from(SHAPES),
    st.sampled_from(CORRELATE_KINDS),
    # As they come: from a run, from a simulator, from a device in 16 bits.
    st.sampled_from(
        [("float32", "float32"), ("float64", "float64"), ("bfloat16", "float32"),
         ("float16", "float32")]
    ),
    st.booleans(),
)  # fmt: skip
def test_correlate_equals_the_reference(seed, shape, kind, dtypes, gaps) -> None:
    case = correlate_case(np.random.default_rng(seed), shape, kind, dtypes, gaps)
    assert_agree(kernels.correlate(*case), reference.correlate(*case))


@pytest.mark.parametrize("kind", ["normal", "large"])
def test_correlate_equals_plain_numpy(kind: str) -> None:
    rng = np.random.default_rng(3)
    true, simulated = correlate_case(rng, (7, 5, 30), kind, ("float32", "float32"), False)
    found = kernels.correlate(true, simulated)
    assert (found.tokens == 150).all()
    for neuron, (own_true, own_simulated) in enumerate(
        zip(true.astype(np.float64), simulated.astype(np.float64), strict=True)
    ):
        t, s = own_true.ravel(), own_simulated.ravel()
        slope, intercept = np.polyfit(s - s.mean(), t, 1)
        expected = {
            "correlation": np.corrcoef(t, s)[0, 1],
            "by_excerpt": [
                np.corrcoef(*pair)[0, 1] for pair in zip(own_true, own_simulated, strict=True)
            ],
            "r_squared": 1 - ((t - s) ** 2).mean() / t.var(),
            "deviation_explained": 1 - abs(t - s).mean() / abs(t - t.mean()).mean(),
            "slope": slope,
            "intercept": intercept - slope * s.mean(),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(getattr(found, name)[neuron], value, rtol=1e-7, err_msg=name)


def test_scores_after_a_linear_calibration_equal_plain_numpy() -> None:
    rng = np.random.default_rng(4)
    true = rng.standard_normal((6, 10, 20)).astype(np.float32)
    # On a simulator's scale, with a line and noise of each neuron's own.
    line = rng.uniform(1, 5, (2, 6, 1, 1)).astype(np.float32)
    simulated = (line[0] * true + line[1] + rng.standard_normal(true.shape)).astype(np.float32)
    calibration, test = slice(5), slice(5, None)
    fit = kernels.correlate(true[:, calibration], simulated[:, calibration])
    calibrated = (
        fit.intercept[:, None, None] + fit.slope[:, None, None] * simulated[:, test]
    ).astype(np.float32)
    found = kernels.correlate(true[:, test], calibrated)
    for neuron in range(6):
        own_true, own_simulated = true[neuron], simulated[neuron]
        slope, intercept = np.polyfit(
            own_simulated[calibration].ravel().astype(np.float64), own_true[calibration].ravel(), 1
        )
        t = own_true[test].ravel().astype(np.float64)
        error = t - (intercept + slope * own_simulated[test].ravel())
        assert found.r_squared[neuron] == pytest.approx(1 - (error**2).sum() / len(t) / t.var())
        assert found.deviation_explained[neuron] == pytest.approx(
            1 - abs(error).sum() / abs(t - t.mean()).sum()
        )
    # A line changes no correlation, and one that fits is needed for the others.
    raw = kernels.correlate(true[:, test], simulated[:, test])
    np.testing.assert_allclose(found.correlation, raw.correlation, rtol=1e-5)
    assert (found.r_squared > 0.5).all() and (raw.r_squared < 0).all()


def test_correlate_tells_what_is_undefined() -> None:
    vary = np.arange(5, dtype=np.float32)[None]
    # The float32 next to 0.1, added up, does not divide back to itself.
    flat = np.full((1, 5), 0.1, np.float32)
    gone = np.full((1, 5), np.nan, np.float32)
    one = np.where(np.arange(5) == 2, vary, np.nan).astype(np.float32)
    of_true, of_simulated = {"r_squared", "deviation_explained"}, {"intercept", "slope"}
    of_both = {"correlation", "by_excerpt"}
    for true, simulated, tokens, undefined in [
        (vary, 3 * vary, 5, set()),
        (vary, flat, 5, of_both | of_simulated),
        (flat, vary, 5, of_both | of_true),
        (flat, flat, 5, of_both | of_true | of_simulated),
        (vary, gone, 0, of_both | of_true | of_simulated),
        (one, vary, 1, of_both | of_true | of_simulated),
    ]:
        found = kernels.correlate(true, simulated)
        assert found.tokens.tolist() == [tokens]
        for name in of_both | of_true | of_simulated:
            assert np.isnan(getattr(found, name)).all() == (name in undefined), name
    assert kernels.correlate(flat, vary).slope[0] == 0


def test_correlate_of_excerpts_that_do_not_vary_is_defined_over_them_together() -> None:
    true = np.array([[[0, 0, 0], [1, 1, 1]]], np.float32)
    found = kernels.correlate(true, 2 * true + 1)
    assert np.isnan(found.by_excerpt).all()
    assert found.correlation[0] == pytest.approx(1)


@pytest.mark.parametrize(("shape", "other"), [((2, 3), (2, 4)), ((2, 3), (2, 1, 3)), ((3,), (3,))])
def test_correlate_refuses_other_shapes(shape: tuple[int, ...], other: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[N, E, T\]"):
        kernels.correlate(np.zeros(shape, np.float32), np.zeros(other, np.float32))


def tables_of(acts: np.ndarray, families: list[np.ndarray], rows, skip: int) -> LookupTables:
    """Lookup tables from the activations `[excerpts, tokens, neurons]`, added up in NumPy."""
    positive = np.maximum(acts[:, skip:], 0).astype(np.float64)

    def table(which: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        sums, counts = np.zeros((count, acts.shape[2])), np.zeros(count, np.int64)
        known = which[:, skip:] >= 0
        np.add.at(sums, which[:, skip:][known], positive[known])
        np.add.at(counts, which[:, skip:][known], 1)
        return sums.astype(np.float32), counts

    sums, counts = zip(*map(table, families, rows), strict=True)
    return LookupTables(
        *sums, *counts,
        positive.sum(axis=(0, 1)), positive.shape[0] * positive.shape[1],
    )  # fmt: skip


def lookup_case(seed: int, skip: int, sparse: bool) -> tuple[LookupTables, HeldOut]:
    """Six excerpts with few table rows, three of them held out per neuron, and one missing."""
    rng = np.random.default_rng(seed)
    excerpts, tokens, neurons, rows = 6, 5, 4, (5, 7, 6)
    acts = rng.standard_normal((excerpts, tokens, neurons)).astype(np.float32)
    if sparse:
        acts -= 1.5
    families = [rng.integers(-1, count, (excerpts, tokens)).astype(np.int32) for count in rows]
    tables = tables_of(acts, families, rows, skip)
    ids = np.stack([rng.permutation(excerpts)[:3] for _ in range(neurons)]).astype(np.int32)
    ids[0, 1] = -1
    own = np.stack([acts[ids[n], :, n] for n in range(neurons)])
    return tables, HeldOut(ids, own, *families, skip)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 1), st.booleans(), st.booleans())
def test_lookup_equals_the_reference(seed: int, skip: int, sparse: bool, signed: bool) -> None:
    case = lookup_case(seed, skip, sparse)
    np.testing.assert_allclose(
        kernels.lookup(*case, signed), reference.lookup(*case, signed), rtol=1e-4, atol=1e-6
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.floats(-3, 3))
def test_a_signed_lookup_is_linear(seed: int, factor: float) -> None:
    """So a regression's predictions, looked up, can be taken from the activations' lookup."""
    (tables, held_out), (others, other_held_out) = (
        lookup_case(seed, 1, False), lookup_case(seed, 1, True)
    )  # fmt: skip
    sums = ("token_sums", "pair_sums", "triple_sums", "positive_sums")
    factor = np.float32(factor)
    both = tables._replace(**{n: getattr(tables, n) + factor * getattr(others, n) for n in sums})
    acts = held_out.activations + factor * other_held_out.activations
    np.testing.assert_allclose(
        kernels.lookup(both, held_out._replace(activations=acts), True),
        kernels.lookup(tables, held_out, True)
        + factor * kernels.lookup(others, other_held_out, True),
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip


@pytest.mark.parametrize("worth", [1, 2**16])
def test_few_values_wake_no_threads(worth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    most, used = numba.get_num_threads(), []

    def recorded(*arguments: object) -> None:
        used.append(numba.get_num_threads())
        compiled(*arguments)

    compiled = neurons._lookup
    monkeypatch.setattr(neurons, "_lookup", recorded)
    monkeypatch.setattr(threads, "_WORTH_A_THREAD", worth)
    case = lookup_case(0, 1, False)
    np.testing.assert_allclose(kernels.lookup(*case), reference.lookup(*case), rtol=1e-4, atol=1e-6)
    values = case[1].activations.size
    assert used == [max(1, min(most, values // worth))]
    assert numba.get_num_threads() == most


def held_out_case(triples: bool = False) -> tuple[LookupTables, HeldOut]:
    """All that the tables know comes from the one excerpt that is to be predicted."""
    rng = np.random.default_rng(1)
    own = rng.random((1, 8, 3)).astype(np.float32)
    others = np.zeros((20, 8, 3), np.float32)
    acts = np.concatenate([own, others])
    rows = np.zeros((21, 8), np.int32)
    rows[0] = np.arange(8) % 4
    none = np.full((21, 8), -1, np.int32)
    families = [rows, none, rows if triples else none]
    tables = tables_of(acts, families, (4, 0, 4 if triples else 0), 0)
    # What float32 tables would have rounded off, made large enough to be seen if it leaked.
    tables.token_sums[...] *= np.float32(1 + 2**-22)
    tables.triple_sums[...] *= np.float32(1 + 2**-22)
    ids = np.zeros((3, 1), np.int32)
    return tables, HeldOut(ids, own.transpose(2, 0, 1).copy(), *families, 0)


@pytest.mark.parametrize("triples", [False, True])
def test_lookup_holds_a_neurons_own_excerpts_out_exactly(triples: bool) -> None:
    """Nothing may be left to predict by."""
    assert (kernels.lookup(*held_out_case(triples)) == 0).all()


def test_lookup_of_pure_noise_scores_about_zero() -> None:
    rng = np.random.default_rng(2)
    excerpts, tokens, neurons, rows = 300, 64, 200, (50, 200, 900)
    acts = rng.standard_normal((excerpts, tokens, neurons)).astype(np.float32)
    families = [rng.integers(-1, count, (excerpts, tokens)).astype(np.int32) for count in rows]
    tables = tables_of(acts, families, rows, 1)
    # The excerpts in which the neuron is strongest, as a score's are.
    ids = np.argsort(-acts[:, 1:].max(axis=1), axis=0)[:10].T.astype(np.int32)
    own = np.stack([acts[ids[n], :, n] for n in range(neurons)])
    predicted = kernels.lookup(tables, HeldOut(np.ascontiguousarray(ids), own, *families, 1))
    scores = kernels.correlate(np.maximum(own, 0), predicted).correlation
    assert abs(scores.mean()) < 0.02
    assert np.abs(scores).max() < 0.3


@pytest.mark.parametrize("name", ["ids", "activations", "token_rows", "triple_rows", "token_sums"])
def test_lookup_refuses_shapes_that_do_not_fit_together(name: str) -> None:
    tables, held_out = lookup_case(0, 0, False)
    if name == "token_sums":
        tables = tables._replace(token_sums=tables.token_sums[..., :-1])
    else:
        held_out = held_out._replace(**{name: getattr(held_out, name)[..., :-1]})
    with pytest.raises(ValueError, match="do not fit together"):
        kernels.lookup(tables, held_out)
