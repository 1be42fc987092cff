"""Any OpenAI-compatible server: OpenAI, vLLM, SGLang, llama.cpp, Ollama, OpenRouter.

Prompt log-probabilities come from the completions endpoint with `echo`, which returns the
prompt's own tokens, their character offsets and the likeliest alternatives to each.
"""

from __future__ import annotations

import math
import os
from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import openai

from fastexplain.errors import LLMError
from fastexplain.llm.base import Connection

# Alternatives to ask for at each token: vLLM's limit unless it is started with another, then
# that of OpenAI's own completions.
_ALTERNATIVES = (20, 5)

# Requests in flight at once; a server batches them, and more gain little on one GPU's queue.
_CONCURRENCY = 8

# Characters of a server's own message that are passed on.
_LONGEST_MESSAGE = 300

_NEEDED = (
    "log-probabilities of prompts (completions with echo and logprobs) that the simulator reads; "
    "if this server has none, simulate with vLLM or a local model"
)


class _Echo(NamedTuple):
    """An echoed prompt: token texts by character offset, and the alternatives to each."""

    tokens: dict[int, str]
    alternatives: dict[int, dict[str, float]]


class ServerConnection(Connection):
    """A model behind an OpenAI-compatible API.

    Args:
        model: the name by which the server knows the model.
        base_url: the API's address, mostly ending in /v1; OpenAI's own if None. The key is read
            from OPENAI_API_KEY, and only OpenAI's own address insists on one.

    Raises:
        LLMError: there is no key for OpenAI, or `base_url` is not an address.
    """

    concurrency = _CONCURRENCY

    def __init__(self, model: str, base_url: str | None = None) -> None:
        key = os.environ.get("OPENAI_API_KEY")
        if base_url is None and not key:
            raise LLMError(
                "no server to ask: set OPENAI_API_KEY for OpenAI, give the address of another "
                "server, or use a local model"
            )
        if base_url is not None and urlsplit(base_url).scheme not in ("http", "https"):
            raise LLMError(f"'{base_url}' is no server's address; write http://host:port/v1")
        self.model = model
        self._key = key
        # A server without keys still gets the header, which the client insists on.
        self._client = openai.AsyncOpenAI(api_key=key or "none", base_url=base_url)
        self._alternatives = _ALTERNATIVES[0]
        self._largest: int | None = None

    def __repr__(self) -> str:
        return f"ServerConnection({self.model!r}, {self._address!r})"

    @property
    def _address(self) -> str:
        """The address without a user's name or password."""
        url = self._client.base_url
        port = f":{url.port}" if url.port else ""
        return f"{url.scheme}://{url.host}{port}{url.path}".rstrip("/")

    async def generate(
        self,
        messages: Sequence[dict[str, str]],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> str:
        chat: Any = list(messages)
        request = self._client.chat.completions.create(
            model=self.model,
            messages=chat,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
        )
        try:
            return (await self._first_choice(request)).message.content or ""
        except openai.OpenAIError as error:
            # Without its cause: a traceback would show the request, and with it the key.
            raise await self._explained(error) from None

    async def largest_integer(self) -> int:
        if self._largest is None:
            # Every integer behind a tab, as in a simulator's prompt, at a place that is known.
            text, places = "", []
            for value in range(11):
                text += "a\t"
                places.append(len(text))
                text += f"{value}\n"
            echo = await self._echo(text)
            single = [echo.tokens.get(p) == str(value) for value, p in enumerate(places)]
            if not all(single[:10]):
                raise LLMError(
                    f"the tokenizer of '{self.model}' has no single tokens for 0 to 9 behind a "
                    "tab; choose another simulator"
                )
            self._largest = 10 if single[10] else 9
        return self._largest

    async def integer_log_probabilities(
        self, text: str, places: Sequence[int], *, shared: int = 0
    ) -> np.ndarray:
        integers = [str(value) for value in range(await self.largest_integer() + 1)]
        echo = await self._echo(text)
        result = np.full((len(places), len(integers)), np.nan)
        for row, place in enumerate(places):
            token = echo.tokens.get(place, "")
            if not token or not text.startswith(token, place):
                raise LLMError(
                    f"{self._address} returned no token where a value stands in the prompt: the "
                    f"tokenizer of '{self.model}' joins a tab with the word after it, or the "
                    "offsets are not those of characters"
                )
            listed = echo.alternatives[place]
            if any(integer in listed for integer in integers):
                result[row] = [listed.get(integer, -math.inf) for integer in integers]
        return result

    async def close(self) -> None:
        await self._client.close()

    async def _echo(self, text: str) -> _Echo:
        """Send `text` as a prompt and get it back in tokens."""
        choice = await self._complete(text)
        given = choice.logprobs
        if given is None or not given.tokens or not given.text_offset or not given.top_logprobs:
            raise LLMError(f"{self._address} gives none of the {_NEEDED}")
        # A token put before the prompt by the server (BOS) moves all offsets by its length.
        shift = 0 if text.startswith(given.tokens[0]) else len(given.tokens[0])
        tokens: dict[int, str] = {}
        alternatives: dict[int, dict[str, float]] = {}
        for offset, token, listed in zip(
            given.text_offset, given.tokens, given.top_logprobs, strict=False
        ):
            if token:  # vLLM: part of a character, which comes whole with its last token
                tokens.setdefault(offset - shift, token)
                alternatives.setdefault(offset - shift, listed or {})
        return _Echo(tokens, alternatives)

    async def _complete(self, text: str) -> Any:
        asked = self._alternatives
        request = self._client.completions.create(
            model=self.model,
            prompt=text,
            echo=True,
            logprobs=asked,
            # One token is made and left aside: not every server accepts 0.
            max_tokens=1,
            temperature=0.0,
        )
        try:
            return await self._first_choice(request)
        except openai.OpenAIError as error:
            smaller = [k for k in _ALTERNATIVES if k < asked]
            too_many = isinstance(error, openai.BadRequestError) and "logprobs" in str(error)
            if not (too_many and smaller):
                raise await self._explained(error, f"; it is asked for the {_NEEDED}") from None
        self._alternatives = min(self._alternatives, smaller[0])
        return await self._complete(text)

    async def _first_choice(self, request: Awaitable[Any]) -> Any:
        choices = getattr(await request, "choices", None)
        if not choices:
            raise LLMError(f"{self._address} answers, but not as an OpenAI-compatible API does")
        return choices[0]

    async def _explained(self, error: openai.OpenAIError, purpose: str = "") -> LLMError:
        """The error in words for the user, without what could show the key.

        `purpose` says what the request was for, where the server may not know such requests.
        """
        where = self._address
        if isinstance(error, openai.APITimeoutError):
            return LLMError(f"{where} did not answer in time")
        if isinstance(error, openai.APIConnectionError):
            return LLMError(
                f"no server answers at {where}; is it running, and is the address right?"
            )
        if isinstance(error, (openai.AuthenticationError, openai.PermissionDeniedError)):
            wrong = "refused the key in OPENAI_API_KEY" if self._key else "wants a key"
            return LLMError(
                f"{where} {wrong}; set OPENAI_API_KEY to one that may use '{self.model}'"
            )
        if isinstance(error, openai.NotFoundError):
            models = await self._models()
            if models is None:
                return LLMError(f"no OpenAI-compatible API at {where}; most addresses end in /v1")
            if self.model not in models:
                has = ", ".join(models[:10]) + (", ..." if len(models) > 10 else "")
                return LLMError(f"{where} has no model '{self.model}'; it has: {has or 'none'}")
        text = " ".join(str(error).split())
        if self._key:
            text = text.replace(self._key, "***")
        return LLMError(f"{where}: {text[:_LONGEST_MESSAGE]}{purpose}")

    async def _models(self) -> list[str] | None:
        """The names that the server lists; None if it has no such list."""
        try:
            listed = getattr(await self._client.models.list(), "data", None)
        except openai.OpenAIError:
            return None
        return None if listed is None else [model.id for model in listed]
