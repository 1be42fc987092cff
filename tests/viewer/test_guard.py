"""Who is let in, and what every answer says."""

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator

import httpx2 as httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Message
from viewing import finished

from fastexplain import Run
from fastexplain.viewer import guard
from fastexplain.viewer.application import STATIC, application
from fastexplain.viewer.guard import LARGEST_BODY, MOST_AT_ONCE, MOST_WRONG, Door, Guard

ADDRESS = "http://127.0.0.1:8484"


async def _echo(request: Request) -> JSONResponse:
    return JSONResponse({"got": len(await request.body())})


INNER = Starlette(routes=[Route("/", _echo, methods=["GET", "POST"])])


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def client(app: object, address: str = "127.0.0.1") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app, client=(address, 1))  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=transport, base_url=ADDRESS)


def ask(app: object, method: str = "GET", path: str = "/", **options: object) -> httpx.Response:
    async def asked() -> httpx.Response:
        async with client(app) as asking:
            return await asking.request(method, path, **options)  # type: ignore[arg-type]

    return finished(asked())


def allowed(door: Door) -> dict[str, str]:
    return {
        "Origin": ADDRESS,
        guard.TOKEN_HEADER: door.token,
        "Content-Type": "application/json",
    }


@pytest.fixture
def door() -> Door:
    return Door.of("127.0.0.1", 8484)


@pytest.mark.parametrize("host", ["127.0.0.1:8484", "localhost:8484", "[::1]:8484"])
def test_the_printed_addresses_are_let_in(door: Door, host: str) -> None:
    assert ask(Guard(INNER, door), headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example:8484", "127.0.0.1", "127.0.0.1:8485", "127.0.0.1.evil.example:8484", ""]
)
def test_another_name_for_this_machine_is_refused(door: Door, host: str) -> None:
    refused = ask(Guard(INNER, door), headers={"Host": host})
    assert refused.status_code == 403
    assert refused.json() == {"error": "open the viewer by the address that it printed"}


@pytest.mark.parametrize("status", [200, 403])
def test_every_answer_keeps_other_origins_out(door: Door, status: int) -> None:
    headers = {} if status == 200 else {"Host": "evil.example"}
    answer = ask(Guard(INNER, door), headers=headers)
    assert answer.status_code == status
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_what_writes_needs_the_token_and_this_origin(door: Door) -> None:
    guarded = Guard(INNER, door)
    headers = allowed(door)
    assert ask(guarded, "POST", headers=headers, content=b"{}").json() == {"got": 2}
    for name, value, status in (
        (guard.TOKEN_HEADER, None, 403),
        (guard.TOKEN_HEADER, "wrong", 403),
        (guard.TOKEN_HEADER, Door.of("127.0.0.1", 8484).token, 403),
        ("Origin", None, 403),
        ("Origin", "http://evil.example", 403),
        ("Origin", "null", 403),
        ("Content-Type", "text/plain", 415),
    ):
        changed = {**headers, name: value}
        given = {key: each for key, each in changed.items() if each is not None}
        refused = ask(guarded, "POST", headers=given, content=b"{}")
        assert refused.status_code == status, (name, value)
        # Who has an old token is told that there is another.
        renewed = ["renew"] if name == guard.TOKEN_HEADER else []
        assert list(refused.json()) == ["error", *renewed]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_are_refused(door: Door, method: str) -> None:
    assert ask(Guard(INNER, door), method, headers=allowed(door)).status_code == 405


def test_a_body_has_a_largest_size_whatever_it_says_of_itself(door: Door) -> None:
    guarded = Guard(INNER, door)

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b"x" * (LARGEST_BODY // 4)

    most = ask(guarded, "POST", headers=allowed(door), content=b"x" * LARGEST_BODY)
    assert most.json() == {"got": LARGEST_BODY}
    for content in (b"x" * (LARGEST_BODY + 1), parts()):
        assert ask(guarded, "POST", headers=allowed(door), content=content).status_code == 413


def test_a_body_that_does_not_end_is_given_up(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "SECONDS", 0.0)
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    headers = {"Host": "127.0.0.1:8484", **allowed(door)}
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "query_string": b"",
        "client": ("127.0.0.1", 1),
    }
    finished(Guard(INNER, door)(scope, receive, send))
    assert sent[0]["status"] == 408


