"""A subject with gated MLPs whose gate and up are set by hand, word by word.

A Llama of one layer without attention: the residual stream is the token's one-hot, which RMSNorm
multiplies by the same number everywhere. So gate and up of each neuron are what is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fastexplain import Corpus, Subject

WORDS = ["the", "cat", "sees", "dog", "near", "old", "wall", "sun"]

# By neuron, and by word: gate and up, each 0 on the others. Neuron 0 is above 0 on "cat", where
# both are, and on "dog", where neither is; below 0 on "sun" and "wall". Neuron 1 is all of one
# class, and neuron 2 is never anything.
FACTORS: Mapping[int, Mapping[str, tuple[float, float]]] = {
    0: {"cat": (3.0, 2.0), "dog": (-1.0, -4.0), "sun": (2.0, -1.0), "wall": (-1.5, 3.0)},
    1: {"old": (4.0, 1.0)},
    2: {},
}


def gated_subject(
    factors: Mapping[int, Mapping[str, tuple[float, float]]] = FACTORS,
    words: Sequence[str] = WORDS,
) -> Subject:
    """The subject, of twice as many neurons as words."""
    width = len(words)
    config = LlamaConfig(
        vocab_size=width, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=64,
        bos_token_id=None, eos_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        model.model.embed_tokens.weight.copy_(torch.eye(width))
        mlp = model.model.layers[0].mlp
        one = width**0.5  # what the norm makes of a one
        for neuron, by_word in factors.items():
            for word, (gate, up) in by_word.items():
                mlp.gate_proj.weight[neuron, words.index(word)] = gate / one
                mlp.up_proj.weight[neuron, words.index(word)] = up / one
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.decoder = Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    return Subject.from_model(model, tokenizer, name="gated")


def gated_corpus() -> Corpus:
    """300 excerpts of random words; "cat" and "dog" in the first and the second half."""
    rng = np.random.default_rng(0)
    token_ids = rng.choice([0, 2, 4, 5, 6, 7], (300, 64)).astype(np.int32)
    for excerpts, word in ((slice(0, 150), "cat"), (slice(150, 300), "dog")):
        token_ids[excerpts, 9] = WORDS.index(word)
    return Corpus.from_excerpts(token_ids)
