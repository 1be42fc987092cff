"""Wrong arguments are refused in one line, before compiled code reads what is not there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from wrong_arguments import arguments_of

from fastexplain import kernels
from fastexplain.kernels.summary import Batch


@pytest.mark.parametrize("seed", [0, 1])
def test_no_wrong_argument_ends_the_process(seed: int) -> None:
    """In a process of its own: this one would go with it."""
    script = Path(__file__).with_name("wrong_arguments.py")
    finished = subprocess.run(
        [sys.executable, script, str(seed), "100"], capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    outcomes = json.loads(finished.stdout)
    assert set(outcomes) == set(kernels.__all__)
    for name, counts in outcomes.items():
        assert counts["refused"] >= 20, name


def test_right_arguments_are_taken() -> None:
    for name in kernels.__all__:
        getattr(kernels, name)(*arguments_of(name, np.random.default_rng(0)))


@pytest.mark.parametrize(
    ("kernel", "place", "changes", "message"),
    [
        ("capture", 1, {"ids": -2}, "ids has values from -2"),
        ("capture", 1, {"random_slots": 2}, "random_slots has values from .* expected -1 to 1"),
        ("capture", 1, {"positions": 30}, "positions has values .* expected 0 to 29"),
        ("capture", 1, {"segment_starts": -1}, "segment_starts has values from -1"),
        ("capture", 1, {"segment_rows": 9}, "segment_rows has values .* expected 0 to 8"),
        ("lookup", 1, {"ids": -2}, "ids has values from -2 to -2; expected -1 to 4"),
        ("lookup", 1, {"ids": 5}, "ids has values from 5"),
        ("lookup", 1, {"token_rows": 4}, "token_rows has values from 4 .* expected -1 to 3"),
        ("lookup", 1, {"pair_rows": -2}, "pair_rows has values from -2"),
        ("lookup", 1, {"triple_rows": 2}, "triple_rows has values from 2 .* expected -1 to 1"),
    ],
)
def test_an_index_that_points_outside_is_named(kernel, place, changes, message) -> None:
    arguments = arguments_of(kernel, np.random.default_rng(0))
    record = arguments[place]
    arrays = {name: np.full_like(getattr(record, name), value) for name, value in changes.items()}
    arguments[place] = record._replace(**arrays)
    with pytest.raises(ValueError, match=message):
        getattr(kernels, kernel)(*arguments)


@pytest.mark.parametrize(
    ("kernel", "place", "cut", "message"),
    [
        ("capture", 0, np.s_[:, :, 1:], r"top_keys is float32 \[40, 3\]; expected float32 \[39, K"),
        ("capture", 0, np.s_[:, :5], "of 5 positions none is counted, or too few are there"),
        ("capture", 0, np.s_[1:], r"ids is int32 \[5\]; expected int32 \[4\]"),
        ("capture", 0, np.s_[0], r"activations are \[7, 40\]; expected three axes"),
        ("correlate", 0, np.s_[1:], "expected two arrays"),
        ("discretize", 1, np.s_[1:], "a scale for each row"),
    ],
)
def test_a_shape_that_does_not_fit_is_named(kernel, place, cut, message) -> None:
    arguments = arguments_of(kernel, np.random.default_rng(3))
    arguments[place] = np.ascontiguousarray(arguments[place][cut])
    with pytest.raises(ValueError, match=message):
        getattr(kernels, kernel)(*arguments)


@pytest.mark.parametrize("name", ["discretize", "correlate"])
def test_integers_are_no_activations(name: str) -> None:
    whole = np.ones((2, 3), np.int64)
    with pytest.raises(TypeError, match="activations are int64; expected floating numbers"):
        getattr(kernels, name)(whole, whole[:, 0] if name == "discretize" else whole)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((np.full((2, 3), 4), np.zeros((2, 3))), "token_rows has values from 4 to 4; expected -1"),
        ((np.zeros((2, 3)), np.full((2, 3), -2)), "pair_rows has values from -2"),
        ((np.zeros((2, 3)), np.zeros((2, 4))), r"pair_rows is \[2, 4\]"),
        ((np.zeros((3, 3)), np.zeros((3, 3))), r"token_rows is \[3, 3\], for ids \[2\]"),
    ],
)
def test_a_batch_is_checked_where_it_is_made(rows, message: str) -> None:
    """Where it is used, on a device, reading it would wait for the device."""
    token_rows, pair_rows = (each.astype(np.int32) for each in rows)
    ids = np.arange(2, dtype=np.int32)
    with pytest.raises(ValueError, match=message):
        none = np.full_like(token_rows, -1)
        Batch.make(ids, token_rows, pair_rows, none, skip=0, random_ids=ids, table_rows=(4, 4, 0))
