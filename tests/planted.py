"""A subject whose weights are set by hand, so that it is known what drives each of its neurons.

A GPT-2 of one layer. The residual stream has a one-hot part for the token, one for the position
and one that the single attention head fills with the previous token's one-hot: its queries and
keys match each position with the one before, sharply. The embeddings of all tokens have the same
mean and variance, so layer norm is the same affine map everywhere, and a neuron that weighs a
token's place fires on that token alone.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

WORDS = [
    "the", "river", "stone", "cat", "walks", "under", "bright", "moon", "and", "sees",
    "old", "tower", "green", "field", "0", "1", "2", "3", "4", "5", "rare", "bird",
]  # fmt: skip
TOKENS, POSITIONS = len(WORDS), 64
WIDTH = 2 * TOKENS + POSITIONS

# Neuron 0 fires on "cat", 1 on digits, 2 on "moon" after "bright" only, 3 on "river" or "stone",
# 4 on "rare", which few excerpts have, 5 on everything alike; 6 and the rest never.
NEURONS = 120
CAT, DIGIT, MOON_AFTER_BRIGHT, RIVER_OR_STONE, RARE, ALWAYS, NEVER = range(7)


def _word(name: str) -> int:
    return WORDS.index(name)


def write_planted(directory: Path) -> Path:
    """Save the planted model and its tokenizer; returns the directory."""
    config = GPT2Config(
        vocab_size=TOKENS, n_positions=POSITIONS, n_embd=WIDTH, n_layer=1, n_head=1,
        n_inner=NEURONS, activation_function="relu", bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        block = model.transformer.h[0]
        for norm in (block.ln_1, block.ln_2, model.transformer.ln_f):
            norm.weight.fill_(1)
        token, position, previous = 0, TOKENS, TOKENS + POSITIONS
        model.transformer.wte.weight[:, token : token + TOKENS] = torch.eye(TOKENS)
        model.transformer.wpe.weight[:, position : position + POSITIONS] = torch.eye(POSITIONS)
        # c_attn holds query, key and value side by side; Conv1D weights are [in, out].
        query, key, value = block.attn.c_attn.weight.split(WIDTH, dim=1)
        for place in range(POSITIONS):
            query[position + place, max(place - 1, 0)] = 20
            key[position + place, place] = 20
        for word in range(TOKENS):
            value[token + word, word] = 1
            # About what the first layer norm makes of a one, undone.
            block.attn.c_proj.weight[word, previous + word] = 1 / 7.3
        up, bias = block.mlp.c_fc.weight, block.mlp.c_fc.bias
        for neuron, words in {
            CAT: ["cat"],
            DIGIT: list("012345"),
            RIVER_OR_STONE: ["river", "stone"],
            RARE: ["rare"],
        }.items():
            for word in words:
                up[token + _word(word), neuron] = 1
            bias[neuron] = -2
        # After the second layer norm a one is about 6: either word alone stays below the threshold.
        up[token + _word("moon"), MOON_AFTER_BRIGHT] = 1
        up[previous + _word("bright"), MOON_AFTER_BRIGHT] = 1
        bias[MOON_AFTER_BRIGHT] = -9
        bias[ALWAYS] = 1
        bias[NEVER:] = -1
    model.save_pretrained(directory)
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="the"))
    words.pre_tokenizer = WhitespaceSplit()
    words.decoder = Fuse()  # a token reads as its word, without a space
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(directory)
    return directory
