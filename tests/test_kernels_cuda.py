"""The CUDA kernels without a GPU: in Numba's simulator, and compiled for three generations."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

HERE = Path(__file__).parent
DTYPES = ("float32", "float16", "uint16")
# Compute capabilities: A100, H100 and H200, B200.
TARGETS = [(8, 0), (9, 0), (10, 0)]


def test_capture_equals_the_reference_in_the_simulator() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    finished = subprocess.run(
        [*command, str(HERE / "cudasim_kernels.py")],
        env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_only_device_arrays_go_to_the_device(monkeypatch) -> None:
    from fastexplain import kernels
    from fastexplain.kernels import cpu, cuda

    seen = []
    monkeypatch.setattr(cuda, "capture", lambda *_: seen.append("cuda"))
    monkeypatch.setattr(cpu, "capture", lambda *_: seen.append("cpu"))
    kernels.capture(SimpleNamespace(__cuda_array_interface__={}), None, None)
    kernels.capture(np.zeros((1, 1, 1), np.float32), None, None)
    assert seen == ["cuda", "cpu"]


def launches(dtype: str, neurons: int) -> list[tuple]:
    """The launches of a capture of 64 tokens after a BOS, with NumPy arrays for the device's."""
    from fastexplain.kernels import cuda as kernels
    from fastexplain.kernels.summary import Batch, Summary

    rows = np.zeros((3, 64), np.int32)
    ids = np.arange(3, dtype=np.int32)
    summary = Summary.empty(
        neurons, 64, np.dtype(dtype), top=20, bottom=20, random_ids=ids, table_rows=(2, 2), seed=1
    )
    batch = Batch.make(ids, rows, rows, skip=1, random_ids=ids)
    acts = np.zeros((3, 65, neurons), dtype)
    lanes = kernels._lanes(acts, summary.random_acts)
    return list(
        kernels._launches(
            acts, batch, summary, lanes, lambda *shape: kernels._Scratch.make(np.empty, *shape)
        )
    )


def ptx_of(dtype: str, neurons: int, target: tuple[int, int], monkeypatch) -> dict[str, str]:
    """The assembly of a capture's kernels, by name, for the types that they are launched with."""
    import numba
    from numba import cuda
    from numba.cuda import dispatcher

    # Device functions are compiled for the device at hand, kernels for the target that is named.
    monkeypatch.setattr(
        dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=target)
    )
    return {
        kernel.py_func.__name__: cuda.compile_ptx(
            kernel.py_func, tuple(numba.typeof(argument) for argument in arguments), cc=target
        )[0]
        for kernel, _, _, arguments in launches(dtype, neurons)
    }


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
    ("dtype", "neurons", "bits", "target"),
    [
        *((dtype, 8, 64, target) for dtype in DTYPES for target in TARGETS),
        ("uint16", 3, 16, (9, 0)),
    ],
)
def test_kernels_compile_to_ptx(
    dtype: str, neurons: int, bits: int, target: tuple[int, int], monkeypatch
) -> None:
    assembly = ptx_of(dtype, neurons, target, monkeypatch)
    assert set(assembly) == {"fold", "_add_up", "_insert", "_copy", "add_to_tables"}
    for name, ptx in assembly.items():
        assert f".target sm_{target[0]}{target[1]}" in ptx, name
        # Everything inlined, all arrays of a thread in registers, subnormals kept.
        assert not re.search(r"\bcall\b|\.local\b|\.ftz\b", ptx), name
        assert not re.search(r"\b(atom|red)\.\S*\.f(16|32|64)\b", ptx), name
    for name in ("fold", "_copy", "add_to_tables"):
        assert re.search(rf"ld\.global\.[ub]{bits}\b", assembly[name]), name
    # float64 for the sums only, which are `fold`'s and `_add_up`'s.
    for name in ("_insert", "_copy", "add_to_tables"):
        assert ".f64" not in assembly[name], name
