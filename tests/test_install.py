"""What is shown while `make` installs: pip's progress in one line, and none of its warnings."""

from __future__ import annotations

import importlib.util
import os
import pty
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / ".ci" / "install.py"


@pytest.fixture(scope="module")
def installer():
    spec = importlib.util.spec_from_file_location("installer", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A package of one module, made by hand."""
    path = tmp_path_factory.mktemp("wheel") / "tiny-1.2-py3-none-any.whl"
    info = "tiny-1.2.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tiny.py", "")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.2\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", f"tiny.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n")
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(SCRIPT), "Tiny", "--no-index", *map(str, arguments)]


def test_a_file_gets_plain_lines_without_pips_warnings(wheel, tmp_path) -> None:
    target = ["--target", tmp_path / "there", wheel]
    first, again = (
        subprocess.run(command(*target), capture_output=True, text=True) for _ in range(2)
    )
    assert first.returncode == again.returncode == 0 and (tmp_path / "there/tiny.py").exists()
    *lines, last = first.stderr.splitlines()
    assert lines == ["Tiny: starting", "Tiny: unpacking 1 package"]
    assert last.startswith("Tiny: installed 1 package, ") and last.endswith(" s")
    pip = [sys.executable, "-m", "pip", "install", "--no-index", *map(str, target)]
    assert "WARNING: Target directory" in subprocess.run(pip, capture_output=True, text=True).stderr
    assert "WARNING" not in again.stderr and again.stdout == ""


def test_a_terminal_gets_one_line_that_changes(wheel, tmp_path) -> None:
    ours, theirs = pty.openpty()
    child = subprocess.Popen(command("--target", tmp_path / "there", wheel), stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # how Linux says that the other side is closed
        pass
    os.close(ours)
    assert child.wait() == 0
    *drawn, last = shown.decode().split("\r\x1b[K")
    assert any(line.startswith("Tiny: tiny 1.2, ") for line in drawn)
    assert all("\n" not in line for line in drawn)
    assert last.startswith("Tiny: installed 1 package, ") and last.count("\n") == 1


def test_where_pip_fails_all_that_it_printed_is_shown(tmp_path) -> None:
    shown = subprocess.run(command("missing-package"), capture_output=True, text=True)
    assert shown.returncode == 1
    assert "No matching distribution found for missing-package" in shown.stderr
    assert shown.stderr.splitlines()[-1] == "Tiny: pip failed, for the reason above"


def test_the_line_says_what_pip_does(installer) -> None:
    """From pip 26.3's output with --progress-bar raw."""
    activity = installer.Activity()
    lines = {
        "Looking in indexes: https://index.example/simple\n": "starting",
        "Collecting pandas\n": "looking up pandas",
        "  Downloading pandas-3.1.1-cp311-cp311-any.whl (12.4 MB)\n": "pandas 3.1.1",
        "Progress 6000000 of 12000000\n": "pandas 3.1.1 [########        ] 6.0 of 12.0 MB",
        "Collecting python-dateutil>=2.9.0 (from pandas)\n": "looking up python-dateutil>=2.9.0",
        "  Using cached tzdata-2026.6-py2.py3-none-any.whl (348 kB)\n": "tzdata 2026.6",
        "Processing /a-b/numpy-2.4.6-cp311-cp311-any.whl (from pandas)\n": "numpy 2.4.6",
        "WARNING: Location 'x' is ignored\n": "numpy 2.4.6",
        "Installing collected packages: tzdata, numpy\n": "unpacking 2 packages",
        "Successfully installed numpy-2.4.6 tzdata-2026.6\n": "unpacking 2 packages",
    }
    for line, expected in lines.items():
        activity.read(line)
        assert activity.line() == expected
    assert activity.installed == 2


def test_without_a_terminal_a_large_download_gets_one_line(installer, capsys) -> None:
    show = installer._Plain("PyTorch")
    for done in (0, 50_000_000, 99_000_000):
        show(f"PyTorch: torch 2.13.0 [#] {done}", 1.0, 99_000_000)
    show("PyTorch: idna 3.20 [#] 1", 1.0, 1000)
    show("PyTorch: unpacking 2 packages", 2.0, 0)
    assert capsys.readouterr().err.splitlines() == [
        "PyTorch: starting",
        "PyTorch: torch 2.13.0 (99.0 MB)",
        "PyTorch: unpacking 2 packages",
    ]
