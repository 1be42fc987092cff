"""The server connection against a small server on the loopback that makes mistakes."""

import asyncio
import base64
import gc
import json
import logging
import re
import socket
import subprocess
import sys
import traceback
import tracemalloc
import warnings

import faulty_server
import numpy as np
import pytest
from faulty_server import LASTING, PASSING, Faulty

from fastexplain.errors import LLMError, UnusableError, UsageError
from fastexplain.llm.openai.failures import Broken, Refused, Unanswered
from fastexplain.llm.openai.limits import Backoff, Limiter
from fastexplain.llm.openai.server import ServerConnection
from fastexplain.llm.requests import Chat, UselessAnswerError
from fastexplain.prompts import simulator

KEY = "sk-a-key-that-must-not-show"
PATH = "/chat/completions"
AT_ONCE = Backoff(first=0.0)
SLOW = ("hang", "drip")  # faults that only a timeout ends


@pytest.fixture
def faulty():
    server = Faulty()
    server.content = "rivers"
    yield server
    server.close()


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.fixture
def nowhere():
    """An address at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{free.getsockname()[1]}/v1"


def connect(url, model="m", **options):
    return ServerConnection(model, url, **{"backoff": AT_ONCE, **options})


def body(content="x", model="m"):
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 5,
    }


async def outcome(connection, content="x"):
    """What a request comes to: the answer's text, or the error."""
    try:
        answer = await connection.post(PATH, body(content, connection.model))
    except LLMError as error:
        assert "\n" not in str(error)
        assert KEY not in "".join(traceback.format_exception(error))
        # A traceback shows causes; those of the client hold the request with its headers.
        assert error.__cause__ is None and error.__context__ is None
        return error
    return answer["choices"][0]["message"]["content"]


def outcomes(url, times=1, **options):
    """What requests come to that are sent one after the other, and the connection."""

    async def main():
        async with connect(url, **options) as connection:
            return [await outcome(connection) for _ in range(times)], connection

    return asyncio.run(main())


def error_of(url, kind=LLMError, **options):
    [error], _ = outcomes(url, **options)
    assert type(error) is kind
    return str(error)


def test_a_request_arrives_as_it_is_and_is_answered(faulty):
    answers, connection = outcomes(faulty.url)
    assert answers == ["rivers"] and connection.retried == 0
    assert faulty.requests == [("/v1/chat/completions", body(), f"Bearer {KEY}")]


def test_text_that_is_no_utf_8_arrives(faulty):
    async def main():
        async with connect(faulty.url) as connection:
            return await outcome(connection, "\udcff \u2028 中文 \0")

    assert asyncio.run(main()) == "rivers"
    assert faulty.requests[0][1]["messages"][0]["content"] == "\udcff \u2028 中文 \0"


@pytest.mark.parametrize("fault", PASSING)
def test_what_may_pass_is_tried_again(faulty, fault):
    faulty.script = [fault, fault]
    answers, connection = outcomes(faulty.url, timeout=0.5 if fault in SLOW else 60)
    assert answers == ["rivers"] and connection.retried == 2
    assert [found for _, found in faulty.outcomes] == [fault, fault, "answered"]


@pytest.mark.parametrize(("status", "tries"), [(408, 3), (409, 3), (429, 3), (502, 3), (529, 3)])
def test_statuses_that_pass_end_with_a_reason(faulty, status, tries):
    faulty.status, faulty.body = status, {"error": {"message": "not now"}}
    message = error_of(faulty.url, Unanswered, retries=2)
    assert message == f"{faulty.url}: not now (status {status}) (tried {tries} times)"
    assert len(faulty.requests) == tries


@pytest.mark.parametrize("status", [400, 405, 413, 422, 501])
def test_other_statuses_are_not_tried_again(faulty, status):
    faulty.status, faulty.body = status, {"error": {"message": "no such parameter"}}
    [error], _ = outcomes(faulty.url)
    assert type(error) is Refused and error.status == status
    assert str(error) == f"{faulty.url}: no such parameter (status {status})"
    assert len(faulty.requests) == 1


