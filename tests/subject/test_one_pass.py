"""Norms and rotary embeddings in one pass: found by trying, alike to rounding, put back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, model_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from fastexplain.kernels.cpu import trunk as cpu_trunk
from fastexplain.subject import one_pass

# Which have norms and rotary embeddings of another kind, or none.
NO_ROTARY = {
    "Bloom", "CodeGen", "Cohere", "CTRL", "Glm", "GPT2", "GPTBigCode", "GPTJ", "GPTNeo", "Mpt",
    "OPT", "XGLM",
}  # fmt: skip
NO_NORMS = (NO_ROTARY - {"Glm"}) | {
    "Falcon", "GPTNeoX", "Olmo", "Persimmon", "Phi", "StableLm", "Starcoder2",
}  # fmt: skip


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 9), st.integers(1, 70), st.floats(1e-3, 1e3), st.integers(0, 9))
def test_a_norm_is_what_its_formula_says(rows: int, d: int, scale: float, seed: int) -> None:
    x, weight = scale * random(rows, d, seed=seed).numpy(), random(d, seed=seed + 1).numpy()
    out = np.full_like(x, np.nan)
    cpu_trunk.rms_norm(x, weight, np.float32(1e-5), out)
    exact = x.astype(float)
    exact = weight * exact / np.sqrt((exact**2).mean(axis=1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(out, exact, rtol=2e-6, atol=1e-30)


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[st.integers(1, 5)] * 3), st.integers(1, 20), st.booleans(), st.integers(0, 9))
def test_turning_is_what_transformers_does(
    shape: tuple[int, int, int], half: int, each: bool, seed: int
) -> None:
    texts, positions, heads = shape
    x = random(texts, positions, heads, 2 * half, seed=seed)
    cos, sin = (random(texts if each else 1, positions, 2 * half, seed=s) for s in (seed, seed + 1))
    out = torch.full_like(x, torch.nan)
    cpu_trunk.rotate(x.numpy(), cos.numpy(), sin.numpy(), out.numpy())
    turned = x.transpose(1, 2)
    expected, _ = modeling_llama.apply_rotary_pos_emb(turned, turned, cos, sin)
    torch.testing.assert_close(out.transpose(1, 2), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_may_run_in_one_pass_is_found(architecture: str) -> None:
    """That activations stay what they are is tested with the folding sweep, on all of these."""
    found = one_pass.find(model_of(architecture))
    assert bool(found.norms) == (architecture not in NO_NORMS)
    assert bool(found.modules) == (architecture not in NO_ROTARY)


class CenteredRMSNorm(LlamaRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(-1, keepdim=True))


@pytest.mark.parametrize("kind", [LlamaRMSNorm, GemmaRMSNorm, CenteredRMSNorm])
def test_norms_are_told_by_what_they_compute(kind: type[nn.Module]) -> None:
    norm = kind(8)
    norm.weight.data = random(8)
    norm.requires_grad_(False)
    x = random(2, 5, 8, seed=1)
    expected = norm(x)
    found = one_pass.find(norm)
    assert len(found.norms) == (kind is not CenteredRMSNorm)
    with found.entered(), torch.inference_mode():
        assert ("forward" in vars(norm)) == bool(found.norms)
        torch.testing.assert_close(norm(x), expected, rtol=1e-6, atol=1e-6)
        # What the kernel does not take is left to the model.
        torch.testing.assert_close(norm(x.transpose(0, 1)), expected.transpose(0, 1))
        torch.testing.assert_close(norm(x.double()).float(), expected)
    assert "forward" not in vars(norm)


def test_a_model_in_another_precision_is_left_as_it_is() -> None:
    found = one_pass.find(model_of("Llama").to(torch.bfloat16))
    assert found.norms == ()
    rotary = one_pass.Rotary(modeling_llama.apply_rotary_pos_emb)
    q, cos = random(1, 3, 2, 8).transpose(1, 2).bfloat16(), random(1, 3, 8).bfloat16()
    turned = rotary(q, q, cos, cos), modeling_llama.apply_rotary_pos_emb(q, q, cos, cos)
    assert all(map(torch.equal, *turned))


def test_a_forward_that_somebody_else_has_put_in_is_left_alone() -> None:
    norm = LlamaRMSNorm(8).requires_grad_(False)
    norm.forward = theirs = lambda x: LlamaRMSNorm.forward(norm, x)
    with one_pass.find(norm).entered():
        assert norm.forward is theirs
    assert norm.forward is theirs


def test_all_is_as_before_even_behind_an_error() -> None:
    model = model_of("Llama")
    before = modeling_llama.apply_rotary_pos_emb
    found = one_pass.find(model)
    with pytest.raises(KeyboardInterrupt), found.entered():
        assert modeling_llama.apply_rotary_pos_emb is not before
        raise KeyboardInterrupt
    assert modeling_llama.apply_rotary_pos_emb is before
    assert not any("forward" in vars(module) for module in model.modules())
