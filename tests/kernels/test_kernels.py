"""Every kernel against `reference.py`, on inputs made hard: ties, gaps, few excerpts."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from fastexplain import kernels
from fastexplain.kernels import reference
from fastexplain.kernels.cpu import capture as cpu
from fastexplain.kernels.cpu.words import exp_of
from fastexplain.kernels.scalars import BINS, NO_ID, NONLINEARITIES, histogram_bin, histogram_edges
from fastexplain.kernels.summary import (
    KEPT_A_BIN,
    Batch,
    Preactivations,
    Summary,
    smallest_hashes,
    widen,
)

SUMS = {"sums", "token_sums", "pair_sums", "triple_sums"}
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
    triple_rows: np.ndarray
    ids: np.ndarray
    cuts: list[int]
    tokens: int
    top: int
    bottom: int
    random: int
    skip: int
    seed: int
    rows: tuple[int, int, int]

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
            self.triple_rows[members],
            skip=self.skip,
            random_ids=random_ids,
            table_rows=self.rows,
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
    rows = tuple(draw(st.integers(0, 4)) for _ in range(3))
    return Case(
        acts=as_dtype(values.astype(np.float32), draw(st.sampled_from(DTYPES))),
        token_rows=rng.integers(-1, max(rows[0], 0), (excerpts, tokens)).astype(np.int32),
        pair_rows=rng.integers(-1, max(rows[1], 0), (excerpts, tokens)).astype(np.int32),
        triple_rows=rng.integers(-1, max(rows[2], 0), (excerpts, tokens)).astype(np.int32),
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
        table_rows=tuple(
            len(own) for own in (summary.token_sums, summary.pair_sums, summary.triple_sums)
        ),
        seed=summary.seed,
    )
    return reference.merge(summary, nothing)


def assert_same(a: Summary, b: Summary) -> None:
    """Equal bit for bit, sums to rounding."""
    for name in Summary._fields:
        x, y = getattr(a, name), getattr(b, name)
        if name in SUMS:
            # Of float32 terms: relative to the largest sum that rounding could have touched.
            scale = np.abs(x).max() if x.size else 0.0
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6 * scale, err_msg=name)
        else:
            np.testing.assert_array_equal(x, y, err_msg=name)


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


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.integers(1, 60), st.permutations(range(4)))
def test_a_bin_keeps_the_excerpts_with_the_smallest_hashes(seed, count, order) -> None:
    """However the excerpts are dealt out to batches and summaries, and these are merged."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(1000)[:count].astype(np.int32)
    acts = 2.0 ** rng.integers(-2, 2, (count, 2, 3)).astype(np.float32)
    parts = [
        Summary.empty(
            3, 2, acts.dtype, top=1, bottom=0, random_ids=np.zeros(0, np.int32),
            table_rows=(0, 0, 0), seed=seed,
        )
        for _ in range(4)
    ]  # fmt: skip
    owner = rng.integers(0, 4, count)
    for part, summary in enumerate(parts):
        for members in np.array_split(np.flatnonzero(owner == part), 2):
            if len(members):
                rows = np.full((len(members), 2), -1, np.int32)
                batch = Batch.make(
                    ids[members], rows, rows, rows, skip=0, random_ids=summary.random_ids,
                    table_rows=(0, 0, 0),
                )  # fmt: skip
                cpu.capture(acts[members], batch, summary)
    a, b, c, d = (parts[place] for place in order)
    merge = kernels.merge
    whole = merge(merge(a, b), merge(c, d))
    assert_same(whole, merge(merge(merge(d, c), b), a))
    bins = np.searchsorted(histogram_edges(), acts.max(axis=1), side="right")  # [count, neurons]
    for neuron, place in np.ndindex(whole.histogram.shape):
        members = ids[bins[:, neuron] == place]
        np.testing.assert_array_equal(
            whole.histogram_ids[:, neuron, place], smallest_hashes(members, KEPT_A_BIN, seed)
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_capture_names_the_excerpt_with_a_value_that_is_not_finite(dtype: str, bad: float) -> None:
    values = np.ones((3, 5, 7), np.float32)
    values[1, 4, 6] = bad
    for module in (cpu, reference):
        summary = Summary.empty(
            7, 5, as_dtype(values, dtype).dtype, top=2, bottom=0,
            random_ids=np.zeros(0, np.int32), table_rows=(0, 0, 0), seed=0,
        )  # fmt: skip
        rows = np.full((3, 5), -1, np.int32)
        batch = Batch.make(
            np.array([10, 11, 12], np.int32),
            rows,
            rows,
            rows,
            skip=1,
            random_ids=summary.random_ids,
            table_rows=(0, 0, 0),
        )
        module.capture(as_dtype(values, dtype), batch, summary)
        assert summary.fault[0] == 11


def test_capture_ignores_what_is_not_counted() -> None:
    values = np.ones((1, 6, 3), np.float32)
    values[0, :2] = np.nan  # one position before the excerpt, and one that is skipped
    summary = Summary.empty(
        3, 5, values.dtype, top=1, bottom=1,
        random_ids=np.zeros(0, np.int32), table_rows=(1, 0, 0), seed=0,
    )  # fmt: skip
    rows = np.zeros((1, 5), np.int32)
    batch = Batch.make(
        np.array([4], np.int32),
        rows,
        rows - 1,
        rows - 1,
        skip=1,
        random_ids=summary.random_ids,
        table_rows=(1, 0, 0),
    )
    kernels.capture(values, batch, summary)
    assert summary.fault[0] == NO_ID
    assert (summary.token_sums == 4).all() and (summary.positive == 4).all()
    assert (summary.top_keys == 1).all() and (summary.bottom_keys == -1).all()


def test_capture_refuses_another_dtype_than_the_summary_has() -> None:
    summary = Summary.empty(
        3, 5, np.dtype(np.float32), top=1, bottom=0,
        random_ids=np.zeros(0, np.int32), table_rows=(0, 0, 0), seed=0,
    )  # fmt: skip
    rows = np.full((1, 5), -1, np.int32)
    batch = Batch.make(
        np.zeros(1, np.int32),
        rows,
        rows,
        rows,
        skip=0,
        random_ids=summary.random_ids,
        table_rows=(0, 0, 0),
    )
    with pytest.raises(TypeError, match="float16"):
        kernels.capture(np.zeros((1, 5, 3), np.float16), batch, summary)


LAYOUTS = ("plain", "gated", "halves", "halves swapped", "padded")


@dataclasses.dataclass
class FusedCase:
    """Pre-activations in one of the layouts in which models have them."""

    pre: Preactivations
    acts: np.ndarray

    @classmethod
    def make(cls, rng, shape, nonlinearity: str, layout: str, dtype: str) -> FusedCase:
        excerpts, length, neurons = shape

        def values(width: int) -> np.ndarray:
            x = rng.standard_normal((excerpts, length, width), dtype=np.float32) * 3
            x[rng.random(x.shape) < 0.3] = rng.choice([0, -0.0, 1, -1, 12, -12, 1e-30])
            return as_dtype(x, dtype)

        if layout in ("plain", "gated"):
            gate = values(neurons)
            up = values(neurons) if layout == "gated" else None
            # In place, as a model has it.
            return cls(Preactivations(nonlinearity, gate, up), gate)
        starts = {
            "halves": (0, neurons),
            "halves swapped": (neurons, 0),
            "padded": (1, neurons + 3),
        }
        both = values(2 * neurons + (5 if layout == "padded" else 0))
        acts = np.full(shape, 77, both.dtype)
        return cls(Preactivations(nonlinearity, both, both, *starts[layout]), acts)


def assert_activated(pre: Preactivations, acts: np.ndarray, expected: np.ndarray) -> None:
    """In 16 bits equal to the last place; in float32 to 8, or to a rounding of the input's size.

    In the far tail of gelu the exponential's argument, rounded, leaves no more.
    """
    slow = widen(expected).astype(np.float64)
    if acts.dtype == np.float32:
        size = 1.0 if pre.up is None else max(np.abs(pre.up).max(initial=0), 1)
        allowed = 8 * np.spacing(np.abs(expected)) + 2.0**-24 * size
    else:
        place = 2.0**16 if acts.dtype == np.uint16 else 1.0
        # What lies below 2**-100 may come out as zero, or for zero.
        allowed = np.spacing(np.abs(widen(expected) if place > 1 else expected)) * place + 2.0**-100
    assert (np.abs(widen(acts) - slow) <= allowed.astype(np.float64)).all()


def summary_of(neurons: int, tokens: int, dtype, ids: np.ndarray) -> Summary:
    return Summary.empty(
        neurons, tokens, np.dtype(dtype), top=3, bottom=2,
        random_ids=smallest_hashes(ids, 2, 0), table_rows=(3, 2, 2), seed=0,
    )  # fmt: skip


def assert_fused_equals_the_reference(
    module, case: FusedCase, tokens: int, seed: int, skip: int = 1
) -> None:
    """The activations to rounding; the summary exactly that of the activations that came out."""
    rng = np.random.default_rng(seed)
    excerpts, _, neurons = case.acts.shape
    ids = rng.permutation(3 * excerpts)[:excerpts].astype(np.int32)
    rows = [rng.integers(-1, count, (excerpts, tokens)).astype(np.int32) for count in (3, 2, 2)]
    fast, slow = (summary_of(neurons, tokens, case.acts.dtype, ids) for _ in range(2))
    batch = Batch.make(ids, *rows, skip=skip, random_ids=fast.random_ids, table_rows=(3, 2, 2))
    expected = reference.activations(case.pre, neurons)
    module.capture(case.acts, batch, fast, case.pre)
    assert_activated(case.pre, case.acts, expected)
    reference.capture(case.acts, batch, slow)
    assert_same(ordered(fast), ordered(slow))


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from(NONLINEARITIES),
    st.sampled_from(LAYOUTS),
    st.sampled_from(DTYPES),
    st.sampled_from([1, 3, 130]),
    st.sampled_from([(0, 2), (1, 5), (1, 9)]),
)
def test_fused_capture_equals_the_reference(
    seed, nonlinearity, layout, dtype, neurons, shape
) -> None:
    lead, tokens = shape
    rng = np.random.default_rng(seed)
    case = FusedCase.make(rng, (5, lead + tokens, neurons), nonlinearity, layout, dtype)
    assert_fused_equals_the_reference(cpu, case, tokens, seed)


