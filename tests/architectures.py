"""Tiny random models of many architectures, and where their neurons are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

HIDDEN, NEURONS, LAYERS, VOCABULARY = 32, 80, 3, 257

USUAL = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": NEURONS,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
}
GROUPED = USUAL | {"num_key_value_heads": 2}
GPT = {"vocab_size": VOCABULARY, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4}
BART = {
    "vocab_size": VOCABULARY,
    "d_model": HIDDEN,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": NEURONS,
    "decoder_ffn_dim": NEURONS,
}
LLAMA_DOWN = "model.layers.{}.mlp.down_proj"

# Architecture: kind, the down projection's name, neurons, settings. Only this test knows names.
ARCHITECTURES: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "Apertus": ("plain", LLAMA_DOWN, NEURONS, GROUPED),
    "BitNet": ("gated", LLAMA_DOWN, NEURONS, GROUPED),
    "Bloom": (
        "plain",
        "transformer.h.{}.mlp.dense_4h_to_h",
        4 * HIDDEN,
        {**GPT, "hidden_size": HIDDEN},
    ),
    "CodeGen": ("plain", "transformer.h.{}.mlp.fc_out", 4 * HIDDEN, GPT | {"rotary_dim": 4}),
    "Cohere": ("gated", LLAMA_DOWN, NEURONS, GROUPED),
    "CTRL": ("plain", "transformer.h.{}.ffn.2", NEURONS, GPT | {"dff": NEURONS}),
    "Falcon": ("plain", "transformer.h.{}.mlp.dense_4h_to_h", 4 * HIDDEN, USUAL),
    "Gemma": ("gated", LLAMA_DOWN, NEURONS, GROUPED | {"head_dim": 8}),
    "Gemma2": ("gated", LLAMA_DOWN, NEURONS, GROUPED | {"head_dim": 8}),
    "Gemma3": ("gated", LLAMA_DOWN, NEURONS, GROUPED | {"head_dim": 8}),
    "Glm": ("fused", LLAMA_DOWN, NEURONS, GROUPED | {"head_dim": 8, "pad_token_id": 0}),
    "GPT2": ("plain", "transformer.h.{}.mlp.c_proj", 4 * HIDDEN, GPT),
    "GPTBigCode": ("plain", "transformer.h.{}.mlp.c_proj", 4 * HIDDEN, GPT),
    "GPTJ": ("plain", "transformer.h.{}.mlp.fc_out", 4 * HIDDEN, GPT | {"rotary_dim": 4}),
    "GPTNeo": (
        "plain",
        "transformer.h.{}.mlp.c_proj",
        4 * HIDDEN,
        {
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "num_layers": LAYERS,
            "num_heads": 4,
            "attention_types": [[["global", "local", "global"], 1]],
        },
    ),
    "GPTNeoX": ("plain", "gpt_neox.layers.{}.mlp.dense_4h_to_h", NEURONS, USUAL),
    "Granite": ("gated", LLAMA_DOWN, NEURONS, GROUPED),
    "Lfm2": (
        "gated",
        "model.layers.{}.feed_forward.w2",
        NEURONS,
        GROUPED
        | {
            "block_auto_adjust_ff_dim": False,
            "layer_types": ["conv", "full_attention", "conv"],
        },
    ),
    "Llama": ("gated", LLAMA_DOWN, NEURONS, GROUPED),
    "Mistral": ("gated", LLAMA_DOWN, NEURONS, GROUPED),
    "Mpt": (
        "plain",
        "transformer.blocks.{}.ffn.down_proj",
        4 * HIDDEN,
        {"vocab_size": VOCABULARY, "d_model": HIDDEN, "n_layers": LAYERS, "n_heads": 4},
    ),
    "Olmo": ("gated", LLAMA_DOWN, NEURONS, GROUPED),
    "Olmo2": ("gated", LLAMA_DOWN, NEURONS, GROUPED),
    "OPT": (
        "plain",
        "model.decoder.layers.{}.fc2",
        NEURONS,
        {
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "ffn_dim": NEURONS,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "word_embed_proj_dim": HIDDEN,
        },
    ),
    "Persimmon": ("plain", "model.layers.{}.mlp.dense_4h_to_h", NEURONS, USUAL),
    "Phi": ("plain", "model.layers.{}.mlp.fc2", NEURONS, USUAL),
    # Keys and values half as wide as queries: its attention has the shapes of a fused MLP.
    "Phi3": ("fused", LLAMA_DOWN, NEURONS, GROUPED | {"pad_token_id": 0}),
    "Qwen2": ("gated", LLAMA_DOWN, NEURONS, GROUPED),
    "Qwen3": ("gated", LLAMA_DOWN, NEURONS, GROUPED | {"head_dim": 8}),
    "RecurrentGemma": (
        "gated",
        "model.layers.{}.mlp_block.down_proj",
        NEURONS,
        # Its MLPs have half of intermediate_size neurons, and its recurrence the shapes of one.
        GROUPED | {"intermediate_size": 2 * NEURONS, "lru_width": 48, "attention_window_size": 16},
    ),
    "SmolLM3": ("gated", LLAMA_DOWN, NEURONS, GROUPED | {"pad_token_id": 0}),
    "StableLm": ("gated", LLAMA_DOWN, NEURONS, GROUPED),
    "Starcoder2": ("plain", "model.layers.{}.mlp.c_proj", NEURONS, GROUPED),
    "XGLM": (
        "plain",
        "model.layers.{}.fc2",
        NEURONS,
        {
            "vocab_size": VOCABULARY,
            "d_model": HIDDEN,
            "ffn_dim": NEURONS,
            "num_layers": LAYERS,
            "attention_heads": 4,
        },
    ),
}

# One of each kind of norm, residual scale and layout; of what takes a second for each architecture
# the others are in the scale suite.
QUICK = {"GPT2", "Llama", "Gemma2", "Falcon", "Cohere", "Granite", "OPT"}
MOST_IN_SCALE = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.scale) for name in ARCHITECTURES
]


def build(model_class: str, settings: dict[str, Any]) -> PreTrainedModel:
    """A random model of the class, which the config class finds its own way to."""
    torch.manual_seed(0)
    cls = getattr(transformers, model_class)
    return cls(cls.config_class(**settings)).eval()


def some_tokens(excerpts: int = 2, tokens: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, VOCABULARY, (excerpts, tokens), generator=generator)


def model_of(architecture: str, layers: int = LAYERS) -> PreTrainedModel:
    names = {"GPT2": "GPT2LMHeadModel", "CTRL": "CTRLLMHeadModel"}
    config = ARCHITECTURES[architecture][3]
    depth = {key for key in ("num_hidden_layers", "n_layer", "n_layers") if key in config}
    return build(names.get(architecture, f"{architecture}ForCausalLM"),
                 config | dict.fromkeys(depth, layers))  # fmt: skip
