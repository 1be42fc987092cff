"""Every CUDA kernel compiled, linked and launched on the stand-in for the driver.

`test_standin.py` runs this in a process of its own, in which the driver has two devices. Launches
do nothing there, so that only the way to them is tested: arguments, shapes, streams, devices.
"""

from __future__ import annotations

import ctypes
import dataclasses
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import cuda
from numba.cuda.cudadrv.driver import driver as numba_driver

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benches"))

import device_checks as checks

from fastexplain import kernels
from fastexplain.kernels import reference
from fastexplain.kernels.signs import Signs
from fastexplain.kernels.summary import HeldOut, LookupTables, moved

MOST_LAUNCHES = 8
"""Of a capture: the fold, sums, bins, two ends' insertions, the random excerpts, the tables."""

CASES = [
    checks.CaptureCase("float32", 6),
    checks.CaptureCase("float16", 8, "gelu_tanh", values="normal"),
    checks.CaptureCase("bfloat16", 8, "silu", "halves", values="normal"),
]


class Launch(ctypes.Structure):
    """`Launch` of fake_libcuda.c."""

    _fields_ = (
        ("kernel", ctypes.c_char * 256),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("device", ctypes.c_int),
        ("stream", ctypes.c_void_p),
    )


driver = ctypes.CDLL("libcuda.so.1")
driver.fake_launch.restype = ctypes.POINTER(Launch)


class Bare:
    """A device array that is not Numba's, as a tensor is: it has the interface, and its shape."""

    def __init__(self, array: Any) -> None:
        self._array = array  # which has the memory
        self.__cuda_array_interface__ = dict(array.__cuda_array_interface__)
        self.shape, self.ndim, self.dtype = array.shape, array.ndim, array.dtype


def signed(array: Any) -> Bare:
    """The same with bfloat16 as int16."""
    bare = Bare(array)
    if array.dtype == np.uint16:
        bare.__cuda_array_interface__["typestr"] = "<i2"
    return bare


def launches_of(call: Callable[[], Any]) -> list[Launch]:
    first = driver.fake_launches()
    call()
    return [driver.fake_launch(number).contents for number in range(first, driver.fake_launches())]


def names(launches: list[Launch]) -> str:
    return " ".join(launch.kernel.decode() for launch in launches)


@pytest.fixture(autouse=True)
def no_device() -> Iterator[None]:
    """Each test begins and ends on no device in particular."""
    yield
    while numba_driver.pop_active_context() is not None:
        pass


def arrays(case: checks.CaptureCase) -> tuple[Any, ...]:
    """What a capture takes, on the current device: activations, batch, summary, pre-activations."""
    rng = np.random.default_rng(0)
    ids = np.arange(case.excerpts, dtype=np.int32)
    summary = checks._empty(case, ids)
    batch = checks._batch(case, rng, ids, summary.random_ids)
    acts, pre = checks._on_device(*checks._inputs(case, rng, case.excerpts))
    return acts, moved(batch, checks.to_device), moved(summary, checks.to_device), pre


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_capture_launches_its_kernels_on_the_stream_it_is_given(case) -> None:
    acts, batch, summary, pre = arrays(case)
    stream = int(cuda.stream().handle)
    assert stream
    found = launches_of(lambda: kernels.capture(acts, batch, summary, pre, stream=stream))
    assert 1 < len(found) <= MOST_LAUNCHES
    assert {launch.stream for launch in found} == {stream}
    assert {launch.device for launch in found} == {0}
    for kernel in ("fold", "add_up", "insert", "copy", "add_to_tables"):
        assert kernel in names(found)
    on_default = launches_of(lambda: kernels.capture(acts, batch, summary, pre))
    assert names(on_default) == names(found)
    assert {launch.stream for launch in on_default} <= {None, 1, 2}  # the handles of the default


def test_sign_classes_are_launched_on_the_stream_they_are_given() -> None:
    acts, batch, _, pre = arrays(CASES[2])
    signs = Signs.empty(CASES[2].neurons, CASES[2].tokens, np.dtype(np.uint16), exemplars=2)
    signs, stream = moved(signs, checks.to_device), int(cuda.stream().handle)
    found = launches_of(lambda: kernels.capture_signs(acts, batch, signs, pre, stream=stream))
    assert len(found) == 3 and {launch.stream for launch in found} == {stream}
    for kernel in ("fold", "add_up", "insert"):
        assert kernel in names(found)
    bare = moved(signs, signed), moved(pre, signed)
    assert len(launches_of(lambda: kernels.capture_signs(signed(acts), batch, *bare))) == 3


def test_arrays_that_are_not_numbas_are_taken_by_their_interface() -> None:
    acts, batch, summary, pre = arrays(CASES[2])
    pre = pre._replace(gate=signed(pre.gate), up=signed(pre.up))
    batch, summary = moved(batch, Bare), moved(summary, signed)
    assert launches_of(lambda: kernels.capture(signed(acts), batch, summary, pre))


@pytest.mark.parametrize(
    ("absent", "kernel"),
    [({"random": 0}, "copy"), ({"rows": (0, 0, 0)}, "add_to_tables"), ({}, "nothing")],
)
def test_what_a_summary_does_not_keep_is_not_launched(absent, kernel) -> None:
    case = dataclasses.replace(CASES[0], bottom=0, **absent)
    acts, batch, summary, _ = arrays(case)
    found = launches_of(lambda: kernels.capture(acts, batch, summary))
    assert found and kernel not in names(found)
    whole = arrays(CASES[0])
    assert len(found) < len(launches_of(lambda: kernels.capture(*whole)))


