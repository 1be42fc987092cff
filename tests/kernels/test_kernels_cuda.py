"""The CUDA kernels without a GPU: in Numba's simulator, and compiled for three generations."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

HERE = Path(__file__).parent
# Compute capabilities: A100, H100 and H200, B200.
TARGETS = [(8, 0), (9, 0), (10, 0)]


@pytest.mark.scale
@pytest.mark.parametrize("module", ["cudasim_kernels.py", "cudasim_neurons.py", "cudasim_signs.py"])
def test_kernels_equal_the_reference_in_the_simulator(module: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    finished = subprocess.run(
        [*command, str(HERE / module)],
        env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_only_device_arrays_go_to_the_device(monkeypatch) -> None:
    from fastexplain import kernels
    from fastexplain.kernels.cpu import capture as cpu
    from fastexplain.kernels.cuda import capture as cuda

    seen = []
    monkeypatch.setattr(cuda, "capture", lambda *_, **stream: seen.append("cuda"))
    monkeypatch.setattr(cpu, "capture", lambda *_: seen.append("cpu"))
    acts, batch, summary = capture_arrays("float32", 8)
    kernels.capture(as_if_on_device(acts), batch, summary)
    kernels.capture(acts, batch, summary)
    assert seen == ["cuda", "cpu"]


@pytest.mark.parametrize("device", [True, False])
def test_neurons_are_worked_on_where_their_arrays_live(device: bool, monkeypatch) -> None:
    from fastexplain import kernels
    from fastexplain.kernels.cpu import neurons as cpu_neurons
    from fastexplain.kernels.cuda import neurons as cuda_neurons

    seen = []
    for module in (cpu_neurons, cuda_neurons):
        for name in ("merge", "discretize", "correlate", "lookup"):
            monkeypatch.setattr(
                module,
                name,
                lambda *_, n=name, m=module, **stream: seen.append((m, n, stream)),
            )
    acts, summary, tables, held_out = neuron_arrays("float32")
    if device:
        summary = summary._replace(top_keys=as_if_on_device(summary.top_keys))
        held_out = held_out._replace(activations=as_if_on_device(held_out.activations))
        acts = as_if_on_device(acts)
    kernels.merge(summary, summary, stream=1)
    kernels.discretize(acts, np.zeros(4, np.float32), stream=2)
    kernels.correlate(acts, acts, stream=3)
    kernels.lookup(tables, held_out, stream=4)
    names = ("merge", "discretize", "correlate", "lookup")
    assert seen == [
        (cuda_neurons if device else cpu_neurons, name, {"stream": stream} if device else {})
        for stream, name in enumerate(names, start=1)
    ]


def as_if_on_device(array: np.ndarray) -> SimpleNamespace:
    return SimpleNamespace(__cuda_array_interface__={}, shape=array.shape, dtype=array.dtype)


def neuron_arrays(dtype: str) -> tuple:
    """Activations, a summary, tables and what to hold out, of 4 neurons with 10 excerpts of 64."""
    from fastexplain.kernels.summary import HeldOut, LookupTables, Summary

    acts, rows = np.zeros((4, 10, 64), dtype), np.zeros((6, 64), np.int32)
    summary = Summary.empty(
        4, 64, acts.dtype, top=20, bottom=20, random_ids=np.arange(3, dtype=np.int32),
        table_rows=(2, 3, 4), seed=1,
    )  # fmt: skip
    counts = (np.zeros(count, np.int64) for count in (2, 3, 4))
    sums = summary.token_sums, summary.pair_sums, summary.triple_sums
    tables = LookupTables(*sums, *counts, np.zeros(4), 5)
    ids, known = np.zeros((4, 10), np.int32), np.zeros((4, 10, 64), np.float32)
    return acts, summary, tables, HeldOut(ids, known, rows, rows, rows, 1)


def neuron_launches(dtype: str, monkeypatch) -> list[tuple]:
    """Kernels and arguments of all that works on neurons, with NumPy arrays for the device's."""
    from fastexplain.kernels.cuda import merge as merging
    from fastexplain.kernels.cuda import neurons as kernels

    found = []

    class Recorded:
        def __init__(self, stream: int) -> None:
            self.empty = np.empty

        def run(self, kernel, blocks, threads, *arguments) -> None:
            found.append((kernel, arguments))

    for module in (kernels, merging):
        monkeypatch.setattr(module, "Queue", Recorded)
        monkeypatch.setattr(module, "view", lambda array: array)
    acts, summary, tables, held_out = neuron_arrays(dtype)
    kernels.merge(summary, summary)
    kernels.discretize(acts, np.zeros(4, np.float32))
    kernels.correlate(acts, held_out.activations)
    kernels.lookup(tables, held_out)
    return found


def capture_arrays(dtype: str, neurons: int, top: int = 20) -> tuple:
    """Activations of 64 tokens after a BOS, their batch, and a summary."""
    from fastexplain.kernels.summary import Batch, Summary

    rows, ids = np.zeros((3, 64), np.int32), np.arange(3, dtype=np.int32)
    summary = Summary.empty(
        neurons,
        64,
        np.dtype(dtype),
        top=top,
        bottom=20,
        random_ids=ids,
        table_rows=(2, 2, 2),
        seed=1,
    )
    batch = Batch.make(ids, rows, rows, rows, skip=1, random_ids=ids, table_rows=(2, 2, 2))
    return np.zeros((3, 65, neurons), dtype), batch, summary


