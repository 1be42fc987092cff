"""`capture_signs` against the reference, and the classes against their definition."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels import DTYPES, LAYOUTS, FusedCase

from fastexplain import kernels
from fastexplain.kernels import reference
from fastexplain.kernels.cpu import capture as cpu
from fastexplain.kernels.cpu import signs as cpu_signs
from fastexplain.kernels.scalars import NO_ID, NONLINEARITIES
from fastexplain.kernels.signs import CLASSES, Signs, classes_of, unpacked
from fastexplain.kernels.summary import Batch, Preactivations, Summary, widen

GATED = LAYOUTS[1:]


def bare_batch(ids: np.ndarray, tokens: int, skip: int) -> Batch:
    """A batch that fills no tables and keeps nothing as random."""
    none, rows = np.zeros(0, np.int32), np.full((len(ids), tokens), -1, np.int32)
    return Batch.make(ids, rows, rows, rows, skip=skip, random_ids=none, table_rows=(0, 0, 0))


@dataclasses.dataclass
class SignsCase:
    """Activations as a model has made them, with their factors, and how they are batched."""

    acts: np.ndarray  # [excerpts, lead + tokens, neurons]
    pre: Preactivations
    tokens: int
    skip: int
    exemplars: int
    ids: np.ndarray

    @classmethod
    def make(
        cls,
        rng: np.random.Generator,
        shape: tuple[int, int, int],
        *,
        nonlinearity: str,
        layout: str,
        dtype: str,
        tokens: int,
        skip: int,
        exemplars: int,
    ) -> SignsCase:
        case = FusedCase.make(rng, shape, nonlinearity, layout, dtype)
        if rng.random() < 0.3:  # few values make ties
            case.pre.gate[:, 1:] = case.pre.gate[:, :1]
        case.acts[...] = reference.activations(case.pre, shape[2])
        ids = rng.permutation(3 * shape[0])[: shape[0]].astype(np.int32)
        return cls(case.acts, case.pre, tokens, skip, exemplars, ids)

    def run(self, capture_signs: Any, order: np.ndarray, cuts: list[int]) -> Signs:
        """Fold the excerpts in, in the given order, in batches that end at `cuts`."""
        dtype = self.acts.dtype
        signs = Signs.empty(self.acts.shape[2], self.tokens, dtype, exemplars=self.exemplars)
        for members in np.split(order, cuts):
            if len(members):
                pre = self.pre._replace(gate=self.pre.gate[members], up=self.pre.up[members])
                batch = bare_batch(self.ids[members], self.tokens, self.skip)
                capture_signs(self.acts[members], batch, signs, pre)
        return signs


def in_order(signs: Signs) -> Signs:
    """The same with exemplars best first."""
    order = np.lexsort((signs.ids, -signs.keys), axis=2)
    kept = {}
    for name in ("keys", "ids", "acts", "ups"):
        array = getattr(signs, name)
        places = order.reshape(*order.shape, *[1] * (array.ndim - 3))
        kept[name] = np.take_along_axis(array, places, axis=2)
    return signs._replace(**kept)


def assert_same_signs(a: Signs, b: Signs, rtol: float = 1e-12) -> None:
    """Equal bit for bit, sums to rounding."""
    for name in Signs._fields:
        x, y = getattr(a, name), getattr(b, name)
        if name == "sums":
            np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * np.abs(y).max(initial=0))
        else:
            np.testing.assert_array_equal(x, y, err_msg=name)


@st.composite
def signs_cases(draw) -> SignsCase:
    tokens, lead = draw(st.sampled_from([2, 5, 9])), draw(st.integers(0, 1))
    return SignsCase.make(
        np.random.default_rng(draw(st.integers(0, 2**32))),
        (draw(st.integers(1, 12)), lead + tokens, draw(st.sampled_from([1, 3, 70]))),
        nonlinearity=draw(st.sampled_from(NONLINEARITIES)),
        layout=draw(st.sampled_from(GATED)),
        dtype=draw(st.sampled_from(DTYPES)),
        tokens=tokens,
        skip=draw(st.integers(0, 1)),
        exemplars=draw(st.integers(1, 4)),
    )


@settings(max_examples=100, deadline=None, derandomize=True)
@given(signs_cases(), st.lists(st.integers(0, 12), max_size=3))
def test_capture_signs_equals_the_reference(case: SignsCase, cuts: list[int]) -> None:
    order = np.arange(len(case.ids))
    fast = case.run(cpu_signs.capture_signs, order, sorted(cuts))
    slow = case.run(reference.capture_signs, order, sorted(cuts))
    assert_same_signs(in_order(fast), in_order(slow))
    # Slot 0 holds the worst, by which the next batch is judged.
    for keys, ids in zip(fast.keys.reshape(-1, case.exemplars),
                         fast.ids.reshape(-1, case.exemplars), strict=True):  # fmt: skip
        assert np.lexsort((-ids.astype(np.int64), keys))[0] == 0


@settings(max_examples=60, deadline=None, derandomize=True)
@given(signs_cases(), st.lists(st.integers(0, 12), max_size=3), st.randoms())
def test_signs_do_not_depend_on_the_order_or_size_of_batches(case, cuts, random) -> None:
    order = list(range(len(case.ids)))
    straight = case.run(kernels.capture_signs, np.array(order), [])
    random.shuffle(order)
    other = case.run(kernels.capture_signs, np.array(order), sorted(cuts))
    assert_same_signs(in_order(straight), in_order(other))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(signs_cases())
def test_signs_are_those_of_the_tokens_of_each_class(case: SignsCase) -> None:
    """Token by token, by the definition."""
    signs = in_order(case.run(kernels.capture_signs, np.arange(len(case.ids)), []))
    neurons, start = case.acts.shape[2], case.pre.up_start
    acts = widen(case.acts)[:, -case.tokens :]
    up = widen(case.pre.up)[:, -case.tokens :, start : start + neurons]
    for neuron in range(min(neurons, 3)):
        of_class: dict[str, list[tuple[float, int]]] = {name: [] for name in CLASSES}
        for position, t in np.ndindex(acts.shape[:2]):
            x, factor = float(acts[position, t, neuron]), float(up[position, t, neuron])
            name = ("+" if x * np.sign(factor) > 0 else "-") + ("+" if factor > 0 else "-")
            if t >= case.skip:
                of_class[name].append((x, int(case.ids[position])))
        for place, name in enumerate(CLASSES):
            values = np.array([x for x, _ in of_class[name]])
            assert signs.tokens[place, neuron] == len(values)
            assert signs.sums[0, place, neuron] == pytest.approx(values.sum(), rel=1e-9, abs=1e-12)
            assert signs.sums[1, place, neuron] == pytest.approx((values**2).sum(), rel=1e-9)
            best: dict[int, float] = {}
            for x, excerpt in of_class[name]:
                best[excerpt] = max(best.get(excerpt, 0), abs(x))
            ranked = sorted((-x, excerpt) for excerpt, x in best.items() if x > 0)
            ranked = ranked[: case.exemplars]
            found = signs.ids[neuron, place]
            assert found[found != NO_ID].tolist() == [excerpt for _, excerpt in ranked]
            for slot, (_, excerpt) in enumerate(ranked):
                position = case.ids.tolist().index(excerpt)
                own = case.acts[position, -case.tokens :, neuron]
                np.testing.assert_array_equal(signs.acts[neuron, place, slot], own)
                above = unpacked(signs.ups[neuron, place, slot], case.tokens)
                assert (above == (up[position, :, neuron] > 0)).all()


@pytest.mark.parametrize("nonlinearity", ["silu", "gelu", "gelu_tanh"])
def test_classes_are_those_of_the_gates_sign_where_the_activation_is_not_zero(nonlinearity) -> None:
    """For functions that keep the sign of their argument."""
    rng = np.random.default_rng(0)
    gate, up = rng.standard_normal((2, 40, 6, 33), dtype=np.float32) * 4
    acts = np.empty_like(gate)
    none = np.zeros(0, np.int32)
    summary = Summary.empty(
        33, 6, acts.dtype, top=1, bottom=0, random_ids=none, table_rows=(0, 0, 0), seed=0
    )
    batch = bare_batch(np.arange(40, dtype=np.int32), 6, 0)
    cpu.capture(acts, batch, summary, Preactivations(nonlinearity, gate, up))
    own = 2 * (gate <= 0) + (up <= 0)
    assert (acts != 0).all()
    np.testing.assert_array_equal(classes_of(acts, up > 0), own)


def test_signs_want_a_factor() -> None:
    signs = Signs.empty(3, 5, np.dtype(np.float32), exemplars=1)
    acts = np.zeros((1, 5, 3), np.float32)
    with pytest.raises(ValueError, match="without a factor"):
        kernels.capture_signs(
            acts, bare_batch(np.zeros(1, np.int32), 5, 0), signs, Preactivations("silu", acts)
        )
