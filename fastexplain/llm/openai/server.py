"""Any OpenAI-compatible server: OpenAI, vLLM, SGLang, llama.cpp, Ollama, OpenRouter.

This is the transport: how requests get to the server and are tried again. What they say, and how
the answers are read, is in `wire.py`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from typing import Any

import aiohttp
import httpx2
import openai

from fastexplain.errors import LLMError, UnusableError, UsageError
from fastexplain.llm.base import Connection
from fastexplain.llm.openai import probe, wire
from fastexplain.llm.openai.failures import Broken, Passing, Refused, Unanswered
from fastexplain.llm.openai.limits import Backoff, Limiter, is_passing, retry_after
from fastexplain.llm.requests import Capabilities, Request, Response
from fastexplain.llm.tokens import count

# Seconds in which a server accepts a connection, if there is one.
_CONNECT_TIMEOUT = 10.0

# Retries while no server has ever answered: it may be starting, but more likely isn't there.
_RETRIES_IF_ABSENT = 2

# After so many requests in a row that failed for good, all their retries included, a server is
# taken to have gone.
_GONE_AFTER = 20

_OPENAI = "https://api.openai.com/v1"

# Characters of a server's own message that are passed on.
_LONGEST_MESSAGE = 300

_CONTINUES = "what was answered is stored, and the same command goes on from there"


class ServerConnection(Connection):
    """A model behind an OpenAI-compatible API.

    Args:
        model: the name by which the server knows the model.
        base_url: the API's address, mostly ending in /v1; OpenAI's own if None (or what
            OPENAI_BASE_URL names). A user's name and password in it are sent instead of a key.
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
            if number is not None and number <= 0:
                raise UsageError(f"{name} has to be above 0")
        key = _key(key_variable)
        if not (base_url or os.environ.get("OPENAI_BASE_URL") or key):
            raise UnusableError(
                f"no server to ask: set {key_variable} for OpenAI, give the address of another "
                "server, or use a local model"
            )
        self.model = model
        self.concurrency = concurrency
        self.address, login = _split(base_url)
        basic = base64.b64encode(login.encode()).decode()
        # The longest first: one may be part of another.
        secrets = {key, basic, login, login.partition(":")[2]} - {""}
        self._secrets = sorted(secrets, key=len, reverse=True)
        wrong = f"refused the key in {key_variable}" if key else "wants a key"
        self._key_refused = f"{wrong}; set {key_variable} to one that may use '{model}'"
        if login:
            self._key_refused = "refused the name and password in its address; correct them"
        self._http = openai.DefaultAioHttpClient(
            timeout=httpx2.Timeout(timeout, connect=min(timeout, _CONNECT_TIMEOUT)),
            limits=httpx2.Limits(
                max_connections=concurrency, max_keepalive_connections=concurrency
            ),
        )
        self.client = openai.AsyncOpenAI(
            # A server without keys still gets the header, which the client insists on.
            api_key=key or "none",
            base_url=self.address,
            max_retries=retries,
            default_headers={"Authorization": f"Basic {basic}"} if login else None,
            http_client=self._http,
        )
        # All that the client sends but what describes this machine.
        headers = self.client.auth_headers | self.client.default_headers
        self._headers = {
            name: value
            for name, value in headers.items()
            if isinstance(value, str) and not name.startswith("X-Stainless")
        }
        self._timeout = timeout
        self._retries = retries
        self._backoff = backoff or Backoff()
        self._limiter = Limiter(requests_per_minute, tokens_per_minute)
        self._slots = asyncio.Semaphore(concurrency)
        self._reached = False  # whether a server ever answered, be it with an error
        self._answered = 0
        self._failed_in_a_row = 0

    async def probe(self) -> Capabilities:
        self.capabilities = await probe.probe(self.post, self.model)
        return self.capabilities

    async def ask(self, request: Request) -> Response:
        capabilities = self.capabilities or await self.probe()
        path, body = wire.body(request, self.model, capabilities)
        return wire.read(request, await self.post(path, body), capabilities)

    async def close(self) -> None:
        await self.client.close()

    def as_llm_error(self, error: openai.OpenAIError) -> LLMError:
        """An error of `client` in a line, without what could show the key."""
        return LLMError(f"{self.address}: {self._clean(str(error))}")

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
            tokens = _tokens(body)
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
                absent = failure.absent and not self._reached
                if counted > (min(self._retries, _RETRIES_IF_ABSENT) if absent else self._retries):
                    break
                self.retried += 1
                await asyncio.sleep(failure.pause + self._backoff.wait(tries))
        self._failed_in_a_row += 1
        if absent:
            raise UnusableError(str(failure))
        reason = f"{failure} (tried {tries} times)" if tries > 1 else str(failure)
        if self._failed_in_a_row >= _GONE_AFTER:
            raise UnusableError(f"{self.address} has stopped answering: {reason}; {_CONTINUES}")
        raise type(failure)(reason)

    async def _try(self, path: str, content: bytes) -> dict[str, Any]:
        """Send a request once.

        Raises:
            Passing: where another try may help.
            UnusableError, Refused: where it won't.
        """
        status, headers, received = await self._fetch("POST", path, content)
        data = wire.parse(received)
        given = data if isinstance(data, dict) else {}
        error = given.get("error")
        if status >= 300:
            reported = error or data or received.decode(errors="replace")
            raise await self._refusal(status, reported, headers)
        if not isinstance(data, dict):
            raise self._unreadable(received)
        if error and "choices" not in data:
            # So OpenRouter reports what failed at a model's own provider.
            code = error.get("code") if isinstance(error, dict) else None
            status = code if isinstance(code, int) and code >= 400 else 400
            raise await self._refusal(status, error, headers)
        self._reached = True
        self._failed_in_a_row = 0
        return data

    async def _fetch(
        self, method: str, path: str, content: bytes | None = None
    ) -> tuple[int, httpx2.Headers, bytes]:
        """Status, headers and body of what a server sends.

        Raises:
            UnusableError, Unanswered: nothing, or not all of it, came.
        """
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._http.request(
                    method, self.address + path, content=content, headers=self._headers
                )
            return response.status_code, response.headers, response.content
        except (OSError, aiohttp.ClientError) as error:
            failure = self._lost(error)
        except httpx2.HTTPError as error:
            failure = self._lost(error.__cause__ or error)
        # Without a cause or context: a traceback would show the request, and with it the key.
        raise failure

    def _lost(self, error: BaseException) -> LLMError:
        """Why there is no response at all."""
        if isinstance(error, aiohttp.ClientSSLError):
            reason = self._clean(str(error))
            if not self._reached:
                return UnusableError(f"no secure connection to {self.address}: {reason}")
            return Unanswered(f"the connection to {self.address} was not secure: {reason}")
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
            return Unanswered(
                f"no server answers at {self.address}; is it running, and is the address right?",
                absent=True,
            )
        if isinstance(error, TimeoutError):
            return Unanswered(f"{self.address} did not answer within {self._timeout:g} s")
        return Unanswered(f"{self.address} dropped the connection")

    def _unreadable(self, content: bytes) -> LLMError:
        """What came in place of a JSON object."""
        if not self._reached and not content.lstrip().startswith(b"{"):
            return UnusableError(
                f"{self.address} answers, but not as an OpenAI-compatible API does; most "
                "addresses end in /v1"
            )
        self._reached = True
        return Broken(f"{self.address} sent an answer that is cut off or no JSON")

    async def _refusal(self, status: int, body: object, headers: httpx2.Headers) -> LLMError:
        """What an error status means, in words for the user."""
        self._reached = True
        where = self.address
        given: dict[str, Any] = body if isinstance(body, dict) else {}
        reason = self._clean(
            str(given.get("message") or given.get("detail") or body or "no reason")
        )
        message = f"{where}: {reason} (status {status})"
        if status == 402 or "insufficient_quota" in (given.get("code"), given.get("type")):
            return UnusableError(
                f"{where} answers no more: the quota of this key is used up; {_CONTINUES}"
            )
        if is_passing(status):
            kind = Broken if status == 500 else Unanswered
            pause = retry_after(headers, time.time()) or 0.0
            return kind(message, pause=pause, limited=status == 429)
        self._failed_in_a_row = 0
        # Once others were answered, the key is good, and it is this request that is forbidden.
        if status == 401 or (status == 403 and not self._answered):
            return UnusableError(f"{where} {self._key_refused}")
        if status == 404:
            models = await self._models()
            if models is None:
                return UnusableError(
                    f"no OpenAI-compatible API at {where}; most addresses end in /v1"
                )
            if self.model not in models:
                has = ", ".join(models[:10]) + (", ..." if len(models) > 10 else "")
                return UnusableError(
                    f"{where} has no model '{self.model}'; it has: {has or 'none'}"
                )
        return Refused(message, status)

    async def _models(self) -> list[str] | None:
        """The names that the server lists; None if it has no such list."""
        try:
            _, _, content = await self._fetch("GET", "/models")
            return [str(model["id"]) for model in wire.parse(content)["data"]]
        except (LLMError, KeyError, TypeError):
            return None

    def _clean(self, text: str) -> str:
        """A server's message on one line, not too long, and without what must not show."""
        text = " ".join(text.split())
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text[:_LONGEST_MESSAGE]


