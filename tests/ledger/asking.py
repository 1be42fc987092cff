"""A process that asks chats behind the store of a run: python asking.py URL DATABASE COUNT AT_ONCE.

It prints a line when it is ready, begins when it reads one, and prints the answers as JSON, with
how many of them it asked for itself.
"""

import asyncio
import json
import sys

from fastexplain.ledger.responses import Responses
from fastexplain.ledger.stored import StoredConnection
from fastexplain.llm import connect
from fastexplain.llm.requests import Chat
from fastexplain.run.database import Database


async def main(url, path, count, at_once):
    chats = [Chat(({"role": "user", "content": str(n)},), 5) for n in range(int(count))]
    with Database(path) as database:
        async with connect("m", base_url=url, concurrency=int(at_once)) as inner:
            stored = StoredConnection(inner, Responses(database), "explanation")
            print("ready", flush=True)
            sys.stdin.readline()
            await stored.probe()
            answers = await asyncio.gather(*map(stored.ask, chats))
            print(json.dumps([[answer.text for answer in answers], stored.meter.answered]))


asyncio.run(main(*sys.argv[1:]))
