"""Models of well-known shapes with random weights: to measure speed, no weights are needed.

A geometry is a transformers config. The model is built by transformers itself, on the device and
in the dtype asked for, and has that library's own initialisation (normal, 0.02 wide), so that
activations are spread around 0 as in training's first step: multiplying zeros is faster than
multiplying numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from fastexplain.errors import UsageError
from fastexplain.subject.mlps import find_mlps
from fastexplain.subject.model import DTYPES, Subject, choose_device


@dataclass(frozen=True)
class Geometry:
    """The shape of a model.

    Attributes:
        kind: transformers' name of the architecture.
        layers: decoder layers of the real model.
        bos: the token that the real tokenizer puts before a text, if it does.
        config: what differs from that architecture's defaults; no shape depends on the rest.
    """

    kind: str
    layers: int
    bos: int | None
    config: dict[str, Any]

    def model(self, layers: int, dtype: torch.dtype) -> PreTrainedModel:
        """The lowest layers with transformers' own initialisation, on torch's default device."""
        config = AutoConfig.for_model(self.kind, num_hidden_layers=layers, **self.config)
        # The defaults name special tokens of another vocabulary; drawn tokens need none.
        config.bos_token_id = config.eos_token_id = config.pad_token_id = None
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


GEOMETRIES = {
    "smollm2": Geometry(
        "llama", 30, None,
        {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
         "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True},
    ),
    "llama-8b": Geometry(
        "llama", 32, 128000,
        {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
         "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False},
    ),
    "gpt2": Geometry("gpt2", 12, None, {"n_embd": 768, "n_head": 12}),
    "gpt2-xl": Geometry("gpt2", 48, None, {"n_embd": 1600, "n_head": 25}),
    "pythia-1b": Geometry(
        "gpt_neox", 16, None,
        {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 8,
         "vocab_size": 50304},
    ),
    "gemma-2b": Geometry(
        "gemma", 18, 2,
        {"hidden_size": 2048, "intermediate_size": 16384, "num_attention_heads": 8,
         "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 256000},
    ),
    "qwen2.5-7b": Geometry(
        "qwen2", 28, None,
        {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28,
         "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False},
    ),
    "phi-3-mini": Geometry(
        "phi3", 32, None,
        {"hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 32,
         "num_key_value_heads": 32, "vocab_size": 32064, "tie_word_embeddings": False},
    ),
}  # fmt: skip
"""The geometries by the name that `random_subject` takes."""


def random_subject(
    name: str,
    *,
    layers: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    seed: int = 0,
) -> Subject:
    """A subject of a geometry, with random weights. It has no tokenizer: its tokens are drawn.

    Args:
        name: one of `GEOMETRIES`.
        layers: how many of the decoder layers, the lowest ones; all by default.
        device: as for `load_subject`.
        dtype: `float32`, `bfloat16` or `float16`; by default float32 on a CPU, else bfloat16.

    Raises UsageError for a name, a number of layers, a device or a dtype that does not exist,
    SubjectError if this machine has no such device.
    """
    if name not in GEOMETRIES:
        raise UsageError(f"there is no geometry '{name}'; choose one of {', '.join(GEOMETRIES)}")
    geometry = GEOMETRIES[name]
    layers = geometry.layers if layers is None else layers
    if not 1 <= layers <= geometry.layers:
        raise UsageError(f"{name} can't be cut to {layers} layers; choose 1 to {geometry.layers}")
    place = choose_device(device)
    dtype = ("float32" if place.type == "cpu" else "bfloat16") if dtype is None else dtype
    if dtype not in DTYPES:
        raise UsageError(f"'{dtype}' is not a dtype; choose one of {', '.join(DTYPES)}")
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(seed)
        with torch.device(place):
            model = geometry.model(layers, DTYPES[dtype])
    model.eval().requires_grad_(False)
    return Subject(
        name=name,
        revision=None,
        model=model,
        tokenizer=None,  # type: ignore[arg-type]
        lead=() if geometry.bos is None else (geometry.bos,),
        mlps=find_mlps(model),
    )
