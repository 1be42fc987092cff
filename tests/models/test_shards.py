"""An index that names what it should not, or what is not there, is refused before it is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from fastexplain import load_subject
from fastexplain.errors import SubjectError


@pytest.fixture
def sharded(make_model, make_tokenizer, tmp_path: Path) -> Path:
    """A model in several files."""
    directory = tmp_path / "model"
    make_model().save_pretrained(directory, max_shard_size="40KB")
    make_tokenizer().save_pretrained(directory)
    assert len(list(directory.glob("*.safetensors"))) > 2
    return directory


def rename(directory: Path, name: object) -> None:
    index = directory / "model.safetensors.index.json"
    state = json.loads(index.read_text())
    weight = next(iter(state["weight_map"]))
    state["weight_map"][weight] = name
    index.write_text(json.dumps(state))


def test_several_files_are_loaded(sharded: Path) -> None:
    assert load_subject(str(sharded), device="cpu").widths == (48,) * 4


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin", "model.pt", "../other.safetensors", "/etc/other.safetensors",
        "sub/other.safetensors", "..\\other.safetensors", "c:other.safetensors", "", ".", None, 3,
        ["x.safetensors"],
    ],
    ids=str,
)  # fmt: skip
def test_an_index_that_names_anything_else_is_refused(sharded: Path, name: object) -> None:
    torch.save({}, sharded / "pytorch_model.bin")
    shutil.copy(next(sharded.glob("*.safetensors")), sharded.parent / "other.safetensors")
    rename(sharded, name)
    with pytest.raises(SubjectError, match=r"^the index [^\n]*$"):
        load_subject(str(sharded), device="cpu")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": null}'])
def test_an_index_that_is_none_is_refused(sharded: Path, text: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(SubjectError, match=r"index .* can't be read \([^\n]*; save it again$"):
        load_subject(str(sharded), device="cpu")


def test_a_file_that_is_not_there_is_named(sharded: Path) -> None:
    lost = sorted(sharded.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(SubjectError, match=f"lacks 1 of the .* such as {lost.name}; download"):
        load_subject(str(sharded), device="cpu")
