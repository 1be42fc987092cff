"""A model's fingerprint is of all its weights."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fastexplain
from fastexplain import open_run
from fastexplain.subject import fingerprint as module
from fastexplain.subject.fingerprint import fingerprint, sampled
from fastexplain.sweeping import manifest


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_every_value_counts(make_model, data) -> None:
    model = make_model()
    before = fingerprint(model)
    assert before.startswith("sha256-full:") and before == fingerprint(make_model())
    parameters = list(model.parameters())
    flat = data.draw(st.sampled_from(parameters)).data.view(-1)
    place = data.draw(st.integers(0, len(flat) - 1))
    bits = flat.view(torch.int32)
    bits[place] ^= 1 << data.draw(st.integers(0, 31))
    assert fingerprint(model) != before


def test_what_lies_off_the_former_grid_counts(make_model) -> None:
    one, other = make_model(), make_model()
    weight = other.model.embed_tokens.weight.data.view(-1)
    step = -(-len(weight) // 1024)
    weight[torch.arange(len(weight)) % step != 0] += 1  # 8 values of 9
    assert sampled(one) == sampled(other)
    assert fingerprint(one) != fingerprint(other)


def test_names_shapes_and_dtypes_count_and_buffers_too() -> None:
    def made(name: str, tensor: torch.Tensor, buffer: float = 0.0) -> str:
        network = nn.Module()
        network.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        network.register_buffer("kept", torch.tensor([buffer]))
        return fingerprint(network)

    zeros = torch.zeros(4, 6)
    prints = {
        made("a", zeros), made("b", zeros), made("a", zeros.view(6, 4)), made("a", zeros.half()),
        made("a", zeros, 1.0), made("a", torch.tensor(0.0)), made("a", torch.zeros(0)),
    }  # fmt: skip
    assert len(prints) == 7
    assert made("a", torch.zeros(6, 4).t()) == made("a", zeros)  # however it lies in memory


def test_pieces_and_tied_weights(make_model, monkeypatch) -> None:
    """By hand: names, and the digests of pieces; a tensor of two names counts once."""
    monkeypatch.setattr(module, "_PIECE", 64)
    network = nn.Module()
    network.one = nn.Linear(10, 5)
    network.two = nn.Linear(10, 5, bias=False)
    network.two.weight = network.one.weight
    digest = hashlib.sha256()
    for name, tensor in (("one.weight", network.one.weight), ("one.bias", network.one.bias)):
        digest.update(f"{name} torch.float32 {list(tensor.shape)}\n".encode())
        whole = tensor.detach().numpy().tobytes()
        for start in range(0, len(whole), 64):
            digest.update(hashlib.sha256(whole[start : start + 64]).digest())
    assert fingerprint(network) == f"sha256-full:{digest.hexdigest()}"


def test_a_checkpoint_with_the_former_fingerprint_is_gone_on_with(
    tiny_subject, planted_corpus, tmp_path, monkeypatch
) -> None:
    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as former:
        (old,) = manifest._former(tiny_subject)
        assert old == (sampled(tiny_subject.model), None)
        former.setattr(manifest, "_former", lambda subject: [])
        identity = manifest._identity
        former.setattr(manifest, "_identity", lambda print_, lead, *more: identity(*old, *more))
        with pytest.raises(KeyboardInterrupt):
            fastexplain.sweep(
                tiny_subject, planted_corpus, tmp_path / "run", batch_size=48, progress=stop
            )
    seen = []
    fastexplain.sweep(
        tiny_subject, planted_corpus, tmp_path / "run", batch_size=48, progress=seen.append
    )
    assert seen[0] > 48
    written = open_run(tmp_path / "run").manifest
    assert written["subject"]["fingerprint"] == tiny_subject.fingerprint()
