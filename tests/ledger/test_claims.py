"""Two commands on one run: what one has in flight, the other waits for."""

import asyncio
import errno
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faulty_server import Faulty

from fastexplain.errors import StoppedError
from fastexplain.ledger import claims as module
from fastexplain.ledger.budget import Budget
from fastexplain.ledger.claims import Claims
from fastexplain.ledger.responses import Responses
from fastexplain.ledger.stored import StoredConnection
from fastexplain.llm import Connection, connect
from fastexplain.llm.requests import Answer, Capabilities, Chat, key
from fastexplain.run.database import Database

CHAT = Chat(({"role": "user", "content": "x"},), 5)


@pytest.fixture
def server():
    faulty = Faulty(delay=0.01)
    yield faulty
    faulty.close()


@pytest.fixture
def begin(server, tmp_path):
    """Start processes that ask; they are ready when this returns."""
    started = []

    def start(count, at_once):
        command = [sys.executable, Path(__file__).with_name("asking.py"), server.url]
        arguments = [tmp_path / "run.sqlite", count, at_once]
        process = subprocess.Popen(
            [*map(str, command + arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def go(process):
    process.stdin.write("\n")
    process.stdin.flush()


def said(process):
    out, _ = process.communicate()
    assert process.returncode == 0
    return json.loads(out)


def contents(server):
    """What was asked besides the probes."""
    asked = (
        body["messages"][-1]["content"] for _, body, _ in server.requests if "messages" in body
    )
    return [int(content) for content in asked if content.isdigit()]


def test_two_commands_at_once_pay_for_each_request_once(server, begin):
    first, second = begin(60, 4), begin(60, 6)
    go(first)
    go(second)
    (answers, asked), (others, asked_too) = said(first), said(second)
    assert answers == others and asked + asked_too == 60
    assert sorted(contents(server)) == list(range(60))
    probes = [body for _, body, _ in server.requests if body.get("logprobs") == 20]
    assert len(probes) == 2  # of completions: one process probed


def test_what_a_killed_command_had_in_flight_is_asked_by_the_one_that_waits(
    server, begin, tmp_path
):
    with Database(tmp_path / "run.sqlite") as database:
        Responses(database).record_capabilities("m", server.url, Capabilities(chat=True))
    arrived, plain = threading.Semaphore(0), server.draw

    def draw(digest):
        arrived.release()
        return plain(digest)

    server.draw, server.script = draw, ["hang"] * 4
    first, second = begin(4, 4), begin(8, 1)
    go(first)
    assert all(arrived.acquire(timeout=60) for _ in range(4))
    # It would begin with the same four, one after the other.
    go(second)
    assert all(arrived.acquire(timeout=60) for _ in range(4))
    first.kill()
    answers, asked = said(second)
    assert len(answers) == asked == 8
    sent = contents(server)
    assert [sorted(sent[:4]), sorted(sent[4:8]), sorted(sent[8:])] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3],
    ]  # fmt: skip


class Inner(Connection):
    model, address, concurrency = "m", "here", 1
    capabilities = Capabilities(chat=True)

    def __init__(self):
        self.asked = 0

    async def probe(self):
        raise AssertionError

    async def ask(self, request):
        self.asked += 1
        return Answer("1", "stop")


class Held(Claims):
    """Claims that another process has, until it lets go."""

    def __init__(self, times, meanwhile=lambda: None):
        super().__init__(None)
        self.times, self.meanwhile = times, meanwhile
        self.names = []

    def claim(self, name):
        self.names.append(name)
        self.times -= 1
        if self.times == 0:
            self.meanwhile()
        return self.times < 0


@pytest.fixture
def responses(tmp_path):
    with Database(tmp_path / "run.sqlite") as database:
        yield Responses(database, "now")


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr("fastexplain.ledger.stored._FIRST_WAIT", 0.0)
    monkeypatch.setattr("fastexplain.ledger.stored._LONGEST_WAIT", 0.0)


@pytest.mark.parametrize("fresh", [False, True])
def test_the_answer_of_another_process_is_taken_unless_all_is_asked_anew(responses, fresh):
    name = key("m", CHAT)
    responses.claims = Held(
        3, lambda: responses.add(name, "m", "explanation", Answer("theirs", "stop"), None)
    )
    stored = StoredConnection(inner := Inner(), responses, "explanation", fresh=fresh)
    assert asyncio.run(stored.ask(CHAT)).text == ("1" if fresh else "theirs")
    assert inner.asked == stored.meter.answered == fresh and stored.meter.stored == (not fresh)
    assert responses.claims.names == [name] * 4


def test_a_request_that_another_process_left_unanswered_is_asked(responses):
    responses.claims = Held(3)
    stored = StoredConnection(inner := Inner(), responses, "explanation")
    assert asyncio.run(stored.ask(CHAT)).text == "1" and inner.asked == 1


def test_the_user_is_told_once_of_a_long_wait(responses, monkeypatch):
    monkeypatch.setattr("fastexplain.ledger.stored._TELL_AFTER", 0.0)
    responses.claims = Held(3)
    stored = StoredConnection(Inner(), responses, "explanation")
    with pytest.warns(UserWarning, match="another command on this run is asking the same") as told:
        asyncio.run(stored.ask(CHAT))
    assert len(told) == 1


def test_who_waits_for_another_process_may_be_interrupted(responses):
    interrupted = threading.Event()
    responses.claims = Held(3, interrupted.set)
    budget = Budget(None, None, interrupted)
    stored = StoredConnection(inner := Inner(), responses, "explanation", budget=budget)
    with pytest.raises(StoppedError):
        asyncio.run(stored.ask(CHAT))
    assert inner.asked == 0


def test_where_there_are_no_locks_all_is_claimed(tmp_path, monkeypatch):
    missing = Claims(tmp_path / "missing" / "file")
    assert missing.claim("a")
    missing.release("a")
    claims = Claims(tmp_path / "file")

    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(module.fcntl, "lockf", no_locks)
    assert claims.claim("a")
    claims.release("a")
    monkeypatch.setattr(module, "fcntl", None)
    assert claims.claim("a")
    claims.release("a")
    assert Claims(None).claim("a")


HOLD = """
import sys
from pathlib import Path
from fastexplain.ledger.claims import Claims
claims = Claims(Path(sys.argv[1]))
print(claims.claim("a"), flush=True)
sys.stdin.readline()
claims.release("a")
print(flush=True)
sys.stdin.readline()
"""


def test_a_claim_excludes_other_processes_until_it_is_given_up(tmp_path):
    path = tmp_path / "file"
    claims = Claims(path)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout.readline() == "True\n"
        assert not claims.claim("a") and claims.claim("b")
        other.stdin.write("\n")
        other.stdin.flush()
        other.stdout.readline()
        assert claims.claim("a")
        other.stdin.close()
    assert path.stat().st_size == 0


def test_claims_of_one_process_exclude_each_other_and_outlive_those_that_are_gone(tmp_path):
    path = tmp_path / "file"
    first, second = Claims(path), Claims(path)
    assert first.claim("a") and not second.claim("a") and second.claim("b")
    second.release("b")
    del second
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout.readline() == "False\n"
        other.stdin.close()
    first.release("a")
    assert Claims(path).claim("a")


def test_two_calls_in_threads_pay_for_each_request_once(server, tmp_path):
    """As two cells of a notebook would, each with its own view of the run's database."""
    both = threading.Barrier(2)

    async def ask_all():
        with Database(tmp_path / "run.sqlite") as database:
            async with connect("m", base_url=server.url, concurrency=4) as inner:
                stored = StoredConnection(inner, Responses(database), "explanation")
                both.wait()
                chats = (Chat(({"role": "user", "content": str(n)},), 5) for n in range(40))
                answers = await asyncio.gather(*map(stored.ask, chats))
            return [answer.text for answer in answers], stored.meter.answered

    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(asyncio.run, ask_all()) for _ in range(2)]
        (answers, asked), (others, asked_too) = [call.result() for call in calls]
    assert answers == others and asked + asked_too == 40
    assert sorted(contents(server)) == list(range(40))
