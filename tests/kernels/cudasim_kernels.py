"""`cuda.capture` in Numba's CUDA simulator; `test_kernels_cuda.py` runs this in its own process.

The simulator replaces Numba's compiler for good when it is asked for before the first import, and
the tests of the other kernels need the compiler.
"""

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
from test_kernels import (
    DTYPES,
    LAYOUTS,
    Case,
    FusedCase,
    as_dtype,
    assert_fused_equals_the_reference,
    assert_same,
    cases,
    ordered,
    summary_of,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benches"))

import simulator  # noqa: F401

from fastexplain import kernels as public_kernels
from fastexplain.kernels import reference
from fastexplain.kernels.cuda import capture as kernels
from fastexplain.kernels.scalars import NO_ID, NONLINEARITIES
from fastexplain.kernels.summary import Batch, Preactivations, Summary, moved

# The simulator starts a Python thread for every CUDA thread.
SMALL_BLOCKS = {
    "_THREADS": 8,
    "_NEURON_THREADS": 8,
    "_INSERT_THREADS": 4,
    "_TABLE_THREADS": (4, 2),
    "_COPY_BLOCKS": 2,
    "_BINS_BLOCK": (4, 8, 6),
    "_ALONE": 2,
}

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


def on_device(array: np.ndarray):
    return cuda.to_device(np.ascontiguousarray(array))


def capture(
    acts: np.ndarray,
    batch: Batch,
    summary: Summary,
    pre: Preactivations | None = None,
    **constants,
) -> None:
    """`cuda.capture` of a summary and of activations that stay on the host."""
    device, on = moved(summary, on_device), on_device(acts)
    if pre is not None:
        # An array that several names share is one on the device too.
        known = {id(acts): on}
        pre = moved(pre, lambda array: known.setdefault(id(array), on_device(array)))
    with mock.patch.multiple(kernels, **(SMALL_BLOCKS | constants)):
        kernels.capture(on, moved(batch, on_device), device, pre)
    acts[...] = on.copy_to_host()
    for name in summary._fields:
        value = getattr(summary, name)
        if isinstance(value, np.ndarray):
            value[...] = getattr(device, name).copy_to_host()


@dataclasses.dataclass
class Simulated:
    """What `Case.run` takes for a module of kernels."""

    constants: dict

    def capture(self, acts, batch, summary, pre=None) -> None:
        capture(acts, batch, summary, pre, **self.constants)


def assert_equals_the_reference(case: Case, **constants) -> None:
    order = np.arange(len(case.ids))
    fast = case.run(Simulated(constants), order, case.cuts)
    assert_same(ordered(fast), ordered(case.run(reference, order, case.cuts)))
    # Slot 0 holds the worst, by which the next batch is judged.
    for keys, ids in ((fast.top_keys, fast.top_ids), (fast.bottom_keys, fast.bottom_ids)):
        for own_keys, own_ids in zip(keys, ids, strict=True):
            if len(own_keys):
                assert np.lexsort((-own_ids.astype(np.int64), own_keys))[0] == 0


def case_of(neurons: int, dtype: str, seed: int, **changes) -> Case:
    """Ties, subnormals and a wide range; several batches; all that a summary can hold."""
    rng = np.random.default_rng(seed)
    excerpts, tokens = 9, 6
    values = rng.standard_normal((excerpts, tokens + 1, neurons), dtype=np.float32)
    values *= np.float32(2.0) ** rng.integers(-24, 12, values.shape)
    values[rng.random(values.shape) < 0.4] = 1.5
    case = Case(
        acts=as_dtype(values, dtype),
        token_rows=rng.integers(-1, 3, (excerpts, tokens)).astype(np.int32),
        pair_rows=rng.integers(-1, 3, (excerpts, tokens)).astype(np.int32),
        triple_rows=rng.integers(-1, 3, (excerpts, tokens)).astype(np.int32),
        ids=rng.permutation(excerpts * 3)[:excerpts].astype(np.int32),
        cuts=[7],
        tokens=tokens,
        top=3,
        bottom=2,
        random=3,
        skip=1,
        seed=seed,
        rows=(3, 3, 3),
    )
    return dataclasses.replace(case, **changes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("neurons", [1, 6, 20])
def test_capture_equals_the_reference_at_every_width_of_word(neurons: int, dtype: str) -> None:
    assert_equals_the_reference(case_of(neurons, dtype, seed=neurons))


@pytest.mark.parametrize(
    "changes",
    [
        {"bottom": 0},
        {"random": 0},
        {"skip": 0},
        {"cuts": []},
        {"cuts": [1, 2, 8]},
        {"top": 12},
        {
            "rows": (0, 0, 0),
            "token_rows": np.full((9, 6), -1),
            "pair_rows": np.full((9, 6), -1),
            "triple_rows": np.full((9, 6), -1),
        },
        {"rows": (0, 3, 3), "token_rows": np.full((9, 6), -1)},
        {"rows": (3, 0, 3), "pair_rows": np.full((9, 6), -1)},
        {"rows": (3, 3, 0), "triple_rows": np.full((9, 6), -1)},
        {
            "rows": (1, 0, 1),
            "token_rows": np.zeros((9, 6)),
            "pair_rows": np.full((9, 6), -1),
            "triple_rows": np.zeros((9, 6)),
        },
    ],
    ids=lambda changes: " ".join(changes),
)
def test_capture_equals_the_reference_with_parts_left_out(changes: dict) -> None:
    rows = {name: changes[name].astype(np.int32) for name in changes if name.endswith("_rows")}
    assert_equals_the_reference(case_of(8, "bfloat16", seed=1, **(changes | rows)))


@pytest.mark.parametrize("chunk", [1, 2, 32])
def test_capture_does_not_depend_on_the_chunks(chunk: int) -> None:
    assert_equals_the_reference(case_of(5, "float16", seed=2), _CHUNK=(chunk, chunk))


def test_capture_on_a_device_that_can_neither_pack_nor_pair(monkeypatch) -> None:
    monkeypatch.setattr(kernels, "_capability", lambda: (7, 5))
    assert_equals_the_reference(case_of(8, "bfloat16", seed=10))


@pytest.mark.parametrize(("lead", "skip"), [(0, 0), (0, 9), (1, 1), (1, 7)])
def test_capture_reads_every_position_whatever_is_left_over_from_groups(
    lead: int, skip: int
) -> None:
    """Groups are of eight loads: 12 and 13 positions, of which some are not counted."""
    rng = np.random.default_rng(11)
    case = FusedCase.make(rng, (3, 12 + lead, 4), "relu", "plain", "bfloat16")
    assert_fused_equals_the_reference(Simulated({}), case, 12, seed=8, skip=skip)


@pytest.mark.parametrize(("threads", "top"), [(1, 2), (3, 1), (3, 11), (32, 2)])
def test_insertion_leaves_every_slot_as_one_by_one(threads: int, top: int) -> None:
    """Not only what is kept: where it is kept too, as if excerpts came one after another."""
    case = case_of(3, "float16", seed=12, top=top)
    order = np.arange(6)
    together = case.run(Simulated({"_INSERT_THREADS": threads}), order, [])
    singly = case.run(Simulated({}), order, list(range(1, 6)))
    for end in ("top", "bottom"):
        for what in ("keys", "ids", "acts"):
            name = f"{end}_{what}"
            np.testing.assert_array_equal(getattr(together, name), getattr(singly, name), name)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(cases().filter(lambda case: case.acts.shape[2] < 100), st.sampled_from([1, 3]))
def test_capture_equals_the_reference_on_hard_inputs(case: Case, chunk: int) -> None:
    assert_equals_the_reference(case, _CHUNK=(chunk, chunk))


def test_capture_without_a_position_before_the_excerpt() -> None:
    case = case_of(4, "float16", seed=3)
    assert_equals_the_reference(dataclasses.replace(case, acts=case.acts[:, 1:]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_capture_names_the_excerpt_with_a_value_that_is_not_finite(dtype: str, bad: float) -> None:
    case = case_of(5, "float32", seed=4, cuts=[], ids=np.arange(10, 19, dtype=np.int32))
    case.acts[3, 4, 3] = bad
    case.acts[:, 1] = np.nan  # skipped
    acts = as_dtype(case.acts, dtype)
    result = dataclasses.replace(case, acts=acts).run(Simulated({}), np.arange(9), [])
    assert result.fault[0] == 13
    case.acts[3, 4, 3] = 1
    acts = as_dtype(case.acts, dtype)
    result = dataclasses.replace(case, acts=acts).run(Simulated({}), np.arange(9), [])
    assert result.fault[0] == NO_ID


def test_capture_takes_bfloat16_as_signed_integers() -> None:
    case = case_of(4, "bfloat16", seed=5, cuts=[])
    signed = dataclasses.replace(case, acts=case.acts.view(np.int16))
    results = [each.run(Simulated({}), np.arange(9), []) for each in (case, signed)]
    unsigned = moved(results[1], lambda a: a.view(np.uint16) if a.dtype == np.int16 else a)
    assert_same(results[0], unsigned)


def test_capture_is_the_same_bit_for_bit_when_repeated() -> None:
    case = case_of(8, "float16", seed=6)
    first, second = (case.run(Simulated({}), np.arange(9), case.cuts) for _ in range(2))
    for name in Summary._fields:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_capture_refuses_another_dtype_than_the_summary_has() -> None:
    case = case_of(4, "float32", seed=7)
    summary = case.empty(case.ids)
    batch = case.batch(np.arange(9), summary.random_ids)
    with pytest.raises(TypeError, match="float16"):
        public_kernels.capture(on_device(case.acts.astype(np.float16)), batch, summary)


@pytest.mark.parametrize(
    ("nonlinearity", "layout", "dtype"),
    [
        (nonlinearity, layout, DTYPES[(i + j) % len(DTYPES)])
        for i, nonlinearity in enumerate(NONLINEARITIES)
        for j, layout in enumerate(LAYOUTS)
    ],
)
def test_fused_capture_equals_the_reference(nonlinearity: str, layout: str, dtype: str) -> None:
    rng = np.random.default_rng(8)
    # Tokens beyond a multiple of the loads in flight, neurons in words of four, two and one.
    case = FusedCase.make(rng, (3, 12, 12), nonlinearity, layout, dtype)
    assert_fused_equals_the_reference(Simulated({}), case, 11, seed=8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_fused_capture_names_the_excerpt_that_is_not_finite(dtype: str, bad: float) -> None:
    case = FusedCase.make(np.random.default_rng(9), (3, 12, 12), "silu", "gated", dtype)
    if dtype == "bfloat16":
        case.acts[1, 6, 5] = as_dtype(np.array(bad, np.float32), dtype)
    else:
        case.acts[1, 6, 5] = bad
    ids = np.arange(10, 13, dtype=np.int32)
    rows = np.full((3, 11), -1, np.int32)
    summary = summary_of(12, 11, case.acts.dtype, ids)
    batch = Batch.make(
        ids, rows, rows, rows, skip=0, random_ids=summary.random_ids, table_rows=(3, 2, 2)
    )
    capture(case.acts, batch, summary, case.pre)
    assert summary.fault[0] == 11
