"""A subject whose activations are what a function says, so that neurons of any kind can be planted.

A GPT-2 of one layer with a hook before its down projection, which puts the activations in; a sweep
sees them as it sees a model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from fastexplain import Subject

Program = Callable[[list[str]], Sequence[float]]
"""Of the words of a text, one neuron's activation at each."""


def programmed(words: Sequence[str], programs: Sequence[Program]) -> Subject:
    """A subject with a neuron for each program; tokens are words, with a space before each."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(words), n_positions=64, n_embd=8, n_layer=1, n_head=1,
        n_inner=len(programs), activation_function="relu", bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    seen: list[torch.Tensor] = []
    model.transformer.wte.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))

    def put_in(_: object, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        texts = [[words[token] for token in row] for row in seen.pop().tolist()]
        acts = np.array([[program(text) for program in programs] for text in texts], np.float32)
        return (torch.from_numpy(acts.transpose(0, 2, 1)).reshape(inputs[0].shape),)

    model.transformer.h[0].mlp.c_proj.register_forward_pre_hook(put_in)
    vocabulary = {f"▁{word}": i for i, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=f"▁{words[0]}"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    return Subject.from_model(model, tokenizer, name="programmed")
