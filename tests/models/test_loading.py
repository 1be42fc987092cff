"""Loading models; what goes wrong is tested with `load_subject`."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch

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