def test_exp_is_right_to_two_units_in_the_last_place() -> None:
    loop = njit(lambda x: np.array([exp_of(value) for value in x]))
    x = np.linspace(-87.3, 88.7, 2_000_003, dtype=np.float32)
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(loop(x) - exact) / np.spacing(exact.astype(np.float32))).max() <= 2
    ends = loop(np.array([-np.inf, -1e9, 1e9, np.inf], np.float32))
    assert (ends[:2] < 2e-38).all() and np.isfinite(ends).all() and (ends[2:] > 1e38).all()


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_fused_activations_agree_with_torch(nonlinearity: str) -> None:
    f = {
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        "silu": torch.nn.functional.silu,
        "relu": torch.relu,
        "relu2": lambda x: torch.relu(x) ** 2,
    }[nonlinearity]
    x = np.linspace(-12, 12, 4 * 5 * 100, dtype=np.float32).reshape(4, 5, 100)
    expected = f(torch.from_numpy(x)).numpy()
    ids = np.arange(4, dtype=np.int32)
    rows = np.full((4, 5), -1, np.int32)
    batch = Batch.make(ids, rows, rows, rows, skip=0, random_ids=ids[:2], table_rows=(3, 2, 2))
    acts = x.copy()
    cpu.capture(
        acts, batch, summary_of(100, 5, np.float32, ids), Preactivations(nonlinearity, acts)
    )
    # torch's own gelu loses digits where 1 + erf or 1 + tanh cancels: 2**-23 of x remains.
    np.testing.assert_allclose(acts, expected, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_fused_capture_names_the_excerpt_with_a_value_that_is_not_finite(bad: float) -> None:
    x = np.random.default_rng(0).standard_normal((4, 5, 130), dtype=np.float32)
    x[2, 3, 7] = bad
    up = np.full_like(x, 1e30)
    rows = np.full((4, 5), -1, np.int32)
    ids = np.arange(10, 14, dtype=np.int32)
    summary = summary_of(130, 5, np.float32, ids)
    batch = Batch.make(ids, rows, rows, rows, skip=1, random_ids=ids[:2], table_rows=(3, 2, 2))
    cpu.capture(x, batch, summary, Preactivations("silu", x, up))
    assert summary.fault[0] == 12


@given(st.floats(width=32, allow_nan=False))
def test_histogram_bins_are_those_between_the_edges(value: float) -> None:
    bits = int(np.float32(value).view(np.int32))
    assert histogram_bin(bits) == np.searchsorted(histogram_edges(), np.float32(value), "right")


def test_histogram_edges_are_log_spaced() -> None:
    edges = histogram_edges()
    assert len(edges) == BINS - 1
    np.testing.assert_allclose(edges[1:] / edges[:-1], 2**0.25, rtol=1e-6)


@pytest.mark.scale
def test_variants_from_two_processes_are_not_taken_for_each_other(tmp_path) -> None:
    """Numba numbers functions anew in each process, which is part of a compiled function's name."""
    code = (
        "import sys\n"
        "import numpy as np\n"
        "from fastexplain.kernels import capture\n"
        "from fastexplain.kernels.summary import Batch, Preactivations, Summary\n"
        "one, rows = np.zeros(1, np.int32), (0, 0, 0)\n"
        "batch = Batch.make(one, *3 * [one[:, None] - 1], skip=0, random_ids=one,"
        " table_rows=rows)\n"
        "for name in sys.argv[1:]:\n"
        "    summary = Summary.empty(1, 1, np.dtype('float32'), top=1, bottom=0, random_ids=one,"
        " table_rows=rows, seed=0)\n"
        "    acts, gate = np.empty((1, 1, 1), np.float32), np.full((1, 1, 1), 3, np.float32)\n"
        "    capture(acts, batch, summary, Preactivations(name, gate))\n"
        "    print(acts.item())\n"
    )

    def run(*names: str) -> list[str]:
        return subprocess.run(
            [sys.executable, "-c", code, *names], check=True, capture_output=True, text=True,
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
        ).stdout.split()  # fmt: skip

    assert run("relu") == ["3.0"]
    assert run("relu2") == ["9.0"]
    assert run("relu", "relu2") == ["3.0", "9.0"]
