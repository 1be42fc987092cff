"""Parts of arrays of a run's files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as torch_file

from fastexplain.errors import RunError
from fastexplain.run.arrays import ArrayFile
from fastexplain.run.pieces import hashes_of


@pytest.mark.parametrize(
    ("shape", "place"), [((0, 7), (..., slice(2, 4))), ((0, 7), (..., 3)), ((5, 0), (2,))]
)
def test_a_part_of_an_empty_array_is_as_numpys(tmp_path: Path, shape, place) -> None:
    values = np.zeros(shape, np.float32)
    save_file({"x": values}, tmp_path / "a.safetensors")
    found = ArrayFile(tmp_path / "a.safetensors", None).read("x", place)
    assert found.shape == values[place].shape


@pytest.mark.parametrize(
    "dtype", ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"]
)
@pytest.mark.parametrize("place", [(), (2,), (slice(1, 4),), (..., 6), (..., slice(0, 2))])
def test_a_part_of_each_type_is_a_copy_of_ones_own(tmp_path: Path, dtype, place) -> None:
    path, values = tmp_path / "a.safetensors", np.arange(105).reshape(5, 3, 7).astype(dtype)
    save_file({"before": np.zeros(3, np.uint8), "x": values}, path)
    for hashes in (None, hashes_of(path)):
        file = ArrayFile(path, hashes)
        found = file.read("x", place)
        assert found.dtype == values.dtype and found.flags.c_contiguous
        np.testing.assert_array_equal(found, values[place or ...])
        found[:] = 1  # it is the reader's
        np.testing.assert_array_equal(file.read("x", place), values[place or ...])


@pytest.mark.parametrize("place", [(5,), (-1,), (..., 7), (..., -1)])
def test_there_are_no_places_beyond_the_ends(tmp_path: Path, place) -> None:
    save_file({"x": np.zeros((5, 7), np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(IndexError, match="place"):
        ArrayFile(tmp_path / "a.safetensors", None).read("x", place)


def test_a_type_that_numpy_lacks_is_refused_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    torch_file({"x": torch.zeros(3, dtype=torch.bfloat16), "y": torch.ones(2)}, path)
    file = ArrayFile(path, None)
    assert file.read("y").tolist() == [1, 1]
    with pytest.raises(RunError, match="x is of a type that no run has"):
        file.read("x")
