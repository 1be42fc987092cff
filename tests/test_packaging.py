"""What is installed, and under which names."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_wheel_holds_fastexplain_alone(tmp_path: Path) -> None:
    """No top-level `kernels`, which transformers would take for another's, and no `cli`."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("fastexplain", "kernels"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "cli.py"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, source]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"fastexplain"}
    for folder, package in (("fastexplain", "fastexplain"), ("kernels", "fastexplain/kernels")):
        for module in (ROOT / folder).rglob("*.py"):
            assert f"{package}/{module.relative_to(ROOT / folder)}" in names
    assert "fastexplain/ledger/prices.toml" in names
