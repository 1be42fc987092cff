"""Parts of arrays of a run's files."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fastexplain.run.arrays import ArrayFile


@pytest.mark.parametrize(
    ("shape", "place"), [((0, 7), (..., slice(2, 4))), ((0, 7), (..., 3)), ((5, 0), (2,))]
)
def test_a_part_of_an_empty_array_is_as_numpys(tmp_path: Path, shape, place) -> None:
    values = np.zeros(shape, np.float32)
    save_file({"x": values}, tmp_path / "a.safetensors")
    found = ArrayFile(tmp_path / "a.safetensors", None).read("x", place)
    assert found.shape == values[place].shape
