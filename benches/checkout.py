"""Run from a bare checkout: makes `fastexplain` and `fastexplain.kernels` importable, uninstalled.

Importing this module, before Numba, is all it takes. setuptools maps the top-level folder
`kernels/` to `fastexplain.kernels`; where nothing is installed, that is done here.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def _register() -> None:
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    import fastexplain

    folder = ROOT / "kernels"
    spec = importlib.util.spec_from_file_location(
        "fastexplain.kernels", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    if spec.name in sys.modules:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    fastexplain.kernels = module  # type: ignore[attr-defined]


def _find_toolkit() -> None:
    """Tell Numba where CUDA's compiler library is, where no package brings it."""
    toolkit = Path("/usr/local/cuda")
    if not {"CUDA_HOME", "CUDA_PATH"} & set(os.environ) and (toolkit / "nvvm").is_dir():
        os.environ["CUDA_HOME"] = str(toolkit)


_find_toolkit()
_register()