def address_of(base_url: str | None) -> str:
    """The address of a connection with this `base_url`, without making one.

    Raises:
        UnusableError: it is not an address.
    """
    return _split(base_url)[0]


def _key(variable: str) -> str:
    """The key that an environment variable holds, "" if none."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        # The client would say so too, but show the key.
        raise UnusableError(f"what {variable} holds is no key: it has characters that no key has")
    return key


def _split(base_url: str | None) -> tuple[str, str]:
    """An address without the user's name and password in it, and these: "name:password" or ""."""
    base_url = base_url or os.environ.get("OPENAI_BASE_URL") or _OPENAI
    try:
        url = httpx2.URL(base_url)
    except httpx2.InvalidURL:
        url = httpx2.URL("")
    if url.scheme not in ("http", "https") or not url.host or url.query:
        shown = base_url.partition("?")[0].rpartition("@")[2]
        raise UnusableError(f"'{shown}' is no server's address; write http://host:port/v1")
    login = f"{url.username}:{url.password}" if url.username else ""
    return str(url.copy_with(username="", password="")).rstrip("/"), login


def _tokens(body: dict[str, Any]) -> int:
    """The tokens of a request, of its prompt roughly and of its answer at most."""
    texts = [body.get("prompt", ""), *(m["content"] for m in body.get("messages", ()))]
    most = body.get("max_tokens") or body.get("max_completion_tokens") or 0
    return sum(map(count, texts)) + int(most)
