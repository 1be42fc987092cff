"""Kernels compiled ahead of a sweep."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
import torch
from numba import njit

import fastexplain
from fastexplain import Corpus, Subject
from fastexplain.kernels.cpu import ahead, signs
from fastexplain.kernels.cpu import capture as cpu
from fastexplain.sweeping import warmup


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels of a sweep as a new process has them."""
    again = njit(parallel=True, nogil=True)(cpu._add_to_tables.py_func)
    monkeypatch.setattr(cpu, "_add_to_tables", again)
    cpu._fold_by.cache_clear()


def compiled() -> dict[str, list]:
    """The signatures that the kernels of a sweep are compiled for."""
    assert cpu._fold_by.cache_info().currsize == 1
    functions = {"tables": cpu._add_to_tables, "silu": cpu._fold_by("silu")}
    return {name: list(function.signatures) for name, function in functions.items()}


@pytest.mark.usefixtures("uncompiled")
def test_nothing_is_left_for_the_sweep_to_compile(tiny_subject: Subject, tmp_path) -> None:
    ahead.compile_kernels(**warmup.needs(tiny_subject, tables=True, signs=False))
    before = compiled()
    assert all(len(signatures) == 1 for signatures in before.values())
    tokens = np.random.default_rng(0).integers(1, 257, (8, 64))
    fastexplain.sweep(tiny_subject, Corpus.from_excerpts(tokens), tmp_path / "run")
    assert compiled() == before


def test_nothing_is_left_of_sign_classes_either(
    tiny_subject: Subject, tmp_path, monkeypatch
) -> None:
    again = njit(parallel=True, nogil=True)(signs._fold.py_func)
    monkeypatch.setattr(signs, "_fold", again)
    ahead.compile_kernels(**warmup.needs(tiny_subject, tables=True, signs=True))
    before = list(again.signatures)
    assert len(before) == 1
    tokens = np.random.default_rng(0).integers(1, 257, (8, 64))
    fastexplain.sweep(tiny_subject, Corpus.from_excerpts(tokens), tmp_path / "run", signs=True)
    assert list(again.signatures) == before


@pytest.mark.usefixtures("uncompiled")
def test_only_what_is_needed_is_compiled() -> None:
    ahead.compile_kernels(dtype="uint16", nonlinearities=["silu"], tables=False, signs=False)
    found = compiled()
    assert len(found.pop("silu")) == 1 and not any(found.values())


def test_needs_follow_the_subject(make_model, make_tokenizer) -> None:
    model = make_model(hidden_act="gelu").to(torch.bfloat16)
    subject = Subject.from_model(model, make_tokenizer(), name="tiny")
    assert warmup.needs(subject, tables=False, signs=False) == {
        "dtype": "uint16",
        "nonlinearities": ["gelu"],
        "tables": False,
        "signs": False,
    }


@pytest.mark.usefixtures("uncompiled")
def test_variants_keep_their_places_in_numbas_cache() -> None:
    def compile_two() -> list[int]:
        cpu._fold_by.cache_clear()
        ahead.compile_kernels(
            dtype="float32", nonlinearities=["relu", None], tables=False, signs=False
        )
        return [cpu._fold_by(name).stats.cache_hits.total() for name in ("relu", None)]

    compile_two()
    assert compile_two() == [1, 1]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen]:
    """The processes that are started."""
    processes = []
    real = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *a, **k: processes.append(real(*a, **k)) or processes[-1]
    )
    return processes


def test_it_is_done_when_its_block_ends(tiny_subject: Subject, started: list) -> None:
    with warmup.compiled_beside(tiny_subject, tables=True, signs=False):
        pass
    assert [process.returncode for process in started] == [0]


@pytest.mark.parametrize(
    ("name", "value"), [("_MODULE", "fastexplain.missing"), ("sys.executable", "/-")]
)
def test_its_failure_is_harmless(
    name: str, value: str, tiny_subject: Subject, started: list, monkeypatch, capfd
) -> None:
    monkeypatch.setattr(f"fastexplain.sweeping.warmup.{name}", value)
    with warmup.compiled_beside(tiny_subject, tables=True, signs=False):
        pass
    assert capfd.readouterr() == ("", "")
    assert all(process.returncode != 0 for process in started)


def test_an_error_meanwhile_ends_it(tiny_subject: Subject, started: list) -> None:
    with pytest.raises(KeyError), warmup.compiled_beside(tiny_subject, tables=True, signs=False):
        raise KeyError
    assert [process.returncode is None for process in started] == [False]


def test_it_is_not_started_where_the_kernels_are_on_a_gpu(
    tiny_subject: Subject, started: list, monkeypatch
) -> None:
    monkeypatch.setattr(warmup, "kernel_device", lambda _: torch.device("cuda"))
    with warmup.compiled_beside(tiny_subject, tables=True, signs=False):
        pass
    assert not started
