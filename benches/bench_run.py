"""What a user waits for before anything happens: the command's help, a run, one neuron."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import fastexplain
from fastexplain import Corpus, Subject

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def run(subject: Subject, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole model over few excerpts: a neuron's record is as large as after many."""
    out = tmp_path_factory.mktemp("bench") / "run"
    few = Corpus.from_excerpts(corpus.tokens[:64])
    return fastexplain.sweep(subject, few, out).path


def test_help(benchmark) -> None:
    """`fastexplain --help`, as a whole process; 0.4 s is the bar."""
    command = [sys.executable, str(ROOT / "cli.py"), "--help"]
    benchmark.pedantic(
        lambda: subprocess.run(command, check=True, capture_output=True), rounds=5, warmup_rounds=1
    )


def test_open_a_run_and_read_a_neuron(benchmark, run: Path) -> None:
    """50 ms is the bar."""
    benchmark.pedantic(
        lambda: fastexplain.open_run(run).neuron("17:131"), rounds=20, warmup_rounds=1
    )