@pytest.mark.parametrize(
    ("fault", "kind", "reason"),
    [
        ("hang", Unanswered, "did not answer within 0.2 s (tried 2 times)"),
        ("drip", Unanswered, "did not answer within 0.2 s (tried 2 times)"),
        ("reset", Unanswered, "dropped the connection (tried 2 times)"),
        ("drop", Unanswered, "dropped the connection (tried 2 times)"),
        ("truncated", Broken, "sent an answer that is cut off or no JSON (tried 2 times)"),
        ("500", Broken, "a fault: 500 (status 500) (tried 2 times)"),
    ],
)
def test_what_does_not_pass_ends_with_a_reason(faulty, fault, kind, reason):
    faulty.script = [fault] * 2
    timeout = 0.2 if fault in SLOW else 60
    assert error_of(faulty.url, kind, timeout=timeout, retries=1).endswith(reason)


def test_one_that_fails_leaves_the_others_be(faulty):
    plain = faulty.answer

    def answer(path, request):
        bad = request["messages"][0]["content"] == "3"
        return (500, {"detail": "bad luck"}) if bad else plain(path, request)

    faulty.answer = answer

    async def main():
        async with connect(faulty.url) as connection:
            return await asyncio.gather(*(outcome(connection, str(n)) for n in range(9)))

    answers = asyncio.run(main())
    assert "bad luck" in str(answers.pop(3)) and answers == ["rivers"] * 8


def test_a_connection_that_nobody_probed_probes_itself_once_and_answers(faulty):
    chat = Chat(({"role": "user", "content": "x"},), max_tokens=5)

    async def main():
        async with connect(faulty.url) as connection:
            assert connection.capabilities is None
            answer = await connection.ask(chat)
            found, probed = connection.capabilities, len(faulty.requests)
            reading = simulator.reading("rivers", [" a", "\n"], found.largest)
            return answer, found, await connection.ask(reading), len(faulty.requests) - probed

    answer, found, distribution, sent = asyncio.run(main())
    assert (answer.text, answer.finish, sent) == ("rivers", "stop", 1)
    assert found.chat and found.prompt_logprobs == 20 and found.largest == 9
    expected = np.full((2, 10), -np.inf)
    expected[:, [3, 6]] = -1.0
    np.testing.assert_array_equal(distribution.log_probabilities, expected)


@pytest.mark.parametrize("fault", LASTING)
def test_an_answer_that_is_of_no_use_is_not_asked_for_again(faulty, fault):
    chat = Chat(({"role": "user", "content": "x"},), max_tokens=5)
    reading = simulator.reading("rivers", [" a", "\n"], 9)

    async def main():
        async with connect(faulty.url) as connection:
            await connection.probe()
            for request in (chat, reading):
                sent, faulty.script = len(faulty.requests), [fault]
                with pytest.raises(LLMError) as caught:
                    await connection.ask(request)
                assert type(caught.value) is UselessAnswerError and "\n" not in str(caught.value)
                assert len(faulty.requests) == sent + 1
            assert (await connection.ask(chat)).text == "rivers"

    asyncio.run(main())


