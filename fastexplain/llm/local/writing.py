"""Answers to chats, generated together behind the state of what their prompts begin with.

Several texts are written in one batch where the model allows it: padding then stands between the
common beginning and what is a text's own. That is decided once, see `_can_pad`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor

from fastexplain.llm.local.engine import Engine
from fastexplain.llm.local.states import EMPTY, State, room_behind


class Writing(NamedTuple):
    """A text to be generated: behind which token ids, of how many tokens at most, whether the
    log-probabilities of the writer's integers are wanted at each, and how it is sampled; at
    temperature 0 it is the likeliest."""

    ids: list[int]
    max_tokens: int
    integers: bool
    temperature: float = 0.0
    seed: int = 0


class Written(NamedTuple):
    """A generated text.

    Attributes:
        ids: of its tokens, without the one that ends it.
        finished: whether the model ended it.
        integers: float32 `[tokens, integers]`, log-probabilities; None if they weren't wanted.
    """

    ids: list[int]
    finished: bool
    integers: np.ndarray | None


class Writer:
    """Writes texts.

    Args:
        engine: runs the model.
        integers: the tokens whose probabilities may be wanted.
        ends: the tokens that end a text.
    """

    def __init__(self, engine: Engine, integers: Sequence[int], ends: Sequence[int]) -> None:
        self._engine = engine
        self._integers = engine.long(integers)
        self._ends = list(ends)
        self._pads = engine.shares and _can_pad(engine.network)
        self._before: tuple[list[int], State] = [], EMPTY

    def write(self, writings: Sequence[Writing]) -> list[Written]:
        """Generate texts.

        Raises:
            LLMError: the engine was stopped.
        """
        with self._engine.running():
            if self._pads:
                return self._write(writings)
            return [self._write([each])[0] for each in writings]

    def _write(self, writings: Sequence[Writing]) -> list[Written]:
        state = self._common_state([each.ids for each in writings])
        longest = max(len(each.ids) for each in writings)
        rows, seen = [], []
        for each in writings:
            padding = longest - len(each.ids)
            start, rest = each.ids[: state.length], each.ids[state.length :]
            rows.append([*start, *[0] * padding, *rest])
            seen.append([*[1] * len(start), *[0] * padding, *[1] * len(rest)])
        most = max(each.max_tokens for each in writings)
        cache = room_behind(state, len(rows), longest + most)
        observer = _Observer(
            self._engine,
            self._integers if any(each.integers for each in writings) else None,
            [_Noise(each.temperature, each.seed) for each in writings],
        )
        output = self._engine.network.generate(
            self._engine.long(rows),
            attention_mask=self._engine.long(seen),
            logits_processor=[observer],
            generation_config=GenerationConfig(
                max_new_tokens=most,
                do_sample=False,
                eos_token_id=self._ends or None,
                pad_token_id=self._ends[0] if self._ends else 0,
            ),
            **({} if cache is None else {"past_key_values": cache}),
        )
        result = []
        for row, (each, ids) in enumerate(zip(writings, output[:, longest:].tolist(), strict=True)):
            ids = ids[: each.max_tokens]
            end = next((i for i, token in enumerate(ids) if token in self._ends), None)
            ids = ids[:end]
            integers = None
            if each.integers:
                steps = [step[row] for step in observer.integers[: len(ids)]]
                integers = np.array(steps, np.float32).reshape(len(ids), len(self._integers))
            result.append(Written(ids, end is not None, integers))
        return result

    def _common_state(self, texts: list[list[int]]) -> State:
        """The state of what these texts begin with in common, made from that of the former call.

        At least one token is left of each text.
        """
        if not self._engine.shares:
            return EMPTY
        before, state = self._before
        common = texts[0][: min(len(text) for text in texts) - 1]
        for text in texts[1:]:
            common = common[: _alike(common, text)]
        length = _alike(before, common)
        kept = [(keys[:, :, :length], values[:, :, :length]) for keys, values in state.layers]
        state = State(length, kept) if length else EMPTY
        self._before = common, self._engine.extend(state, common[length:])
        return self._before[1]


def _can_pad(network: Any) -> bool:
    """Whether texts may have padding inside, between the common text and their own.

    A window of attention counts the padding as tokens, and so do models that can't be told
    their tokens' positions.
    """
    config = network.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    windowed = getattr(config, "sliding_window", None) is not None
    told = "position_ids" in inspect.signature(network.forward).parameters
    return told and not windowed and set(kinds) == {"full_attention"}


def _alike(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts begin with in common."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (one, other) in pairs if one != other), min(len(a), len(b)))


class _Observer(LogitsProcessor):
    """Notes the probabilities of integers at each token, and ends the writing when it is stopped.

    It also puts each text's noise on what is likeliest.

    Attributes:
        integers: for each token so far, for each text, log-probabilities `[integers]`.
    """

    def __init__(self, engine: Engine, integers: Tensor | None, noise: list[_Noise]) -> None:
        self.integers: list[np.ndarray] = []
        self._noise = noise
        self._engine = engine
        self._wanted = integers

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._engine.check()
        if self._wanted is not None:
            read = scores.float().log_softmax(-1)[:, self._wanted]
            self.integers.append(read.cpu().numpy())
        if any(each.temperature for each in self._noise):
            rows = zip(self._noise, scores.float(), strict=True)
            return torch.stack([noise.on(row) for noise, row in rows])
        return scores


class _Noise:
    """Makes the likeliest token a sample.

    The largest of logits over the temperature plus Gumbel noise is a sample of their softmax
    (Maddison, Tarlow and Minka 2014, "A* Sampling", section 2). The noise is of the text's own
    seed, so a text does not depend on those that are written beside it.
    """

    def __init__(self, temperature: float, seed: int) -> None:
        self.temperature = temperature
        self._generator = torch.Generator().manual_seed(seed)

    def on(self, logits: Tensor) -> Tensor:
        """float32 `[vocabulary]`, of the same."""
        if not self.temperature:
            return logits
        drawn = torch.empty(len(logits)).exponential_(generator=self._generator)
        return logits / self.temperature - drawn.log().to(logits.device)
