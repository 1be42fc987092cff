"""How bytes get to an API's address and back: the key, redirects, bounds, lost connections."""

from __future__ import annotations

import asyncio
import base64
import errno
import logging
import os

import aiohttp
import httpx2
import openai

from fastexplain.errors import LLMError, UnusableError
from fastexplain.llm.openai.addresses import address_of, parse
from fastexplain.llm.openai.failures import Refused, Unanswered

# Seconds in which a server accepts a connection, if there is one.
_CONNECT_TIMEOUT = 10.0

# Bytes of a response that are read: four times an echoed prompt with 400 alternatives to each token
# (with 20 it is 1.5 MB).
MOST_BYTES = 128 * 2**20

# Characters of a server's own message that are passed on.
_LONGEST_MESSAGE = 300

# Values in an address's query from this length on may be keys.
_SECRET = 8


class Http:
    """An API behind an address.

    Args:
        base_url: the API's address; OpenAI's own if None (or what OPENAI_BASE_URL names). A user's
            name and password in it are sent instead of a key, a query with each request.
        key: "" if there is none.
        concurrency: connections at once.
        timeout: seconds for a request from its sending to its last byte.
        retries: of `client`.

    Attributes:
        address: without name, password and query.
        login: whether a name and password are sent.
        reached: whether a server ever answered, be it with an error.
        client: the openai package's client, for the batch API; it does its own retries.

    Raises:
        UnusableError: `base_url` is not an address.
    """

    def __init__(
        self, base_url: str | None, key: str, *, concurrency: int, timeout: float, retries: int
    ) -> None:
        url = parse(base_url)
        login = f"{url.username}:{url.password}" if url.username else ""
        basic = base64.b64encode(login.encode()).decode()
        self.address = address_of(base_url)
        self.login = bool(login)
        self.reached = False
        self._query = f"?{url.query.decode()}" if url.query else ""
        if url.query:
            logging.getLogger("httpx2").addFilter(_without_query)
        self._timeout = timeout
        secrets = {key, basic, login, url.password if login else ""} - {""}
        secrets |= {value for value in url.params.values() if len(value) >= _SECRET}
        # The longest first: one may be part of another.
        self._secrets = sorted(secrets, key=len, reverse=True)
        self._http = openai.DefaultAioHttpClient(
            timeout=httpx2.Timeout(timeout, connect=min(timeout, _CONNECT_TIMEOUT)),
            limits=httpx2.Limits(
                max_connections=concurrency, max_keepalive_connections=concurrency
            ),
            event_hooks={"response": [self._check_redirect]},
        )
        self.client = openai.AsyncOpenAI(
            # A server without keys still gets the header, which the client insists on.
            api_key=key or "none",
            base_url=self.address,
            max_retries=retries,
            default_headers={"Authorization": f"Basic {basic}"} if login else None,
            default_query=dict(url.params),
            http_client=self._http,
        )
        # All that the client sends but what describes this machine.
        headers = self.client.auth_headers | self.client.default_headers
        self._headers = {
            name: value
            for name, value in headers.items()
            if isinstance(value, str) and not name.startswith("X-Stainless")
        }

    async def fetch(
        self, method: str, path: str, content: bytes | None = None
    ) -> tuple[int, httpx2.Headers, bytes]:
        """Status, headers and body of the response to a request.

        Args:
            path: below the API's address, such as "/models".

        Raises:
            UnusableError: there is no secure connection, or the server sends us elsewhere.
            Unanswered: nothing, or not all of it, came.
            Refused: more than `MOST_BYTES` came.
        """
        url = self.address + path + self._query
        parts: list[bytes] = []
        room = MOST_BYTES
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._http.stream(method, url, content=content, headers=self._headers) as response,
            ):
                async for part in response.aiter_bytes():
                    parts.append(part)
                    room -= len(part)
                    if room < 0:
                        break
            if room >= 0:
                return response.status_code, response.headers, b"".join(parts)
            failure: LLMError = Refused(
                f"{self.address} sent more than {MOST_BYTES // 2**20} MiB in answer to one request",
                response.status_code,
            )
        except (OSError, aiohttp.ClientError) as error:
            failure = self._lost(error)
        except httpx2.HTTPError as error:
            failure = self._lost(error.__cause__ or error)
        # Without a cause or context: a traceback would show the request, and with it the key.
        raise failure

    def clean(self, text: str) -> str:
        """A server's message on one line, not too long, and without what must not show."""
        text = " ".join(text.split())
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text[:_LONGEST_MESSAGE]

    def as_llm_error(self, error: openai.OpenAIError) -> LLMError:
        """An error of `client` in a line, without what could show the key."""
        return LLMError(f"{self.address}: {self.clean(str(error))}")

    async def _check_redirect(self, response: httpx2.Response) -> None:
        """Raise UnusableError if a prompt and the key would go to another host, or be readable."""
        if not response.has_redirect_location:
            return
        here = response.request.url
        try:
            there = here.join(response.headers["location"])
        except httpx2.InvalidURL:
            return  # the client says so
        if there.host != here.host or (here.scheme, there.scheme) == ("https", "http"):
            # netloc: without a name and password, which are the other host's.
            raise UnusableError(
                f"{self.address} sends requests on to {there.scheme}://{there.netloc.decode()}, "
                "where neither prompts nor the key are sent unasked; give that address if it is "
                "the right one"
            )

    def _lost(self, error: BaseException) -> LLMError:
        """Why there is no response at all."""
        where, reason = self.address, self.clean(str(error)) or type(error).__name__
        if isinstance(error, aiohttp.ClientSSLError):
            if not self.reached:
                return UnusableError(f"no secure connection to {where}: {reason}")
            return Unanswered(f"the connection to {where} was not secure: {reason}")
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
            return Unanswered(
                "this process has too many files open for more connections; lower --concurrency, "
                "or raise the limit (ulimit -n)"
            )
        if isinstance(error, aiohttp.ClientProxyConnectionError):
            return Unanswered(
                f"the proxy on the way to {where} is not reached: {reason}", absent=True
            )
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
            return Unanswered(
                f"no server answers at {where}; is it running, and is the address right?",
                absent=True,
            )
        if isinstance(error, TimeoutError):
            return Unanswered(f"{where} did not answer within {self._timeout:g} s")
        if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ClientConnectionError | OSError):
            return Unanswered(f"{where} dropped the connection")
        return Unanswered(f"{where} sent no response that can be read: {reason}")


def key_in(variable: str) -> str:
    """The key that an environment variable holds, "" if none.

    Raises:
        UnusableError: it can't be one.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        # The client would say so too, but show the key.
        raise UnusableError(f"what {variable} holds is no key: it has characters that no key has")
    return key


def _without_query(record: logging.LogRecord) -> bool:
    """Take the queries, which may hold a key, out of the addresses that the client logs."""
    if isinstance(record.args, tuple):
        record.args = tuple(
            arg.copy_with(query=None) if isinstance(arg, httpx2.URL) else arg for arg in record.args
        )
    return True