class Clock:
    """Time that only sleeping moves."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.now += seconds
        await asyncio.sleep(0)


def test_a_server_that_wants_to_be_left_alone_is_left_alone_by_all(faulty):
    faulty.script = ["429-after"]
    clock = Clock()

    async def main():
        async with connect(faulty.url) as connection:
            connection._limiter = Limiter(clock=clock, sleep=clock.sleep)
            first = asyncio.ensure_future(outcome(connection))
            while not connection.retried:  # it now waits, for itself
                await asyncio.sleep(0)
            paused = clock.now
            await outcome(connection, "another")
            return paused, clock.now, await first

    assert asyncio.run(main()) == (0.0, pytest.approx(0.02), "rivers")


def test_limits_count_retries(faulty):
    faulty.script = ["500", "503"]
    clock = Clock()

    async def main():
        async with connect(faulty.url, requests_per_minute=60) as connection:
            connection._limiter = Limiter(60, clock=clock, sleep=clock.sleep)
            await outcome(connection)

    asyncio.run(main())
    assert clock.now == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize(
    ("path", "request_"),
    [
        (PATH, body("one two three")),
        ("/completions", {"model": "m", "prompt": "one two three", "max_tokens": 5}),
    ],
)
def test_tokens_are_those_of_the_prompt_and_the_most_that_may_be_answered(faulty, path, request_):
    clock = Clock()

    async def main():
        async with connect(faulty.url, tokens_per_minute=60) as connection:
            connection._limiter = Limiter(None, 60, clock=clock, sleep=clock.sleep)
            for _ in range(3):
                await connection.post(path, request_)

    asyncio.run(main())
    assert clock.now == pytest.approx(2 * (3 + 5), abs=0.2)


def test_requests_beyond_the_concurrency_wait(faulty):
    faulty.delay = 0.01

    async def main():
        async with connect(faulty.url, concurrency=4) as connection:
            return await asyncio.gather(*(outcome(connection, str(n)) for n in range(40)))

    assert asyncio.run(main()) == ["rivers"] * 40
    assert faulty.most_at_once == 4


def test_a_request_that_was_turned_away_for_others_keeps_its_tries():
    """A 429 counts as a failure only if nobody was answered in the meantime."""
    turned_away = []

    async def main():
        async with connect("http://127.0.0.1:1/v1", concurrency=2, retries=1) as connection:

            async def one_try(path, content):
                if path == "/busy":
                    turned_away.append(path)
                    if len(turned_away) < 10:
                        await connection.post("/other", {})
                    raise Unanswered("too many", limited=True)
                return {}

            connection._try = one_try
            with pytest.raises(LLMError, match=r"too many \(tried 11 times\)"):
                await connection.post("/busy", {})

    asyncio.run(main())


def test_used_up_credits_are_final(faulty):
    faulty.status, faulty.body = 402, {"error": {"message": "Insufficient credits"}}
    assert "quota of this key is used up" in error_of(faulty.url, UnusableError)


def test_a_used_up_quota_is_final(faulty):
    faulty.status = 429
    faulty.body = {"error": {"message": "You exceeded", "code": "insufficient_quota"}}
    assert "quota of this key is used up" in error_of(faulty.url, UnusableError)
    assert len(faulty.requests) == 1


def test_no_server_at_the_address(nowhere):
    answers, connection = outcomes(nowhere)
    assert type(answers[0]) is UnusableError and connection.retried == 2
    assert str(answers[0]).startswith(f"no server answers at {nowhere}; is it running")


def test_a_name_that_does_not_resolve():
    message = error_of("http://no-such-host.invalid:8000/v1", UnusableError)
    assert message.startswith("no server answers at http://no-such-host.invalid:8000/v1")


def test_no_secure_connection(faulty):
    url = faulty.url.replace("http://", "https://")
    assert error_of(url, UnusableError).startswith(f"no secure connection to {url}: ")


def test_a_server_that_has_gone_fails_each_request_and_then_all():
    server = Faulty()

    async def main():
        async with connect(server.url, retries=0) as connection:
            assert type(await outcome(connection)) is str
            server.close()
            return [await outcome(connection) for _ in range(21)]

    errors = asyncio.run(main())
    assert [type(error) for error in errors] == [Unanswered] * 19 + [UnusableError] * 2
    assert "has stopped answering: no server answers" in str(errors[-1])
    assert str(errors[-1]).endswith("the same command goes on from there")


def test_one_answer_shows_that_a_server_has_not_gone(faulty):
    faulty.script = ["500"] * 19 + [""] + ["500"] * 19
    answers, _ = outcomes(faulty.url, times=39, retries=0)
    assert [type(answer) for answer in answers] == [Broken] * 19 + [str] + [Broken] * 19


def test_a_website_is_not_an_api(faulty):
    for page in (b"<html>welcome</html>", b'"welcome"', b""):
        faulty.answer = lambda path, request, page=page: (200, page)
        assert "not as an OpenAI-compatible API" in error_of(faulty.url, UnusableError)


def test_a_web_page_between_answers_is_tried_again(faulty):
    plain, pages = faulty.answer, [b"<html>busy</html>"]

    async def main():
        async with connect(faulty.url) as connection:
            before = await outcome(connection)
            faulty.answer = lambda path, request: (
                (200, pages.pop()) if pages else plain(path, request)
            )
            return before, await outcome(connection), connection.retried

    assert asyncio.run(main()) == ("rivers", "rivers", 1)


def test_an_error_that_comes_as_an_answer(faulty):
    plain = faulty.answer
    errors = [{"code": 502, "message": "provider down"}, {"code": 400, "message": "too long"}]
    faulty.answer = lambda path, request: (
        (200, {"error": errors.pop(0)}) if errors else plain(path, request)
    )
    answers, connection = outcomes(faulty.url, times=2)
    assert type(answers[0]) is Refused and "too long (status 400)" in str(answers[0])
    assert answers[1] == "rivers" and connection.retried == 1
    errors += ["no idea"]
    assert "no idea" in error_of(faulty.url, Refused)


def test_a_model_that_the_server_does_not_have(faulty):
    message = error_of(faulty.url, UnusableError, model="n")
    assert message == f"{faulty.url} has no model 'n'; it has: m"


def test_an_address_that_is_not_an_api(faulty):
    faulty.status, faulty.body = 404, {"detail": "Not Found"}
    for listing in [(404, {}), (200, {}), (200, []), (200, b"<html>"), (200, {"data": [7]})]:
        faulty.listing = listing
        address = faulty.url.removesuffix("/v1")
        assert "most addresses end in /v1" in error_of(address, UnusableError)


def test_a_part_that_an_api_lacks_is_refused(faulty):
    faulty.chats = False
    assert "Not Found (status 404)" in error_of(faulty.url, Refused)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_not_repeated(faulty, monkeypatch, status):
    faulty.status = status
    faulty.body = {"error": {"message": f"Incorrect API key provided: {KEY}"}}
    message = error_of(faulty.url, UnusableError)
    assert message == (
        f"{faulty.url} refused the key in OPENAI_API_KEY; "
        "set OPENAI_API_KEY to one that may use 'm'"
    )
    monkeypatch.delenv("OPENAI_API_KEY")
    message = error_of(faulty.url, UnusableError, key_variable="MY_KEY")
    assert message == f"{faulty.url} wants a key; set MY_KEY to one that may use 'm'"


def test_a_single_forbidden_request_fails_alone(faulty):
    async def main():
        async with connect(faulty.url) as connection:
            before = await outcome(connection)
            faulty.status, faulty.body = 403, {"error": {"message": "flagged"}}
            return before, type(await outcome(connection))

    assert asyncio.run(main()) == ("rivers", Refused)


def test_the_key_shows_nowhere(faulty, caplog):
    caplog.set_level(logging.DEBUG)
    faulty.status = 422
    faulty.body = {"error": {"message": f"no good: {KEY}\nreally {'!' * 500}"}}
    message = error_of(faulty.url, Refused)
    assert "no good: *** really" in message and len(message) < 400
    faulty.script = ["500", "reset", "truncated", "drop"]
    [_], connection = outcomes(faulty.url)
    assert caplog.records and KEY not in caplog.text
    assert KEY not in repr(connection) + connection.address


def test_a_login_in_the_address_is_sent_and_does_not_show(faulty, caplog):
    caplog.set_level(logging.DEBUG)
    url = faulty.url.replace("http://", "http://user:top%20secret@")
    answers, connection = outcomes(url)
    assert answers == ["rivers"] and connection.address == faulty.url
    login = base64.b64encode(b"user:top secret").decode()
    assert faulty.requests[0][2] == f"Basic {login}"
    faulty.status, faulty.body = 400, {"error": {"message": f"top secret {login}"}}
    assert "*** ***" in error_of(url, Refused)
    faulty.status = 401
    assert error_of(url, UnusableError) == (
        f"{faulty.url} refused the name and password in its address; correct them"
    )
    assert "secret" not in caplog.text


def test_another_variable_may_hold_the_key(faulty, monkeypatch):
    monkeypatch.setenv("MY_KEY", " abc\n")
    outcomes(faulty.url, key_variable="MY_KEY")
    assert faulty.requests[0][2] == "Bearer abc"


def test_a_key_that_can_not_be_one_is_not_repeated(faulty, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\u2028é")
    with pytest.raises(UnusableError, match="OPENAI_API_KEY holds is no key") as caught:
        connect(faulty.url)
    assert KEY not in str(caught.value)


def test_a_key_is_needed_for_openai_only(monkeypatch, faulty):
    assert connect(None).address == "https://api.openai.com/v1"
    monkeypatch.delenv("OPENAI_API_KEY")
    assert outcomes(faulty.url)[0] == ["rivers"]
    with pytest.raises(UnusableError, match="set OPENAI_API_KEY"):
        connect(None)
    monkeypatch.setenv("OPENAI_BASE_URL", faulty.url)
    assert outcomes(None)[0] == ["rivers"]


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "http://", "http://x:y/v1", "a"])
def test_what_is_no_address_is_said_so(url):
    with pytest.raises(UnusableError, match="http://host:port/v1"):
        connect(url)
    for secretive in (f"ftp://user:{KEY}@x/v1", f"http://x/v1?key={KEY}"):
        with pytest.raises(UnusableError) as caught:
            connect(secretive)
        assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["concurrency", "requests_per_minute", "tokens_per_minute", "timeout"]
)
def test_numbers_are_above_0(name):
    with pytest.raises(UsageError, match=f"{name.replace('_', ' ')} has to be above 0"):
        connect("http://127.0.0.1:1/v1", **{name: 0})


def test_who_is_cancelled_leaves_nothing_behind(faulty):
    async def main():
        async with connect(faulty.url, concurrency=2, requests_per_minute=10**6) as connection:
            faulty.script = ["hang"] * 2
            tasks = [asyncio.ensure_future(outcome(connection, str(n))) for n in range(6)]
            while len(faulty.outcomes) < 2:
                await asyncio.sleep(0.001)
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(error) for error in ended] == [asyncio.CancelledError] * 6
            assert asyncio.all_tasks() == {asyncio.current_task()}
            return await asyncio.gather(*(outcome(connection, str(n)) for n in range(4)))

    assert asyncio.run(main()) == ["rivers"] * 4


def test_a_closed_connection_leaves_nothing_open(faulty, caplog):
    faulty.script = ["reset", "hang", "truncated", "drop"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert outcomes(faulty.url, timeout=0.2)[0] == ["rivers"]
        connect(faulty.url)  # never used and never closed
        gc.collect()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_server_of_these_tests_runs_as_a_program():
    command = [sys.executable, faulty_server.__file__, "--rate", "1", "--seed", "3", "--cached"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        answers, _ = outcomes(url, times=2, timeout=0.5, retries=0)
        server.stdin.close()
        assert server.wait() == 0
    assert len(answers) == 2


def test_memory_is_that_of_the_requests_in_flight():
    """200 answers of 200 kB pass, with faults between them; a few at once are held."""
    server = Faulty(rate=0.3, seed=1, kinds=("500", "reset", "drop", "truncated", "429-after"))
    server.content = "x" * 200_000

    async def one(connection, number):
        return len(await outcome(connection, str(number)))

    async def main():
        async with connect(server.url, concurrency=8, retries=20) as connection:
            await one(connection, -1)
            tracemalloc.start()
            lengths = await asyncio.gather(*(one(connection, n) for n in range(200)))
            return lengths, tracemalloc.get_traced_memory()[1]

    try:
        lengths, peak = asyncio.run(main())
    finally:
        tracemalloc.stop()
        server.close()
    assert lengths == [200_000] * 200
    assert peak < 20e6


def test_2000_requests_at_30_percent_faults():
    """Each ends answered, with its own answer, or failed with a reason; none twice, none lost."""
    server = Faulty(rate=0.3, seed=1)
    server.spread = 0.02  # out of order
    count = 2000
    results = {}

    async def one(connection, number):
        content = f"question {number}"
        try:
            answer = await connection.post(PATH, body(content))
        except LLMError as error:
            answer = error
        assert number not in results
        results[number] = answer

    async def main():
        options = {"concurrency": 128, "timeout": 0.7, "retries": 3}
        backoff = Backoff(first=0.01, longest=0.1)
        async with connect(server.url, backoff=backoff, **options) as connection:
            await asyncio.gather(*(one(connection, number) for number in range(count)))
            return connection.retried

    retried = asyncio.run(main())
    server.close()

    answered, met = {}, {}
    for (_, request, _), (digest, found) in zip(server.requests, server.outcomes, strict=True):
        number = int(request["messages"][0]["content"].split()[1])
        faults = met.setdefault(number, [])
        # No answer is asked for again, unless it may have come too late: a busy machine.
        assert all(fault in PASSING for fault in faults) or digest in server.lost
        faults.append(found)
        answered[number] = server.answer("/v1/chat/completions", request)[1]
    assert sorted(results) == sorted(met) == list(range(count))
    assert retried > 0.1 * count and len(server.requests) <= count + retried
    kinds = {fault for faults in met.values() for fault in faults}
    assert kinds == {"answered", *PASSING, *LASTING}
    failed = 0
    for number, faults in met.items():
        result = results[number]
        if isinstance(result, LLMError):
            failed += 1
            assert type(result) in (Broken, Unanswered) and re.search(
                r"tried \d+ times", str(result)
            )
            assert faults[-1] in PASSING
        elif faults[-1] == "answered":
            assert result == answered[number]
        else:
            assert faults[-1] in LASTING  # for the reader of the answer to see
            assert json.dumps(result) != json.dumps(answered[number])
    assert failed < 0.3**4 * count * 2
