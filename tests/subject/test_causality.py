"""A model that looks ahead is refused; one that reads from left to right passes in every dtype."""

from __future__ import annotations

import pytest
import torch
from architectures import GROUPED, build, model_of

import fastexplain
from fastexplain import Subject
from fastexplain.errors import SubjectError
from fastexplain.subject.causality import check_causal


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["GPT2", "Llama", "OPT", "Bloom", "Lfm2"])
def test_reading_from_left_to_right_passes(architecture: str, dtype, make_tokenizer) -> None:
    subject = Subject.from_model(model_of(architecture).to(dtype), make_tokenizer())
    check_causal(subject)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_in_both_directions_is_refused(
    dtype, make_tokenizer, planted_corpus, tmp_path
) -> None:
    settings = GROUPED | {"head_dim": 8, "use_bidirectional_attention": True}
    subject = Subject.from_model(build("Gemma3ForCausalLM", settings).to(dtype), make_tokenizer())
    with pytest.raises(SubjectError, match="Gemma3ForCausalLM looks ahead: in layer 0 activations"):
        fastexplain.sweep(subject, planted_corpus, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_looking_ahead_in_a_higher_layer_alone_is_found(make_model, make_tokenizer) -> None:
    model = make_model()
    norm = model.model.layers[2].input_layernorm
    # What comes last is mixed into all positions, as by attention without a mask.
    norm.register_forward_hook(lambda _module, _inputs, out: out + 0.1 * out[:, -1:])
    with pytest.raises(SubjectError, match="looks ahead: in layer 2"):
        check_causal(Subject.from_model(model, make_tokenizer()))
