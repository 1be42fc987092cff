"""`cuda/signs.py` in Numba's CUDA simulator; `test_kernels_cuda.py` runs it in a process."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import cuda
from test_kernels import DTYPES
from test_signs import GATED, SignsCase, assert_same_signs, bare_batch, in_order, signs_cases

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benches"))

import simulator  # noqa: F401

from fastexplain.kernels import reference
from fastexplain.kernels.cuda import signs as kernels
from fastexplain.kernels.signs import Signs
from fastexplain.kernels.summary import Batch, Preactivations, moved

SMALL_BLOCKS = {"_THREADS": 8, "_INSERT_THREADS": 4}
"""The simulator starts a Python thread for every CUDA thread."""

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


def on_device(array: np.ndarray):
    return cuda.to_device(np.ascontiguousarray(array))


def simulated(**constants):
    """`capture_signs` of arrays that stay on the host."""

    def capture_signs(acts: np.ndarray, batch: Batch, signs: Signs, pre: Preactivations) -> None:
        device = moved(signs, on_device)
        with mock.patch.multiple(kernels, **(SMALL_BLOCKS | constants)):
            kernels.capture_signs(
                on_device(acts), moved(batch, on_device), device, moved(pre, on_device)
            )
        for name in Signs._fields:
            getattr(signs, name)[...] = getattr(device, name).copy_to_host()

    return capture_signs


def assert_equals_the_reference(case: SignsCase, cuts: list[int], **constants) -> None:
    order = np.arange(len(case.ids))
    fast = case.run(simulated(**constants), order, cuts)
    slow = case.run(reference.capture_signs, order, cuts)
    assert_same_signs(in_order(fast), in_order(slow), rtol=1e-5)  # of float32 terms
    for keys, ids in zip(fast.keys.reshape(-1, case.exemplars),
                         fast.ids.reshape(-1, case.exemplars), strict=True):  # fmt: skip
        assert np.lexsort((-ids.astype(np.int64), keys))[0] == 0


def case_of(neurons: int, dtype: str, layout: str, exemplars: int = 2) -> SignsCase:
    return SignsCase.make(
        np.random.default_rng(neurons), (9, 11, neurons), nonlinearity="silu", layout=layout,
        dtype=dtype, tokens=10, skip=1, exemplars=exemplars,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("neurons", "layout"), list(zip([1, 6, 12, 20], GATED, strict=True)))
def test_signs_equal_the_reference_at_every_width_of_word(neurons, layout, dtype) -> None:
    assert_equals_the_reference(case_of(neurons, dtype, layout), [7])


@pytest.mark.parametrize("chunk", [1, 2, 32])
def test_signs_do_not_depend_on_the_chunks(chunk: int) -> None:
    assert_equals_the_reference(case_of(4, "float16", "gated"), [], _CHUNK=(chunk, chunk))


@pytest.mark.parametrize(("threads", "exemplars"), [(1, 2), (3, 1), (3, 7), (32, 2)])
def test_insertion_leaves_every_slot_as_one_by_one(threads: int, exemplars: int) -> None:
    """Not only what is kept: where it is kept too, as if excerpts came one after another."""
    case, order = case_of(3, "float16", "gated", exemplars), np.arange(9)
    together = case.run(simulated(_INSERT_THREADS=threads), order, [])
    singly = case.run(simulated(), order, list(range(1, 9)))
    for name in ("keys", "ids", "acts", "ups"):
        np.testing.assert_array_equal(getattr(together, name), getattr(singly, name), name)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    signs_cases().filter(lambda case: case.acts.shape[2] < 50),
    st.lists(st.integers(0, 12), max_size=2),
    st.sampled_from([1, 3]),
)
def test_signs_equal_the_reference_on_hard_inputs(case, cuts, chunk: int) -> None:
    assert_equals_the_reference(case, sorted(cuts), _CHUNK=(chunk, chunk))


def test_a_batch_of_no_excerpts_changes_nothing() -> None:
    case = case_of(4, "float32", "gated")
    signs = Signs.empty(4, 10, case.acts.dtype, exemplars=2)
    before = moved(signs, np.copy)
    pre = case.pre._replace(gate=case.pre.gate[:0], up=case.pre.up[:0])
    simulated()(case.acts[:0], bare_batch(np.zeros(0, np.int32), 10, 1), signs, pre)
    assert_same_signs(signs, before)
