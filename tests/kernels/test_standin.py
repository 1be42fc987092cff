"""The CUDA host path without a GPU, on a stand-in for the driver that gcc builds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stand-in under the driver's names."""
    pytest.importorskip("numba_cuda", reason="needs numba-cuda")
    from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib

    for library in ("nvvm", "nvrtc", "nvJitLink"):
        try:
            load_nvidia_dynamic_lib(library)
        except DynamicLibNotFoundError:
            pytest.skip(f"needs the library {library}: pip install 'fastexplain[dev]'")
    if (compiler := shutil.which("gcc") or shutil.which("cc")) is None:
        pytest.skip("needs gcc, to build the stand-in for the CUDA driver")
    folder = tmp_path_factory.mktemp("driver")
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", folder / "libcuda.so.1"]
    subprocess.run([*command, HERE / "fake_libcuda.c"], check=True)
    (folder / "libcuda.so").symlink_to("libcuda.so.1")
    return folder


def python(standin: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python with the stand-in for the driver, which then has two devices."""
    # The loader asks this variable first, before where a real driver would be.
    environment = {"LD_LIBRARY_PATH": str(standin), "FAKE_CUDA_DEVICES": "2"}
    return subprocess.run(
        [sys.executable, *arguments], env=os.environ | environment, cwd=HERE.parents[1],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def passes(standin: Path, module: str) -> None:
    command = ["-m", "pytest", "-q", "-n", "0", "--noconftest", "-p", "no:cacheprovider"]
    finished = python(standin, *command, HERE / module)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "skipped" not in finished.stdout


@pytest.mark.scale
def test_kernels_launch_on_the_standin(standin: Path) -> None:
    passes(standin, "standin_kernels.py")


@pytest.mark.scale
def test_all_checks_reach_their_comparison_on_the_standin(standin: Path) -> None:
    passes(standin, "standin_checks.py")


def test_an_entry_point_that_the_standin_lacks_is_named(standin: Path) -> None:
    code = "from cuda.bindings import driver\nprint(int(driver.cuMemPoolTrimTo(None, 0)[0]))\n"
    finished = python(standin, "-c", code)
    assert "801" in finished.stdout and "there is no cuMemPoolTrimTo" in finished.stderr


CAPTURE = """
import sys
sys.path[:0] = ["benches", "tests/kernels"]
import standin_kernels as standin
from fastexplain.kernels.cuda import capture as cuda
standin.kernels.capture(*standin.arrays(standin.CASES[2]))
kept = [cuda.add_up, cuda.copy, cuda.insert_kernel(3, 32), cuda.insert_kernel(2, 32)]
kept += [cuda.bins_kernel(64, 256, 256), cuda.tables_kernel("uint16", 4, 7, (32, 8), 16)]
print([(k.stats.cache_hits.total(), k.stats.cache_misses.total()) for k in kept])
"""


@pytest.mark.scale
def test_all_kernels_of_a_capture_but_the_fold_are_compiled_once_for_all_processes(
    standin: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    first, second = (python(standin, "-c", CAPTURE) for _ in range(2))
    compiled = eval(first.stdout)
    assert all(misses and not hits for hits, misses in compiled)
    assert eval(second.stdout) == [(misses, hits) for hits, misses in compiled]
    # Files are named by module and function; most kernels that follow the fold are in `after_fold`.
    kept = [path.name.removeprefix("after_fold.") for path in tmp_path.rglob("*.nb?")]
    assert kept and not [name for name in kept if "fold" in name]
