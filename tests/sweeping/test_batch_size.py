"""How many excerpts a forward pass takes, and what becomes of freed memory."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from architectures import model_of
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastexplain import Subject
from fastexplain.sweeping import batch_size
from fastexplain.sweeping.batch_size import bytes_per_position, choose_batch_size

GIB = 2**30


def subject_on(device: str, hidden: int = 4096, width: int = 14_336) -> SimpleNamespace:
    """What the choice depends on, of a Llama 3.1 8B in bfloat16."""
    config = SimpleNamespace(hidden_size=hidden, num_attention_heads=32)
    config.get_text_config = lambda: config
    return SimpleNamespace(
        device=torch.device(device), dtype=torch.bfloat16, lead=(1,), widths=(width,) * 32,
        model=SimpleNamespace(config=config),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("device", "free", "kept", "expected"),
    [
        ("cuda", 120 * GIB, 8 * GIB, 1024),
        ("cuda", 20 * GIB, 4 * GIB, 512),
        ("cuda", 8 * GIB, 4 * GIB, 128),
        ("cuda", GIB // 4, 0, 8),
        ("cuda", 4 * GIB, 5 * GIB, 1),
        ("cpu", 20 * GIB, 0, 64),
        ("cpu", GIB, 0, 32),
        ("cpu", None, 0, 64),
        ("mps", None, 0, 64),
    ],
)
def test_batches_are_powers_of_two_by_the_free_memory(
    device: str, free: int | None, kept: int, expected: int, monkeypatch
) -> None:
    monkeypatch.setattr(batch_size, "_free_bytes", lambda device: free)
    assert choose_batch_size(subject_on(device), [0, 31], 64, kept) == expected


def test_free_memory_is_known_on_linux(monkeypatch, tmp_path) -> None:
    free = batch_size._free_bytes(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50
    monkeypatch.setattr(batch_size, "_MEMINFO", tmp_path / "none")
    assert batch_size._free_bytes(torch.device("cpu")) is None
    (tmp_path / "none").write_text("MemTotal: 3 kB\nMemAvailable:   2 kB\n")
    assert batch_size._free_bytes(torch.device("mps")) == 2048


class Peak(TorchDispatchMode):
    """The most bytes that tensors made meanwhile hold at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self._live = {key: kept for key, kept in self._live.items() if not kept[0].expired()}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.bytes = max(self.bytes, sum(size for _, size in self._live.values()))
        return result


@pytest.mark.parametrize("architecture", ["Llama", "GPT2", "Phi3", "Gemma2", "Falcon", "Bloom"])
def test_the_estimate_is_about_what_a_model_takes(architecture: str, make_tokenizer) -> None:
    tokenizer = make_tokenizer(bos=True, prepend=True)
    subject = Subject.from_model(model_of(architecture), tokenizer, name=architecture)
    with Peak() as peak:
        subject.trunk(torch.ones(8, 64, dtype=torch.long), fold=lambda layer, acts, pre: None)
    estimate = 8 * 65 * bytes_per_position(subject, [0, 1, 2], 65)
    assert 0.9 * peak.bytes < estimate < 6 * peak.bytes
