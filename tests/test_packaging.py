"""What is installed, under which names, and that it runs from there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import fastexplain

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"fastexplain": "fastexplain", "kernels": "fastexplain/kernels"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that no build folder is left in the repository."""
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    source.mkdir()
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "cli.py"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", out, source]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    [built] = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """A fresh environment with the wheel installed, which sees this one's dependencies.

    Of this environment only the folders are added: its own .pth files, by which an editable install
    is found, are not read there.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    install = ["install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", str(wheel)]
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), *install],
        check=True, capture_output=True,
    )  # fmt: skip
    paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    seen = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    Path(paths["purelib"], "dependencies.pth").write_text("\n".join(seen) + "\n")
    return folder


def run(environment: Path, folder: Path, program: str, *arguments: str) -> str:
    """Run a program of the environment in a folder outside the repository; returns its output."""
    settings = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    shown = subprocess.run(
        [str(environment / "bin" / program), *arguments],
        cwd=folder, env=settings, capture_output=True, text=True,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def test_the_wheel_holds_fastexplain_alone(wheel) -> None:
    """No top-level `kernels`, which transformers would take for another's, and no `cli`."""
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"fastexplain"}


def test_the_wheel_holds_every_file(wheel) -> None:
    """Data files too."""
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, package in FOLDERS.items():
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                assert f"{package}/{file.relative_to(ROOT / folder).as_posix()}" in names


def test_the_installed_command_runs(environment, tmp_path) -> None:
    shown = run(environment, tmp_path, "fastexplain", "--version")
    assert shown == f"fastexplain {fastexplain.__version__}\n"
    facts = json.loads(run(environment, tmp_path, "fastexplain", "doctor", "--json"))
    assert facts["fastexplain"] == fastexplain.__version__
    assert facts["torch"] and "kernels on the" in facts["path"]


@pytest.mark.scale
def test_every_installed_module_is_imported_from_there(environment, tmp_path) -> None:
    script = (
        "import importlib, json, pkgutil, fastexplain\n"
        "def stop(name): raise\n"
        "found = list(pkgutil.walk_packages(fastexplain.__path__, 'fastexplain.', stop))\n"
        "modules = [fastexplain, *(importlib.import_module(m.name) for m in found)]\n"
        "files = {module.__name__: module.__file__ for module in modules}\n"
        "print(json.dumps(files))\n"
    )
    files = json.loads(run(environment, tmp_path, "python", "-c", script).splitlines()[-1])
    expected = {
        ".".join((package, *file.relative_to(ROOT / folder).with_suffix("").parts)).replace(
            "/", "."
        )
        for folder, package in FOLDERS.items()
        for file in (ROOT / folder).rglob("*.py")
    }
    assert {name.removesuffix(".__init__") for name in expected} == set(files)
    for name, file in files.items():
        assert Path(file).is_relative_to(environment), name
