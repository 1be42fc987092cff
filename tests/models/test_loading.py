"""Loading models; what goes wrong is tested with `load_subject`."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub
import pytest
import torch

from fastexplain.errors import SubjectError
from fastexplain.models.loading import load_pretrained

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(tmp_path: Path, make_model, make_tokenizer, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model's id on the hub; it lies in the hub's cache as a download leaves it."""
    model = tmp_path / "models--some--body"
    snapshot = model / "snapshots" / COMMIT
    make_model().save_pretrained(snapshot)
    make_tokenizer().save_pretrained(snapshot)
    for name in ("main", "v1"):
        (model / "refs").mkdir(exist_ok=True)
        (model / "refs" / name).write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return "some/body"


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_the_revision_is_the_hubs_commit(cached: str, revision: str | None) -> None:
    cpu = torch.device("cpu")
    *_, found = load_pretrained(cached, device=cpu, dtype=torch.float32, revision=revision)
    assert found == COMMIT


def test_a_directory_has_no_revision(cached: str, tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(tmp_path / "models--some--body" / "snapshots" / COMMIT, directory)
    *_, found = load_pretrained(str(directory), device=torch.device("cpu"), dtype=torch.float32)
    assert found is None


def test_weights_of_another_shape_are_named_with_both(make_model, make_tokenizer, tmp_path) -> None:
    make_model().save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 50}))
    message = r"layers\.0\.mlp\.down_proj\.weight is \[32, 48\], by the config it is \[32, 50\]"
    with pytest.raises(SubjectError, match=message):
        load_pretrained(str(tmp_path), device=torch.device("cpu"), dtype=torch.float32)


def test_a_quantised_format_without_its_library_is_one_line(
    make_model, make_tokenizer, tmp_path
) -> None:
    make_model().save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    quantised = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": quantised}))
    with pytest.raises(SubjectError, match=r"can't be loaded: [^\n]*GPTQ[^\n]*optimum[^\n]*$"):
        load_pretrained(str(tmp_path), device=torch.device("cpu"), dtype=torch.float32)


def test_threads_that_load_at_once_get_whole_models(cached: str) -> None:
    """As the viewer's subject and its simulator do."""

    def load(_: int) -> set[str]:
        model, *_ = load_pretrained(cached, device=torch.device("cpu"), dtype=torch.float32)
        return {parameter.device.type for parameter in model.parameters()}

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(load, range(8))) == [{"cpu"}] * 8
