"""Whether the kernels can run on a GPU, each way in which they can't, and who says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from fastexplain.cli import doctor
from fastexplain.models import gpu
from fastexplain.sweeping import summaries as exemplars

HOPPER = (9, 0)


def reason(*before: str, **environment: str) -> str | None:
    """What a process of its own finds, after some lines of code."""
    lines = [
        *before,
        "import sys, json",
        "from fastexplain.models.gpu import why_no_kernels",
        "assert 'torch' not in sys.modules and 'numba' not in sys.modules",
        f"print(json.dumps(why_no_kernels({HOPPER})))",
    ]
    finished = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120,
        env=os.environ | environment,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def without(library: str) -> list[str]:
    """Code that lets a library of CUDA be missing."""
    return [
        "import cuda.pathfinder as finder",
        "load = finder.load_nvidia_dynamic_lib",
        "def fake(name):",
        f"    if name == {library!r}:",
        "        raise finder.DynamicLibNotFoundError('no ' + name + ' here\\nand no more')",
        "    return load(name)",
        "finder.load_nvidia_dynamic_lib = fake",
    ]


@pytest.fixture(scope="module")
def compiler() -> None:
    pytest.importorskip("numba_cuda", reason="needs numba-cuda")
    if (found := reason()) is not None:
        pytest.skip(f"needs what compiles and links kernels: {found}")


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("library", ["nvvm", "nvJitLink"])
def test_a_missing_library_is_named(library: str) -> None:
    found = reason(*without(library))
    assert found is not None and "a library of CUDA is missing" in found
    assert library in found and "\n" not in found


@pytest.mark.usefixtures("compiler")
def test_an_nvvm_newer_than_nvjitlink_is_found() -> None:
    found = reason(
        "import cuda.core",
        "class Outdated:",
        "    def __init__(self, *code, options): pass",
        "    def link(self, kind): raise RuntimeError('ERROR_OUTDATED_LIBRARY (14)\\nmore')",
        "cuda.core.Linker = Outdated",
    )
    assert found is not None and found.startswith("NVVM is newer than nvJitLink")


@pytest.mark.usefixtures("compiler")
def test_a_gpu_too_old_for_the_compiler_is_named() -> None:
    assert "compute capability (3, 0)" in str(gpu.why_no_kernels((3, 0)))


def test_no_numba_cuda() -> None:
    hidden = "lambda name, *more: None if name == 'numba_cuda' else find(name, *more)"
    code = ["import importlib.util as util", "find = util.find_spec", f"util.find_spec = {hidden}"]
    assert reason(*code) == "numba-cuda is not installed"


def test_a_numba_cuda_that_does_not_import(tmp_path: Path) -> None:
    for folder in ("numba_cuda", "numba_cuda/numba", "numba_cuda/numba/cuda"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    code = "raise ImportError('cannot import name X\\nfrom Y')\n"
    (tmp_path / "numba_cuda/numba/cuda/__init__.py").write_text(code)
    information = tmp_path / "numba_cuda-0.30.3.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: numba-cuda\nVersion: 0.30.3\n"
    )
    # numba-cuda takes the place of Numba's own package by such a hook.
    hook = ["import sys, importlib.util as u, importlib.abc",
            "class Hook(importlib.abc.MetaPathFinder):",
            "    def find_spec(self, name, path, target=None):",
            "        if name == 'numba.cuda':",
            f"            place = {str(tmp_path / 'numba_cuda/numba/cuda/__init__.py')!r}",
            "            return u.spec_from_file_location(name, place)",
            "sys.meta_path.insert(0, Hook())"]  # fmt: skip
    found = reason(*hook, PYTHONPATH=str(tmp_path))
    assert found == (
        "numba-cuda does not import (numba-cuda 0.30.3): ImportError: cannot import name X"
    )


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU whose kernels can't be made."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: HOPPER)
    for module in (gpu, exemplars):
        monkeypatch.setattr(module, "why_no_kernels", lambda capability: f"not for {capability}")


@pytest.mark.usefixtures("broken")
def test_the_kernels_fall_back_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 1)
    with pytest.warns(UserWarning, match=r"kernels run on the CPU.*not for \(9, 0\)"):
        assert exemplars.kernel_device(device).type == "cpu"
    monkeypatch.setattr(exemplars, "why_no_kernels", lambda capability: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert exemplars.kernel_device(device) == device
        assert exemplars.kernel_device(torch.device("cpu")).type == "cpu"


@pytest.mark.usefixtures("broken")
def test_doctor_says_why_and_what_to_do() -> None:
    facts = doctor.examine()
    assert facts["reason"] == "not for (9, 0)" and "kernels on the CPU" in facts["path"]
    assert any("pip install 'fastexplain[cuda13]'" in line for line in facts["advice"])
