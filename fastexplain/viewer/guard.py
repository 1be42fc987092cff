"""Who may ask the viewer for what.

Any page that a browser has open can send requests to 127.0.0.1. So:

1. The Host header must be an address that the viewer listens on: a page of another name that was
   made to resolve to 127.0.0.1 (DNS rebinding) sends its own.
2. What writes, runs the subject or costs money is a POST of JSON, with a token that pages of this
   origin alone can read, from this origin, of a bounded size and sent in a bounded time. So many
   are worked on at once.
3. With a password, which is needed beyond loopback, every request needs it; who gives wrong ones
   has to wait.
4. Every response says that scripts and styles come from here alone, and nothing else from anywhere.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import ipaddress
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastexplain.viewer.answers import JSONAnswer

TOKEN_HEADER = "X-Fastexplain-Token"

LARGEST_BODY = 2**18
"""Bytes of a request: a text of some tens of thousands of tokens."""

MOST_AT_ONCE = 8
"""POST requests that are worked on at once; more are refused."""

SECONDS = 10.0
"""In which the body of a request has to be here."""

MOST_WRONG = 10
"""Wrong passwords a minute of one client; after them even the right one is refused."""

_MINUTE = 60.0
_MOST_CLIENTS = 1000  # whose wrong passwords are counted

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass
class Door:
    """What the guard goes by.

    Attributes:
        hosts: values of the Host header that are let in; None lets in all, as behind a password.
        password: needed for all requests if not None.
        token: needed for POST requests.
    """

    hosts: frozenset[str] | None
    password: str | None = None
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))

    @classmethod
    def of(cls, host: str, port: int, password: str | None = None) -> Door:
        """The door of a server that listens on an address.

        Others' names for this machine are not known; there the password has to do.
        """
        if not is_loopback(host):
            return cls(None, password)
        names = {f"[{host}]" if ":" in host else host, "127.0.0.1", "localhost", "[::1]"}
        bare = names if port == 80 else set()
        return cls(frozenset({f"{name}:{port}" for name in names} | bare), password)


class Guard:
    """ASGI middleware: lets in what the module's text says, and answers the rest by one line."""

    def __init__(
        self, app: ASGIApp, door: Door, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._app, self._door, self._clock = app, door, clock
        self._wrong: dict[str, deque[float]] = {}
        self._working = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # There are no web sockets; the start and end of the application pass.
            await self._app(scope, receive, send)
            return

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        client, *_ = scope.get("client") or ("",)
        refusal = self._refusal(scope["method"], Headers(scope=scope), client)
        if refusal is not None:
            await refusal(scope, receive, sealed)
        elif scope["method"] != "POST":
            await self._app(scope, receive, sealed)
        elif self._working >= MOST_AT_ONCE:
            busy = _refuse(503, "the viewer has enough to do; try again in a moment")
            await busy(scope, receive, sealed)
        else:
            self._working += 1
            try:
                await self._post(scope, receive, sealed)
            finally:
                self._working -= 1

    async def _post(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on once its body is here, unless that is too long."""
        try:
            async with asyncio.timeout(SECONDS):
                body = await _body(receive)
        except TimeoutError:
            await _refuse(408, "the request did not come to its end")(scope, receive, send)
            return
        if body is None:
            return
        if len(body) > LARGEST_BODY:
            await _refuse(413, f"the request has more than {LARGEST_BODY:,} bytes")(
                scope, receive, send
            )
            return
        given = False

        async def whole() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, whole, send)

    def _refusal(self, method: str, headers: Headers, client: str) -> JSONAnswer | None:
        host = headers.get("host", "")
        if self._door.hosts is not None and host not in self._door.hosts:
            return _refuse(403, "open the viewer by the address that it printed")
        if self._door.password is not None and (refusal := self._unknown(headers, client)):
            return refusal
        if method in ("GET", "HEAD"):
            return None
        if method != "POST":
            return _refuse(405, "the viewer knows GET and POST", {"Allow": "GET, HEAD, POST"})
        if headers.get("origin") not in (f"http://{host}", f"https://{host}"):
            return _refuse(403, "only the viewer's own pages may do that")
        if not _same(headers.get(TOKEN_HEADER, ""), self._door.token):
            # The pages take the new token by themselves.
            return JSONAnswer(
                {"error": "the viewer was started again; reload the page", "renew": True}, 403
            )
        if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return _refuse(415, "the viewer takes JSON")
        return None

    def _unknown(self, headers: Headers, client: str) -> JSONAnswer | None:
        """The refusal of a request with a wrong password or none."""
        now = self._clock()
        wrong = self._wrong.get(client, deque())
        while wrong and wrong[0] <= now - _MINUTE:
            wrong.popleft()
        if len(wrong) >= MOST_WRONG:
            return _refuse(429, "too many wrong passwords; wait a minute", {"Retry-After": "60"})
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "basic":
            try:
                _, _, password = base64.b64decode(given, validate=True).partition(b":")
            except ValueError:  # no base64
                password = b""
            assert self._door.password is not None
            if hmac.compare_digest(password, self._door.password.encode()):
                self._wrong.pop(client, None)
                return None
            wrong.append(now)
            self._wrong.pop(client, None)  # the longest unheard of go first
            self._wrong[client] = wrong
            if len(self._wrong) > _MOST_CLIENTS:
                self._wrong.pop(next(iter(self._wrong)))
        return _refuse(
            401,
            "the viewer needs its password",
            {"WWW-Authenticate": 'Basic realm="fastexplain", charset="UTF-8"'},
        )


async def _body(receive: Receive) -> bytes | None:
    """A request's body, or as much of it as is too long; None if the client has gone."""
    body = bytearray()
    more = True
    while more and len(body) <= LARGEST_BODY:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return bytes(body)


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())


def _refuse(status: int, why: str, headers: dict[str, str] | None = None) -> JSONAnswer:
    return JSONAnswer({"error": why}, status, headers)


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own, which no other reaches: `localhost` or an IP's."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
