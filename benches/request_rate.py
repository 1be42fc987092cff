"""Requests a second over a server connection, and the CPU time that each takes of this process.

    python benches/request_rate.py [--concurrency 32 256] [--ways sent stored] [--profile]

The server, in a separate process, answers every request after 50 ms with bytes that it has
prepared; so `concurrency / 50 ms` is the ideal rate. It takes the second core. All of it runs
first once unmeasured. The ways, each with all that the one before it does:

1. client: the `openai` package's way, `chat.completions.create` of its default client.
2. sent: a `ServerConnection`, the request built beforehand.
3. asked: a simulation as JSON of an excerpt of 64 tokens: prompt, request, and values read.
4. stored: the same, every response stored in a run's database as it arrives.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import cProfile
import os
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import checkout
import openai

from fastexplain.ledger.responses import Responses
from fastexplain.ledger.stored import StoredConnection
from fastexplain.llm.base import Connection
from fastexplain.llm.openai import wire
from fastexplain.llm.openai.server import ServerConnection
from fastexplain.llm.requests import Capabilities
from fastexplain.prompts import simulator_chats
from fastexplain.run.database import Database
from fastexplain.simulators.model import Simulator

DELAY = 0.05  # seconds until the server answers
WAYS = ("client", "sent", "asked", "stored")
CAN = Capabilities(chat=True, chat_logprobs=20, schema="json_schema")

_TEXT = (
    " When the rivers rise in spring, Anna and her 3 brothers carry sandbags to the old mill, "
    "count them twice, and wait: the water comes up to the door, stays a day or so, and goes back "
    "to its bed, as it did in 1954, and 1987, and all the years in between them, more or less."
)
TOKENS = (_TEXT.replace(",", " ,").replace(" ", "\n ").split("\n")[1:] + ["\n"] * 64)[:64]

Ask = Callable[[int], Awaitable[object]]


def explanation(number: int) -> str:
    return f"words that have to do with water and its dangers, case {number}"


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """The address of the server, which runs until the end of this."""
    command = [sys.executable, checkout.ROOT / "tests" / "faulty_server.py"]
    server = subprocess.Popen(
        [*command, "--delay", str(DELAY), "--cached"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdin is not None and server.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
    finally:
        server.stdin.close()
        server.wait()


@contextlib.asynccontextmanager
async def asking(way: str, url: str, concurrency: int) -> AsyncIterator[Ask]:
    """A function that has request number n answered in one of the ways."""
    if way == "client":
        async with openai.AsyncOpenAI(api_key="none", base_url=url, max_retries=0) as client:
            chats: Any = client.chat.completions
            yield lambda number: chats.create(**_body(number))
        return
    async with ServerConnection("m", url, concurrency=concurrency) as connection:
        connection.capabilities = CAN
        if way == "sent":
            yield lambda number: connection.post("/chat/completions", _body(number))
        elif way == "asked":
            yield _simulating(connection)
        else:
            with (
                tempfile.TemporaryDirectory() as directory,
                Database(Path(directory) / "run.sqlite") as database,
            ):
                stored = StoredConnection(connection, Responses(database), "simulation")
                stored.capabilities = CAN
                yield _simulating(stored)


def _simulating(connection: Connection) -> Ask:
    simulator = Simulator(connection, "json", "expected")

    async def ask(number: int) -> None:
        simulation = await simulator.simulate(explanation(number), TOKENS)
        assert simulation.reason is None, simulation.reason

    return ask


_bodies: dict[int, dict[str, Any]] = {}


def _body(number: int) -> dict[str, Any]:
    if number not in _bodies:
        request = simulator_chats.structured(explanation(number), TOKENS)
        _bodies[number] = wire.body(request, "m", CAN)[1]
    return _bodies[number]


async def measured(way: str, url: str, concurrency: int, count: int) -> tuple[float, float]:
    """Requests a second, and milliseconds of CPU time each, of `count` requests."""
    for _ in range(2):  # the first pass is the server's, to prepare its answers
        async with asking(way, url, concurrency) as ask:
            await _answered(ask, concurrency, range(-concurrency, 0))  # connections are made
            begun, used = time.perf_counter(), time.process_time()
            await _answered(ask, concurrency, range(count))
            seconds, used = time.perf_counter() - begun, time.process_time() - used
    return count / seconds, 1e3 * used / count


async def _answered(ask: Ask, concurrency: int, numbers: range) -> None:
    left = iter(numbers)

    async def work() -> None:
        for number in left:
            await ask(number)

    await asyncio.gather(*(work() for _ in range(concurrency)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Requests a second, and CPU time of each.")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--rounds", type=int, default=20, help="requests for each in flight")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--profile", action="store_true", help="show where the time goes")
    options = parser.parse_args()
    print(f"load before: {os.getloadavg()[0]:.2f}; {len(TOKENS)} tokens an excerpt")
    print(f"{'way':8}{'in flight':>10}{'ideal/s':>10}{'rate/s':>10}{'of ideal':>10}{'CPU ms':>10}")
    profile = cProfile.Profile()
    with serving() as url, profile if options.profile else contextlib.nullcontext():
        for way in options.ways:
            for concurrency in options.concurrency:
                count = options.rounds * concurrency
                rate, cpu = asyncio.run(measured(way, url, concurrency, count))
                ideal = concurrency / DELAY
                print(
                    f"{way:8}{concurrency:10}{ideal:10.0f}{rate:10.0f}{rate / ideal:10.0%}"
                    f"{cpu:10.3f}",
                    flush=True,
                )
    if options.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)


if __name__ == "__main__":
    main()