def test_a_batch_of_no_excerpts_launches_nothing() -> None:
    acts, _, summary, _ = arrays(CASES[0])
    none = checks.to_device(np.zeros((0, *acts.shape[1:]), np.float32))
    ids = np.zeros(0, np.int32)
    random_ids = np.arange(CASES[0].random, dtype=np.int32)
    batch = checks._batch(CASES[0], np.random.default_rng(0), ids, random_ids)
    batch = moved(batch, checks.to_device)
    assert not launches_of(lambda: kernels.capture(none, batch, summary))


@pytest.mark.parametrize("excerpts", [1, 700])
def test_large_shapes_have_possible_launches(excerpts: int) -> None:
    """The stand-in refuses what a device would: more than 65,535 blocks along y, and so on."""
    case = dataclasses.replace(
        CASES[0], neurons=20_000, tokens=2, excerpts=excerpts, rows=(9, 9, 9)
    )
    assert launches_of(lambda: kernels.capture(*arrays(case)))


@pytest.mark.parametrize("neurons", [5, 0])
@pytest.mark.parametrize("dtype", checks.DTYPES)
def test_the_kernels_for_all_neurons_launch(dtype: str, neurons: int) -> None:
    """Also where there is nothing to do."""
    stream = int(cuda.stream().handle)
    case = checks.CaptureCase(dtype, neurons)
    _, _, summary, _ = arrays(case)
    _, _, other, _ = arrays(case)
    acts = checks.to_device(np.zeros((neurons, 3, 7), checks.DTYPES[dtype]))
    scale = checks.to_device(np.ones(neurons, np.float32))
    merged = kernels.merge(summary, other, stream=stream)
    for name in merged._fields:
        mine, theirs = getattr(merged, name), getattr(summary, name)
        assert np.shape(mine) == np.shape(theirs), name
    assert kernels.discretize(acts, scale, stream=stream).shape == (neurons, 3, 7)
    agreement = kernels.correlate(acts, acts, stream=stream)
    assert agreement.correlation.shape == (neurons,) and agreement.by_excerpt.shape == (neurons, 3)
    found = launches_of(lambda: kernels.discretize(signed(acts), scale, stream=stream))
    found += launches_of(lambda: kernels.correlate(signed(acts), signed(acts), stream=stream))
    assert len(found) == (2 if neurons else 0)
    assert {launch.stream for launch in found} <= {stream}


@pytest.mark.parametrize(("neurons", "rows"), [(4, (2, 3, 4)), (4, (0, 0, 0)), (0, (2, 3, 4))])
def test_lookup_launches(neurons: int, rows: tuple[int, int, int]) -> None:
    sums = [np.zeros((count, neurons), np.float32) for count in rows]
    counts = [np.zeros(count, np.int64) for count in rows]
    tables = LookupTables(*sums, *counts, np.zeros(neurons), 5)
    ids, acts = np.zeros((neurons, 3), np.int32), np.zeros((neurons, 3, 7), np.float32)
    places = np.full((6, 7), -1, np.int32)
    held_out = HeldOut(ids, acts, places, places, places, 1)
    here = moved(tables, checks.to_device), moved(held_out, checks.to_device)
    found = launches_of(lambda: kernels.lookup(*here))
    assert len(found) == (1 if neurons else 0)
    assert kernels.lookup(*here).shape == reference.lookup(tables, held_out).shape


def test_each_device_has_its_own_scratch_and_launches() -> None:
    case = dataclasses.replace(CASES[0], excerpts=11)  # which no other test has scratch for
    for device in (1, 0):
        with cuda.gpus[device]:
            given = arrays(case)
            before = [driver.fake_allocations(each) for each in (0, 1)]
            found = launches_of(lambda given=given: kernels.capture(*given))
            grown = [driver.fake_allocations(each) - before[each] for each in (0, 1)]
            assert {launch.device for launch in found} == {device}
            assert grown[device] > 0 and grown[1 - device] == 0
            again = [driver.fake_allocations(each) for each in (0, 1)]
            kernels.capture(*given)
            assert again == [driver.fake_allocations(each) for each in (0, 1)]


def test_a_context_that_somebody_else_made_current_is_used() -> None:
    """PyTorch sets a thread's device in the driver, where Numba finds it at its next call."""
    from cuda.bindings import driver as bindings

    bindings.cuInit(0)
    for device in (1, 0, 1):
        error, context = bindings.cuDevicePrimaryCtxRetain(device)
        assert not int(error)
        bindings.cuCtxSetCurrent(context)
        found = launches_of(lambda: kernels.capture(*arrays(CASES[0])))
        assert {launch.device for launch in found} == {device}
    bindings.cuCtxSetCurrent(bindings.CUcontext(0))


def test_two_threads_may_have_a_device_each() -> None:
    """Numba keeps its context by thread; both share the compiled kernels."""
    started, failures = threading.Barrier(2), []

    def sweep(device: int) -> None:
        try:
            with cuda.gpus[device]:
                given = arrays(CASES[0])
                stream = int(cuda.stream().handle)
                started.wait(timeout=60)
                for _ in range(20):
                    assert cuda.get_current_device().id == device
                    kernels.capture(*given, stream=stream)
            streams[device] = stream
        except BaseException as error:
            failures.append(error)

    streams: dict[int, int] = {}

    def both() -> None:
        threads = [threading.Thread(target=sweep, args=(device,)) for device in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    found = launches_of(both)
    assert not failures
    for device in (0, 1):
        assert {launch.device for launch in found if launch.stream == streams[device]} == {device}