def launches(
    dtype: str, neurons: int, target: tuple[int, int], fused: tuple[str, bool] | None
) -> list[tuple]:
    """The launches of a capture of 64 tokens after a BOS, with NumPy arrays for the device's.

    `fused` is the nonlinearity and whether there is a factor.
    """
    from fastexplain.kernels.cuda import capture as kernels
    from fastexplain.kernels.cuda.words import lanes_of
    from fastexplain.kernels.summary import Preactivations

    acts, batch, summary = capture_arrays(dtype, neurons)
    pre = None
    if fused is not None:
        pre = Preactivations(fused[0], acts, np.zeros_like(acts) if fused[1] else None)

    def scratch(*shape):
        return kernels._Scratch.make(np.empty, *shape)

    lanes = lanes_of(neurons, [acts], kernels._WORD_BYTES)
    return list(kernels._launches(acts, batch, summary, pre, lanes, target, scratch))


def test_more_exemplars_than_a_device_can_keep_are_refused() -> None:
    from fastexplain.kernels.cuda import capture as kernels

    acts, batch, summary = capture_arrays("float32", 8, top=2049)
    with pytest.raises(ValueError, match="2048 exemplars a neuron"):
        next(kernels._launches(acts, batch, summary, None, 1, (9, 0), np.empty))


def assembled(
    launched: list[tuple], target: tuple[int, int], monkeypatch
) -> Iterator[tuple[str, str]]:
    """Names and assembly of kernels, for the types of their arguments."""
    import numba
    from numba import cuda
    from numba.cuda import dispatcher

    # Device functions are compiled for the device at hand, kernels for the target that is named.
    monkeypatch.setattr(
        dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=target)
    )
    for kernel, arguments in launched:
        types = tuple(numba.typeof(argument) for argument in arguments)
        yield kernel.py_func.__name__, cuda.compile_ptx(kernel.py_func, types, cc=target)[0]


@pytest.fixture(scope="module")
def compiler() -> None:
    """What Numba compiles with; the extras `cu12` and `cu13` of numba-cuda bring it."""
    pytest.importorskip("numba_cuda", reason="needs numba-cuda")
    from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib

    for library in ("nvvm", "nvrtc"):
        try:
            load_nvidia_dynamic_lib(library)
        except DynamicLibNotFoundError:
            pytest.skip(f"needs the library {library}: numba-cuda[cu13] or a CUDA toolkit")


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("dtype", "neurons", "fused", "target"),
    [
        ("uint16", 8, None, (9, 0)),
        ("uint16", 8, ("gelu_tanh", False), (8, 0)),
        *(pytest.param(*case, marks=pytest.mark.scale) for case in (
            ("uint16", 8, None, (8, 0)),
            ("uint16", 8, None, (10, 0)),
            ("uint16", 8, ("gelu_tanh", False), (9, 0)),
            ("uint16", 8, ("gelu_tanh", False), (10, 0)),
            ("uint16", 8, ("silu", True), (9, 0)),
            ("uint16", 3, None, (9, 0)),
            ("float16", 8, ("gelu", False), (9, 0)),
        )),
        ("float32", 8, ("silu", True), (9, 0)),
    ],
)  # fmt: skip
def test_a_captures_kernels_compile(
    dtype: str, neurons: int, fused: tuple[str, bool] | None, target: tuple[int, int], monkeypatch
) -> None:
    launched = [(each[0], each[3]) for each in launches(dtype, neurons, target, fused)]
    assert_compiled_for(target, list(assembled(launched, target, monkeypatch)))


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("dtype", "neurons", "target"),
    [
        ("uint16", 8, (9, 0)),
        *(pytest.param(*case, marks=pytest.mark.scale) for case in (
            ("uint16", 8, (8, 0)), ("uint16", 8, (10, 0)), ("uint16", 3, (9, 0)),
            ("float16", 8, (9, 0)), ("float32", 8, (9, 0)),
        )),
    ],
)  # fmt: skip
def test_the_kernels_of_sign_classes_compile(
    dtype: str, neurons: int, target: tuple[int, int], monkeypatch
) -> None:
    from fastexplain.kernels.cuda import signs as kernels
    from fastexplain.kernels.signs import Signs

    def scratch(*shape):
        return kernels._Scratch.make(np.empty, *shape)

    acts, batch, _ = capture_arrays(dtype, neurons)
    signs = Signs.empty(neurons, 64, acts.dtype, exemplars=5)
    found = kernels._launches(acts, batch, signs, np.zeros_like(acts), 0, scratch)
    launched = [(each[0], each[3]) for each in found]
    assert_compiled_for(target, list(assembled(launched, target, monkeypatch)))


def test_more_exemplars_of_a_class_than_a_device_can_keep_are_refused() -> None:
    from fastexplain.kernels.cuda import signs as kernels
    from fastexplain.kernels.signs import Signs

    acts, batch, _ = capture_arrays("float32", 8)
    signs = Signs.empty(8, 64, acts.dtype, exemplars=2049)
    with pytest.raises(ValueError, match="2048 exemplars at most"):
        next(kernels._launches(acts, batch, signs, acts, 0, np.empty))


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("dtype", "target"),
    [*(("uint16", target) for target in TARGETS), ("float32", (9, 0)), ("float16", (9, 0))],
)
def test_the_kernels_for_all_neurons_compile(
    dtype: str, target: tuple[int, int], monkeypatch
) -> None:
    found = assembled(neuron_launches(dtype, monkeypatch), target, monkeypatch)
    assert_compiled_for(target, list(found))


def assert_compiled_for(target: tuple[int, int], assembly: list[tuple[str, str]]) -> None:
    assert assembly
    for name, ptx in assembly:
        assert f".target sm_{target[0]}{target[1]}" in ptx and ".entry" in ptx, name
