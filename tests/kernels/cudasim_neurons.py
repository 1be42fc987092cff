"""`cuda/neurons.py` in Numba's CUDA simulator; `test_kernels_cuda.py` runs it in a process."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import cuda
from test_kernels import DTYPES, Case, assert_same, cases
from test_kernels_neurons import (
    CORRELATE_KINDS,
    assert_agree,
    correlate_case,
    discretize_case,
    held_out_case,
    lookup_case,
    merge_case,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benches"))

import simulator  # noqa: F401

from fastexplain.kernels import reference
from fastexplain.kernels.cuda import merge as merging
from fastexplain.kernels.cuda import neurons as kernels
from fastexplain.kernels.summary import HeldOut, Summary, moved

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


@pytest.fixture(autouse=True)
def small_blocks():
    """The simulator starts a Python thread for every CUDA thread."""
    small = mock.patch.multiple(kernels, _THREADS=4, _TILE=4)
    with small, mock.patch.object(merging, "_THREADS", 4):
        yield


def on_device(array: np.ndarray):
    return cuda.to_device(np.ascontiguousarray(array))


def on_host(record):
    """The same record with NumPy arrays."""
    return type(record)(*(
        value.copy_to_host() if hasattr(value, "copy_to_host") else value for value in record
    ))  # fmt: skip


def parts_of(case: Case) -> list[Summary]:
    """Of two halves of the excerpts, which the second half has none of where there is one."""
    order = np.arange(len(case.ids))
    return [case.run(reference, part, []) for part in np.array_split(order, 2)]


def assert_merges_as_the_reference(case: Case) -> None:
    a, b = parts_of(case)
    fast = on_host(kernels.merge(moved(a, on_device), moved(b, on_device)))
    slow = reference.merge(a, b)
    assert_same(fast, slow)
    for name in Summary._fields:
        # Each sum is one addition, so that they are equal too.
        np.testing.assert_array_equal(getattr(fast, name), getattr(slow, name))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(cases().filter(lambda case: case.acts.shape[2] < 100))
def test_merge_equals_the_reference(case: Case) -> None:
    assert_merges_as_the_reference(case)


@pytest.mark.parametrize(
    "changes", [{}, {"bottom": 0}, {"random": 0}, {"random": 12}, {"rows": (0, 0, 0)}]
)
def test_merge_equals_the_reference_with_parts_left_out(changes: dict) -> None:
    case = dataclasses.replace(merge_case(), **changes)
    case.token_rows[...] = np.minimum(case.token_rows, case.rows[0] - 1)
    case.pair_rows[...] = np.minimum(case.pair_rows, case.rows[1] - 1)
    case.triple_rows[...] = np.minimum(case.triple_rows, case.rows[2] - 1)
    assert_merges_as_the_reference(case)


def test_merge_leaves_its_arguments_as_they_are() -> None:
    a, b = (moved(part, on_device) for part in parts_of(merge_case()))
    first, second = (on_host(kernels.merge(a, b)) for _ in range(2))
    assert_same(first, second)


def test_work_is_queued_on_the_stream_that_is_named(monkeypatch) -> None:
    seen = []
    # The simulator has no streams.
    monkeypatch.setattr(cuda, "external_stream", lambda handle: seen.append(handle) or 0)
    acts = on_device(np.ones((2, 3), np.float32))
    kernels.discretize(acts, on_device(np.ones(2)), stream=7)
    kernels.correlate(acts, acts, stream=8)
    kernels.lookup(*(moved(record, on_device) for record in lookup_case(0, 0, False)), stream=9)
    kernels.merge(*(moved(part, on_device) for part in parts_of(merge_case())), stream=10)
    kernels.correlate(acts, acts)
    assert seen == [7, 8, 9, 10]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 4), (5, 3, 7), (0, 4), (2, 0)])
def test_discretize_equals_the_reference(shape: tuple[int, ...], dtype: str) -> None:
    acts, scale = discretize_case(np.random.default_rng(0), shape, dtype)
    result = kernels.discretize(on_device(acts), on_device(scale))
    np.testing.assert_array_equal(result.copy_to_host(), reference.discretize(acts, scale))


def test_bfloat16_may_come_as_signed_integers() -> None:
    acts, scale = discretize_case(np.random.default_rng(1), (3, 6), "bfloat16")
    result = kernels.discretize(on_device(acts.view(np.int16)), on_device(scale))
    np.testing.assert_array_equal(result.copy_to_host(), reference.discretize(acts, scale))


@pytest.mark.parametrize("kind", CORRELATE_KINDS)
@pytest.mark.parametrize("gaps", [False, True])
def test_correlate_equals_the_reference(kind: str, gaps: bool) -> None:
    case = correlate_case(np.random.default_rng(2), (3, 2, 5), kind, ("float32", "float32"), gaps)
    assert_agree(on_host(kernels.correlate(*map(on_device, case))), reference.correlate(*case))


# Neurons and tokens that do and do not fill tiles of 4 by 4.
@pytest.mark.parametrize("shape", [(4, 8), (5, 3, 7), (9, 1, 4), (1, 1, 2), (0, 3), (3, 0, 4)])
def test_correlate_equals_the_reference_in_all_shapes(shape: tuple[int, ...]) -> None:
    dtypes = ("float32", "float32")
    case = correlate_case(np.random.default_rng(3), shape, "normal", dtypes, True)
    assert_agree(on_host(kernels.correlate(*map(on_device, case))), reference.correlate(*case))


@pytest.mark.parametrize(
    "dtypes", [("float16", "float32"), ("bfloat16", "float32"), ("float64", "float64")]
)
def test_correlate_takes_every_dtype(dtypes: tuple[str, str]) -> None:
    case = correlate_case(np.random.default_rng(4), (3, 2, 6), "normal", dtypes, True)
    assert_agree(on_host(kernels.correlate(*map(on_device, case))), reference.correlate(*case))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(0, 1), st.booleans(), st.booleans())
def test_lookup_equals_the_reference(seed: int, skip: int, sparse: bool, signed: bool) -> None:
    tables, held_out = lookup_case(seed, skip, sparse)
    result = kernels.lookup(moved(tables, on_device), moved(held_out, on_device), signed)
    expected = reference.lookup(tables, held_out, signed)
    np.testing.assert_allclose(result.copy_to_host(), expected, rtol=1e-5, atol=1e-6)


def test_lookup_holds_a_neurons_own_excerpts_out_exactly() -> None:
    tables, held_out = held_out_case()
    result = kernels.lookup(moved(tables, on_device), moved(held_out, on_device))
    assert (result.copy_to_host() == 0).all()


def test_lookup_refuses_more_tokens_than_fit_into_a_block() -> None:
    tables, _ = lookup_case(0, 0, False)
    rows = np.zeros((70, 64), np.int32)
    ids = np.zeros((4, 70), np.int32)
    held_out = HeldOut(ids, np.zeros((4, 70, 64), np.float32), rows, rows, rows, 0)
    with pytest.raises(ValueError, match="3072 tokens a neuron at most"):
        kernels.lookup(moved(tables, on_device), moved(held_out, on_device))
