"""A transformers model in this process, for runs without any server."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fastexplain.errors import FastexplainError, LLMError
from fastexplain.hub import load_pretrained
from fastexplain.llm.base import Connection
from fastexplain.smollm2 import smollm2_directory

# A prompt's shared part is kept without its last tokens, since a tokenizer may join the very
# last with what follows.
_LOOSE_END = 4


class LocalConnection(Connection):
    """A causal language model from Hugging Face, on the GPU if there is one.

    Requests run one after another, each in a thread so that the event loop goes on.

    Args:
        name: the word `smollm2`, a local directory or a Hugging Face id.

    Raises:
        LLMError: the model can't be loaded, or its tokenizer can't tell where its tokens stand.
    """

    concurrency = 1

    def __init__(self, name: str) -> None:
        self.model = name
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # The checkpoint's own precision on a GPU; CPUs are slow in anything but float32.
        dtype: Any = torch.float32 if self._device.type == "cpu" else "auto"
        try:
            source = str(smollm2_directory()) if name == "smollm2" else name
            network, tokenizer, _ = load_pretrained(source, device=self._device, dtype=dtype)
        except FastexplainError as error:
            raise LLMError(str(error)) from error
        self._network: Any = network
        self._tokenizer: Any = tokenizer
        if not self._tokenizer.is_fast:
            raise LLMError(f"the tokenizer of '{name}' does not tell where its tokens stand")
        self._integers: list[int] | None = None
        self._kept: tuple[str, list[int], Any] | None = None
        self._lock = asyncio.Lock()

    async def generate(
        self,
        messages: Sequence[dict[str, str]],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> str:
        async with self._lock:
            return await asyncio.to_thread(
                self._generate, list(messages), max_tokens, temperature, seed
            )

    async def largest_integer(self) -> int:
        return len(self._integer_ids()) - 1

    async def integer_log_probabilities(
        self, text: str, places: Sequence[int], *, shared: int = 0
    ) -> np.ndarray:
        async with self._lock:
            return await asyncio.to_thread(self._read, text, places, shared)

    def _generate(
        self, messages: list[dict[str, str]], max_tokens: int, temperature: float, seed: int
    ) -> str:
        if self._tokenizer.chat_template is None:
            raise LLMError(
                f"'{self.model}' has no chat template; choose a model trained on instructions"
            )
        inputs = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self._device)
        length = inputs["input_ids"].shape[1]
        self._check_length(length + max_tokens)
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {}
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(seed)
            output = self._network.generate(
                **inputs,
                max_new_tokens=max_tokens,
                **{"do_sample": False, **sampling},
                pad_token_id=self._tokenizer.eos_token_id,
            )
        return self._tokenizer.decode(output[0, length:], skip_special_tokens=True)

    def _read(self, text: str, places: Sequence[int], shared: int) -> np.ndarray:
        ids, starts = self._tokenize(text)
        self._check_length(len(ids))
        rows = []
        for place in places:
            row = starts.get(place, 0)
            token = self._tokenizer.convert_ids_to_tokens(ids[row])
            if not text.startswith(token, place):
                raise LLMError(
                    f"the tokenizer of '{self.model}' joins a tab with the word after it"
                )
            # The distribution of a token is what the model gives at the token before it.
            rows.append(row - 1)
        with torch.inference_mode():
            past = self._shared_state(ids, text[:shared])
            done = past.get_seq_length() if past is not None else 0
            logits = self._network(
                torch.tensor([ids[done:]], device=self._device),
                past_key_values=copy.deepcopy(past),
                # The model's head runs at these rows only: at all others it costs more than
                # several layers, and its output, vocabulary wide, would be thrown away.
                logits_to_keep=torch.tensor(rows, device=self._device) - done,
            ).logits[0]
            log_probabilities = torch.log_softmax(logits.float(), dim=-1)
            return log_probabilities[:, self._integer_ids()].double().cpu().numpy()

    def _shared_state(self, ids: list[int], prefix: str) -> Any:
        """The model's state after `prefix`, from the last request that began with it."""
        if self._kept is None or self._kept[0] != prefix:
            kept = self._tokenize(prefix)[0][:-_LOOSE_END]
            state = None
            if kept:
                tokens = torch.tensor([kept], device=self._device)
                state = self._network(tokens, use_cache=True, logits_to_keep=1).past_key_values
            self._kept = prefix, kept, state
        _, kept, state = self._kept
        return state if ids[: len(kept)] == kept else None

    def _tokenize(self, text: str) -> tuple[list[int], dict[int, int]]:
        """Token ids, and for each character offset at which a token starts the token's place."""
        encoded = self._tokenizer(text, return_offsets_mapping=True)
        starts: dict[int, int] = {}
        for place, (start, end) in enumerate(encoded["offset_mapping"]):
            if end > start:
                starts.setdefault(start, place)
        return encoded["input_ids"], starts

    def _integer_ids(self) -> list[int]:
        """The token ids of 0, 1, ... behind a tab, up to 10 if that is one token."""
        if self._integers is None:
            found = [self._integer_id(str(value)) for value in range(11)]
            if None in found[:10]:
                raise LLMError(
                    f"the tokenizer of '{self.model}' has no single tokens for 0 to 9 behind a "
                    "tab; choose another simulator"
                )
            self._integers = [token for token in found if token is not None]
        return self._integers

    def _integer_id(self, digits: str) -> int | None:
        ids, starts = self._tokenize(f"a\t{digits}\nb")
        token = ids[starts.get(2, 0)]
        return token if self._tokenizer.convert_ids_to_tokens(token) == digits else None

    def _check_length(self, tokens: int) -> None:
        limit = getattr(self._network.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and tokens > limit:
            raise LLMError(f"a prompt of {tokens} tokens is too long for '{self.model}' ({limit})")
