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

Program = Callable[[list[str]], np.ndarray]
"""Of the words of a text all neurons' activations, `[neurons, tokens]`."""


def programmed(words: Sequence[str], program: Program, neurons: int) -> Subject:
    """A subject with a function's activations; tokens are words, with a space before each."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(words), n_positions=64, n_embd=8, n_layer=1, n_head=1, n_inner=neurons,
        activation_function="relu", bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    seen: list[torch.Tensor] = []
    model.transformer.wte.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))

    def put_in(_: object, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        texts = [[words[token] for token in row] for row in seen.pop().tolist()]
        acts = np.stack([np.asarray(program(text), np.float32).T for text in texts])
        return (torch.from_numpy(acts.copy()).reshape(inputs[0].shape),)

    model.transformer.h[0].mlp.c_proj.register_forward_pre_hook(put_in)
    vocabulary = {f"▁{word}": i for i, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=f"▁{words[0]}"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    return Subject.from_model(model, tokenizer, name="programmed")


def rare_and_heavy(neurons: int, words: int = 400) -> tuple[Subject, np.ndarray]:
    """A subject of rare neurons with heavy tails, and the frequencies of its words, `[words]`.

    Neuron n is above 0 on a set of the words alone, from every third down to one in 500 of them,
    there with a lognormal strength by word, times another by the word before, which no single token
    tells. Their deviations are from 0.3 to 1.5.
    """
    rng = np.random.default_rng(0)
    share = np.geomspace(1 / 3, 1 / 500, neurons)
    deviation = rng.permutation(np.linspace(0.3, 1.5, neurons))
    active = rng.random((words, neurons)) < share
    active[rng.integers(0, words, neurons), np.arange(neurons)] = True
    own, before = np.exp(rng.standard_normal((2, words, neurons)) * deviation * 0.7)
    names = [f"w{i}" for i in range(words)]
    number = {name: i for i, name in enumerate(names)}

    def program(text: list[str]) -> np.ndarray:
        ids = np.array([number[word] for word in text])
        return (active[ids] * own[ids] * before[np.roll(ids, 1)]).T * (np.arange(len(ids)) > 0)

    frequency = 1 / np.arange(1, words + 1)
    return programmed(names, program, neurons), frequency / frequency.sum()
