"""Whether the kernels can run on a GPU here, found by compiling and linking one that does nothing.

Versions are not compared: Numba may find NVVM in a package, in a toolkit or by CUDA_HOME, and
PyTorch has often loaded another nvJitLink than the one installed beside it. Linking tells.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util

_OUTDATED = "ERROR_OUTDATED_LIBRARY"
"""What nvJitLink says of code by an NVVM that is newer than itself."""


@functools.cache
def why_no_kernels(capability: tuple[int, int]) -> str | None:
    """Why the kernels can't run on GPUs of a compute capability, in one line; None if they can.

    It takes half a second once, most of which is the import of `numba.cuda`. No context is made.
    """
    if importlib.util.find_spec("numba_cuda") is None:
        return "numba-cuda is not installed"
    try:
        from cuda.core import Linker, LinkerOptions, ObjectCode
        from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib
        from numba import cuda
    except Exception as error:  # whatever a version that doesn't fit the others stumbles over
        return f"numba-cuda does not import{_versions('numba-cuda')}: {_first_line(error)}"
    try:
        load_nvidia_dynamic_lib("nvJitLink")  # the linker would go without, but not link this code
        code, _ = cuda.compile(
            _nothing, (), cc=capability, output="ltoir", device=False, abi="numba"
        )
        options = LinkerOptions(arch="sm_{}{}".format(*capability), link_time_optimization=True)
        Linker(ObjectCode.from_ltoir(code), options=options).link("cubin")
    except DynamicLibNotFoundError as error:
        return f"a library of CUDA is missing: {_first_line(error)}"
    except Exception as error:
        if _OUTDATED in str(error):
            return f"NVVM is newer than nvJitLink{_versions('nvidia-nvvm', 'nvidia-nvjitlink')}"
        return f"kernels don't compile for compute capability {capability}: {_first_line(error)}"
    return None


def _nothing() -> None:
    """The kernel that is compiled."""


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _versions(*names: str) -> str:
    """Those of the packages, which need not be what is loaded: a hint."""
    found = []
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return f" ({', '.join(found)})" if found else ""
