"""The viewer, served for a test."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import httpx2 as httpx
import uvicorn

from fastexplain import Run
from fastexplain.viewer.application import application
from fastexplain.viewer.guard import TOKEN_HEADER, Door
from fastexplain.viewer.serving import listen
from fastexplain.viewer.viewed import Beside

T = TypeVar("T")


@contextlib.contextmanager
def serving(run: Run, beside: Beside | None = None, port: int = 0) -> Iterator[str]:
    """The address of a viewer of a run, in a thread of this process."""
    with listen("127.0.0.1", port) as socket:
        port = socket.getsockname()[1]
        config = uvicorn.Config(
            application(run, Door.of("127.0.0.1", port), beside),
            log_level="warning",
            lifespan="on",
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)  # uvicorn has nothing to wait on
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.should_exit = True
            thread.join()


def finished(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns; in a thread, since Playwright has an event loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def post(run: Run, path: str, body: object, status: int = 200) -> Any:
    """What the viewer of a run answers to a POST request; bytes are sent as they are."""
    door = Door.of("127.0.0.1", 80)
    headers = {
        "Origin": "http://127.0.0.1",
        TOKEN_HEADER: door.token,
        "Content-Type": "application/json",
    }
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=application(run, door))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as asking:
            return await asking.post(f"/api/{path}", headers=headers, content=content)

    answer = finished(ask())
    assert answer.status_code == status, answer.text
    return answer.json()


def asking(address: str) -> Callable[..., Any]:
    """Asks the viewer at an address for a path; a body is posted as its own pages do."""
    token = httpx.get(f"{address}api/run").json()["token"]

    def ask(path: str, body: Any = None, status: int = 200) -> Any:
        if body is None:
            answer = httpx.get(f"{address}api/{path}")
        else:
            headers = {"Origin": address.rstrip("/"), TOKEN_HEADER: token}
            answer = httpx.post(f"{address}api/{path}", json=body, headers=headers, timeout=60)
        assert answer.status_code == status, answer.text
        return answer.json()

    return ask
