"""Keys and values of a text that many requests begin with, and the caches for what is behind it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer


class State(NamedTuple):
    """What a model keeps of a text of `length` tokens.

    `layers` are keys and values, `[1, groups of heads, length, d]`; empty where the text is.
    """

    length: int
    layers: list[tuple[Tensor, Tensor]]


# Of no text.
EMPTY = State(0, [])


def passing(state: State) -> Cache | None:
    """The state for one pass of many texts, whose own keys and values are not kept."""
    return Cache(layers=[_Passing(*layer) for layer in state.layers]) if state.length else None


def growing(state: State) -> Cache:
    """The state for a text whose keys and values are added to it; `state` stays as it is."""
    if not state.length:
        return DynamicCache()
    layers: list[Any] = [DynamicLayer() for _ in state.layers]
    for layer, (keys, values) in zip(layers, state.layers, strict=True):
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
    return Cache(layers=layers)


def room_behind(state: State, texts: int, most: int) -> Cache | None:
    """The state for `texts` texts that become `most` tokens long."""
    if not state.length:
        return None
    return Cache(layers=[_Room(*layer, texts, most) for layer in state.layers])


class _Passing(DynamicLayer):
    """What a layer computes with is freed when it has been computed, and serves the next one."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = self._kept = keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        keys, values = (each.expand(len(key_states), -1, -1, -1) for each in self._kept)
        return torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2)


class _Room(DynamicLayer):
    """Keys and values with room for those to come, which are written behind them.

    `DynamicLayer` copies all there are with every token, 46 MB a text of 1,000 tokens for SmolLM2.
    """

    def __init__(self, keys: Tensor, values: Tensor, texts: int, most: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._length = keys.shape[2]
        self._keys, self._values = (
            each.new_empty(texts, each.shape[1], most, each.shape[3]) for each in (keys, values)
        )
        self._keys[:, :, : self._length] = keys
        self._values[:, :, : self._length] = values
        self._show()

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        end = self._length + key_states.shape[2]
        self._keys[:, :, self._length : end] = key_states
        self._values[:, :, self._length : end] = value_states
        self._length = end
        return self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        self.keys = keys = self._keys[:, :, : self._length]
        self.values = values = self._values[:, :, : self._length]
        return keys, values
