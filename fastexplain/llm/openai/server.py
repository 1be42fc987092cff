"""Any OpenAI-compatible server: OpenAI, vLLM, SGLang, llama.cpp, Ollama, OpenRouter.

Here requests are tried again, and a server's errors put in words. How they get there is in
`http.py`; what they say, and how the answers are read, in `wire.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import warnings
from typing import Any

import httpx2
import openai

from fastexplain.errors import LLMError, UnusableError, UsageError
from fastexplain.llm.base import Connection
from fastexplain.llm.openai import failures, probe, wire
from fastexplain.llm.openai.events import is_stream
from fastexplain.llm.openai.failures import Broken, Passing, Refused, Unanswered
from fastexplain.llm.openai.http import Http, key_in
from fastexplain.llm.openai.limits import Backoff, Limiter, is_passing, retry_after
from fastexplain.llm.requests import Capabilities, Request, Response
from fastexplain.llm.tokens import at_least, count, texts

# Of all limits: a year in seconds has fewer.
_MOST = 10**9

# Retries while no server has ever answered: it may be starting, but more likely isn't there.
_RETRIES_IF_ABSENT = 2

# After so many requests in a row that failed for good, all their retries included, a server is
# taken to have gone.
_GONE_AFTER = 20

# A server counts other tokens than we do, but not so few of them in a prompt that it read: a share
# of ours, in prompts of more than so many, which have more than so many characters to a token.
_READ, _SHORT, _LONG = 0.6, 200, 5

_CONTINUES = "what was answered is stored, and the same command goes on from there"


class ServerConnection(Connection):
    """A model behind an OpenAI-compatible API.

    Args:
        model: the name by which the server knows the model.
        base_url: the API's address, mostly ending in /v1; OpenAI's own if None (or what
            OPENAI_BASE_URL names). A user's name and password in it are sent instead of a key,
            a query with each request.
        key_variable: the environment variable that holds the key. Only OpenAI's own address
            insists on one.
        concurrency: requests in flight at once.
        requests_per_minute, tokens_per_minute: never sent more; None: no limit. Retries count;
            tokens are estimated beforehand, and the most that may be answered counts too.
        timeout: seconds for a request from its sending to its last byte.
        retries: how often a request is sent again that failed in a way that may pass.
        backoff: the waits between.

    Attributes:
        client: the openai package's client, for the batch API; it does its own retries.

    Raises:
        UnusableError: there is no key for OpenAI, or `base_url` is not an address.
        UsageError: a number is not above 0.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        key_variable: str = "OPENAI_API_KEY",
        concurrency: int = 64,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        timeout: float = 120.0,
        retries: int = 6,
        backoff: Backoff | None = None,
    ) -> None:
        for name, number in (
            ("concurrency", concurrency), ("requests per minute", requests_per_minute),
            ("tokens per minute", tokens_per_minute), ("timeout", timeout),
        ):  # fmt: skip
            if number is not None and not 0 < number <= _MOST:
                raise UsageError(f"{name} has to be above 0, and at most {_MOST:,}")
        key = key_in(key_variable)
        if not (base_url or os.environ.get("OPENAI_BASE_URL") or key):
            raise UnusableError(
                f"no server to ask: set {key_variable} for OpenAI, give the address of another "
                "server, or use a local model"
            )
        self._http = Http(base_url, key, concurrency=concurrency, timeout=timeout, retries=retries)
        self.model = model
        self.address, self.client = self._http.address, self._http.client
        self.concurrency = concurrency
        self._refuses = f"refuses the key in {key_variable}" if key else "wants a key"
        self._remedy = f"set {key_variable} to one that may use '{model}'"
        if self._http.login:
            self._refuses = "refuses the name and password in its address"
            self._remedy = "correct them"
        self._named = "name and password are" if self._http.login else "the key is"
        self._retries = retries
        self._backoff = backoff or Backoff()
        self._limiter = Limiter(requests_per_minute, tokens_per_minute)
        self._counts = tokens_per_minute is not None
        self._slots = asyncio.Semaphore(concurrency)
        self._answered = 0
        self._failed_in_a_row = 0
        self._warned = False

    async def probe(self) -> Capabilities:
        self.capabilities = await probe.probe(self.post, self.model, self.trial)
        return self.capabilities

    async def ask(self, request: Request) -> Response:
        capabilities = self.capabilities or await self.probe()
        path, body = wire.body(request, self.model, capabilities)
        response = wire.read(request, await self.post(path, body), capabilities)
        self._check_read(request, response.usage.prompt_tokens)
        return response

    async def close(self) -> None:
        await self.client.close()

    def as_llm_error(self, error: openai.OpenAIError) -> LLMError:
        """An error of `client` in a line, without what could show the key."""
        return self._http.as_llm_error(error)

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a request until it is answered, has failed too often, or never will be answered.

        Args:
            path: below the API's address, such as "/chat/completions".

        Raises:
            UnusableError: no request can be answered.
            Refused: the server won't have this one.
            Unanswered: all its tries came to nothing, for reasons that may pass.
            Broken: the server failed at it in all its tries.
        """
        async with self._slots:
            tokens = _tokens(body) if self._counts else 0
            content = json.dumps(body).encode()
            tries = counted = 0
            while True:
                tries += 1
                answered = self._answered
                await self._limiter.admit(tokens)
                try:
                    data = await self._try(path, content)
                except Passing as error:
                    failure = error
                    self._limiter.pause(failure.pause)
                else:
                    self._answered += 1
                    return data
                # A server that answers others gets to this one too, if it is asked often enough.
                counted += not (failure.limited and self._answered > answered)
                absent = failure.absent and not self._http.reached
                if counted > (min(self._retries, _RETRIES_IF_ABSENT) if absent else self._retries):
                    break
                self.retried += 1
                await asyncio.sleep(failure.pause + self._backoff.wait(tries))
        self._failed_in_a_row += 1
        if absent:
            raise UnusableError(str(failure))
        reason = f"{failure} (tried {tries} times)" if tries > 1 else str(failure)
        if self._failed_in_a_row >= _GONE_AFTER:
            raise UnusableError(
                f"{self.address} failed {self._failed_in_a_row} requests in a row: {reason}; "
                f"{_CONTINUES}"
            )
        raise type(failure)(reason)

    async def _try(self, path: str, content: bytes) -> dict[str, Any]:
        """Send a request once.

        Raises:
            Passing: where another try may help.
            UnusableError, Refused: where it won't.
        """
        status, headers, received = await self._http.fetch("POST", path, content)
        data = wire.parse(received)
        found = failures.reported(data)
        if status >= 300:
            said = found[1] if found else data or received.decode(errors="replace")
            raise await self._refusal(status, said, headers, path, f" (status {status})")
        if found:
            raise await self._refusal(*found, headers, path)
        if not isinstance(data, dict):
            raise self._unreadable(received)
        self._http.reached = True
        self._failed_in_a_row = 0
        return data

    def _unreadable(self, content: bytes) -> LLMError:
        """What came in place of a JSON object."""
        if not self._http.reached and not (content.lstrip()[:1] == b"{" or is_stream(content)):
            begins = self._http.clean(content[:60].decode(errors="replace"))
            return UnusableError(
                f"{self.address} answers, but not as an OpenAI-compatible API does ('{begins}'); "
                "most addresses end in /v1"
            )
        self._http.reached = True
        return Broken(f"{self.address} sent an answer that is cut off or no JSON")

    async def _refusal(
        self, status: int, body: object, headers: httpx2.Headers, path: str, shown: str = ""
    ) -> LLMError:
        """What an error status means, in words for the user.

        Args:
            status: of the response, or the one that an error in it stands for.
            shown: the status as the user sees it, if it is the response's.
        """
        self._http.reached = True
        where = self.address
        given: dict[str, Any] = body if isinstance(body, dict) else {}
        said = given.get("message") or given.get("detail") or body or "no reason given"
        reason = f"{self._http.clean(str(said))}{shown}"
        if status == 402 or "insufficient_quota" in (given.get("code"), given.get("type")):
            return UnusableError(f"{where} answers no more with this key: {reason}; {_CONTINUES}")
        if is_passing(status):
            kind = Broken if status == 500 else Unanswered
            pause = retry_after(headers, time.time()) or 0.0
            return kind(f"{where}: {reason}", pause=pause, limited=status == 429)
        self._failed_in_a_row = 0
        if status == 401:
            return UnusableError(f"{where} {self._refuses}: {reason}; {self._remedy}")
        # Once others were answered, the key is good, and it is this request that is forbidden.
        if status == 403 and not self._answered:
            return UnusableError(
                f"{where} forbids it: {reason}; if {self._named} the reason, {self._remedy}"
            )
        if status == 404:
            models = await self._models()
            if models is None:
                return UnusableError(
                    f"{where}{path} is not there, nor a list of models: {reason}; most addresses "
                    "of OpenAI-compatible APIs end in /v1"
                )
            if self.model not in models:
                has = ", ".join(models[:10]) + (", ..." if len(models) > 10 else "")
                return UnusableError(
                    f"{where} has no model '{self.model}'; it has: {has or 'none'}"
                )
        return Refused(f"{where}: {reason}", status)

    async def _models(self) -> list[str] | None:
        """The names that the server lists; None if it has no such list."""
        try:
            _, _, content = await self._http.fetch("GET", "/models")
            return [str(model["id"]) for model in wire.parse(content)["data"]]
        except (LLMError, KeyError, TypeError):
            return None

    def _check_read(self, request: Request, prompt_tokens: int) -> None:
        """Warn, once, of a server that seems to drop what its context has no room for."""
        if self._warned or sum(map(len, texts(request))) < _LONG * prompt_tokens:
            return
        sent = at_least(request)
        if sent > _SHORT and 0 < prompt_tokens < _READ * sent:
            self._warned = True
            warnings.warn(
                f"{self.address} counted {prompt_tokens:,} tokens in a prompt of about {sent:,}: "
                "perhaps its context is too small and it drops the rest in silence; if so, "
                "explanations and scores are of no worth, so start it with a larger context (in "
                "Ollama OLLAMA_CONTEXT_LENGTH, in llama.cpp --ctx-size)",
                stacklevel=2,
            )


def _tokens(body: dict[str, Any]) -> int:
    """The tokens of a request, of its prompt roughly and of its answer at most."""
    prompts = body.get("prompt", [])
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    texts += [m["content"] for m in body.get("messages", ())]
    most = body.get("max_tokens") or body.get("max_completion_tokens") or 0
    return sum(map(count, texts)) + int(most)