def test_so_many_are_worked_on_at_once(door: Door) -> None:
    async def check() -> None:
        free = asyncio.Event()
        inside = 0

        async def slow(request: Request) -> JSONResponse:
            nonlocal inside
            inside += 1
            await free.wait()
            return JSONResponse({})

        guarded = Guard(Starlette(routes=[Route("/", slow, methods=["POST", "GET"])]), door)
        async with client(guarded) as asking:

            async def post() -> int:
                return (await asking.post("/", headers=allowed(door), content=b"{}")).status_code

            working = [asyncio.create_task(post()) for _ in range(MOST_AT_ONCE)]
            while inside < MOST_AT_ONCE:
                await asyncio.sleep(0)
            assert await post() == 503
            free.set()
            assert await asyncio.gather(*working) == [200] * MOST_AT_ONCE
            assert await post() == 200

    finished(check())


def basic(password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'any:{password}'.encode()).decode()}"}


def test_a_password_is_asked_of_everyone() -> None:
    guarded = Guard(INNER, Door.of("0.0.0.0", 8484, "pässword:1"))
    for headers in ({}, basic("wrong"), {"Authorization": "Basic ###"}, {"Authorization": "Bea x"}):
        refused = ask(guarded, headers=headers)
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"].startswith("Basic ")
    assert ask(guarded, headers=basic("pässword:1") | {"Host": "my.machine:80"}).status_code == 200


def test_a_password_on_loopback_does_not_open_it_to_other_names() -> None:
    guarded = Guard(INNER, Door.of("127.0.0.1", 8484, "secret"))
    assert ask(guarded, headers=basic("secret")).status_code == 200
    assert ask(guarded, headers=basic("secret") | {"Host": "evil.example"}).status_code == 403


def test_who_gives_wrong_passwords_waits_and_others_do_not() -> None:
    clock = Clock()
    guarded = Guard(INNER, Door.of("0.0.0.0", 8484, "secret"), clock)

    async def status(address: str, password: str) -> int:
        async with client(guarded, address) as asking:
            return (await asking.get("/", headers=basic(password))).status_code

    async def check() -> None:
        for _ in range(MOST_WRONG):
            assert await status("10.0.0.1", "wrong") == 401
        assert await status("10.0.0.1", "secret") == 429
        assert await status("10.0.0.2", "secret") == 200
        clock.now = 60.0
        assert await status("10.0.0.1", "secret") == 200

    finished(check())


@pytest.fixture
def viewer(planted_run: Run, door: Door) -> Iterator[Starlette]:
    yield application(planted_run, door)


def test_files_are_served_by_name_and_no_path_reaches_the_disk(viewer: Starlette) -> None:
    assert "<!doctype html>" in ask(viewer).text
    for path in STATIC.iterdir():
        assert ask(viewer, path=f"/{path.name}").content == path.read_bytes()
    for name in ("..%2fguard.py", "%2e%2e/guard.py", "guard.py", "static", "%00", "x" * 5000):
        refused = ask(viewer, path=f"/{name}")
        assert refused.status_code == 404, name


def test_the_token_is_in_what_only_this_origin_can_read(viewer: Starlette, door: Door) -> None:
    assert ask(viewer, path="/api/run").json()["token"] == door.token


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("127.attacker.example", False),
        ("127.0.0.1.attacker.example", False),
        ("localhost.attacker.example", False),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("", False),
    ],
)
def test_this_machine_s_own_addresses(host: str, own: bool) -> None:
    assert guard.is_loopback(host) is own
