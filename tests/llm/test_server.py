"""The server connection against a small server on the loopback that makes mistakes."""

import asyncio
import base64
import errno
import gc
import json
import logging
import math
import re
import socket
import subprocess
import sys
import traceback
import tracemalloc
import unittest.mock
import warnings
from dataclasses import replace
from types import SimpleNamespace

import aiohttp
import faulty_server
import httpx2
import numpy as np
import pytest
from faulty_server import LASTING, PASSING, SHAPES, Faulty

from fastexplain.errors import LLMError, UnusableError, UsageError
from fastexplain.llm.openai.failures import Broken, Refused, Unanswered
from fastexplain.llm.openai.limits import Backoff, Limiter
from fastexplain.llm.openai.server import ServerConnection
from fastexplain.llm.requests import Capabilities, Chat, Usage, UselessAnswerError
from fastexplain.llm.tokens import estimate
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
        ("choice-error", Unanswered, "a fault: choice-error (tried 2 times)"),
        ("null-error", Unanswered, "a fault: null-error (tried 2 times)"),
        ("given-up", Broken, "the answer's finish reason is 'abort' (tried 2 times)"),
        ("cut-stream", Broken, "sent an answer that is cut off or no JSON (tried 2 times)"),
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
    expected = np.full((2, 10), np.float32(-30 + np.log(0.5)))
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
    message = error_of(faulty.url, UnusableError)
    assert "answers no more with this key: Insufficient credits (status 402)" in message


def test_a_used_up_quota_is_final(faulty):
    faulty.status = 429
    faulty.body = {"error": {"message": "You exceeded", "code": "insufficient_quota"}}
    assert "answers no more with this key: You exceeded" in error_of(faulty.url, UnusableError)
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
    assert "failed 20 requests in a row: no server answers" in str(errors[-2])
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
    assert type(answers[0]) is Refused and str(answers[0]) == f"{faulty.url}: too long"
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
        assert "most addresses of OpenAI-compatible APIs end in /v1" in error_of(
            address, UnusableError
        )


def test_a_part_that_an_api_lacks_is_refused(faulty):
    faulty.chats = False
    assert "Not Found (status 404)" in error_of(faulty.url, Refused)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_not_repeated(faulty, monkeypatch, status):
    faulty.status = status
    faulty.body = {"error": {"message": f"Incorrect API key provided: {KEY}"}}
    message = error_of(faulty.url, UnusableError)
    said = f"Incorrect API key provided: *** (status {status})"
    remedy = "set OPENAI_API_KEY to one that may use 'm'"
    if status == 401:
        assert message == f"{faulty.url} refuses the key in OPENAI_API_KEY: {said}; {remedy}"
    else:
        assert message == f"{faulty.url} forbids it: {said}; if the key is the reason, {remedy}"
    monkeypatch.delenv("OPENAI_API_KEY")
    faulty.status, faulty.body = 401, {"error": {"message": "who are you?"}}
    message = error_of(faulty.url, UnusableError, key_variable="MY_KEY")
    said = "who are you? (status 401); set MY_KEY to one that may use 'm'"
    assert message == f"{faulty.url} wants a key: {said}"


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
        f"{faulty.url} refuses the name and password in its address: *** *** (status 401); "
        "correct them"
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


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000", "ftp://x/v1", "http://", "http://x:y/v1", "a", "http://a..b/v1",
        f"http://{'a' * 64}.x/v1", "http://\udc80/v1",
    ],
)  # fmt: skip
def test_what_is_no_address_is_said_so(url):
    with pytest.raises(UnusableError, match="http://host:port/v1"):
        connect(url)
    for secretive in (f"ftp://user:{KEY}@x/v1", f"ftp://x/v1?key={KEY}"):
        with pytest.raises(UnusableError) as caught:
            connect(secretive)
        assert KEY not in str(caught.value)


def test_a_query_in_the_address_goes_with_each_request(faulty, caplog):
    caplog.set_level(logging.DEBUG)
    url = f"{faulty.url}?api-version=2026-01-01&code=a%20secret"
    answers, connection = outcomes(url)
    assert answers == ["rivers"] and connection.address == faulty.url
    query = "?api-version=2026-01-01&code=a%20secret"
    assert faulty.requests[0][0] == f"/v1/chat/completions{query}"
    assert dict(connection.client.default_query) == {
        "api-version": "2026-01-01", "code": "a secret",
    }  # fmt: skip
    faulty.status, faulty.body = 400, {"error": {"message": "not with a secret"}}
    assert error_of(url, Refused) == f"{faulty.url}: not with *** (status 400)"
    assert f"POST {faulty.url}/chat/completions" in caplog.text
    assert "a secret" not in caplog.text and "a%20secret" not in caplog.text


@pytest.fixture
def elsewhere():
    server = Faulty()
    yield server
    server.close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_to_another_host_are_not_followed(faulty, elsewhere, status):
    """Neither the prompt nor the key goes there; a name for the same address is another host."""
    there = elsewhere.url.replace("127.0.0.1", "localhost")
    faulty.status, faulty.headers = status, {"Location": f"{there}/chat/completions"}
    message = error_of(faulty.url, UnusableError)
    assert message.startswith(f"{faulty.url} sends requests on to {there.removesuffix('/v1')}, ")
    assert len(faulty.requests) == 1 and elsewhere.requests == []


def test_batches_do_not_follow_redirects_to_another_host_either(faulty, elsewhere):
    there = elsewhere.url.replace("127.0.0.1", "localhost")
    faulty.listing = 307, {}
    faulty.listing_headers = {"Location": f"{there}/files"}

    async def main():
        async with connect(faulty.url, retries=0) as connection:
            with pytest.raises(UnusableError, match=f"sends requests on to {there[:-3]}, "):
                await connection.client.files.list()

    asyncio.run(main())
    assert elsewhere.requests == []


def test_redirects_within_a_host_are_followed(faulty):
    plain, moved = faulty.answer, "/v1/moved/chat/completions"

    def answer(path, request):
        faulty.headers = {"Location": moved}
        return plain("/v1/chat/completions", request) if path == moved else (307, {})

    faulty.answer = answer
    assert outcomes(faulty.url)[0] == ["rivers"]
    assert [(path, key) for path, _, key in faulty.requests] == [
        ("/v1/chat/completions", f"Bearer {KEY}"), (moved, f"Bearer {KEY}"),
    ]  # fmt: skip


def test_a_redirect_that_would_give_up_encryption_is_not_followed(faulty):
    async def main():
        async with connect("https://host/v1") as connection:
            for status, location, followed in (
                (307, "http://host/v1", False), (307, "https://host/v2", True),
                (307, "/v2", True), (307, "http://host:x/", True), (200, "http://other/", True),
            ):  # fmt: skip
                request = httpx2.Request("POST", "https://host/v1")
                response = httpx2.Response(status, headers={"location": location}, request=request)
                checked = connection._http._check_redirect(response)
                if followed:
                    await checked
                else:
                    with pytest.raises(UnusableError, match="sends requests on to http://host"):
                        await checked

    asyncio.run(main())


def test_an_answer_without_end_is_not_read_to_its_end(faulty):
    """A gigabyte, of which no more is held than the bound."""
    begun = b'{"choices": "' + b"x" * 2**20

    def respond(self, head, body, plain=faulty_server._Protocol.respond):
        if not head.startswith(b"POST"):
            return plain(self, head, body)
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n" + begun)
        for _ in range(130):
            self.transport.write(begun)
        return None

    async def main():
        async with connect(faulty.url, timeout=60) as connection:
            tracemalloc.start()
            try:
                return await outcome(connection), tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    with unittest.mock.patch.object(faulty_server._Protocol, "respond", respond):
        error, _ = asyncio.run(main())
    assert type(error) is Refused
    assert str(error) == f"{faulty.url} sent more than 128 MiB in answer to one request"


def test_a_large_answer_that_is_whole_is_read(faulty):
    faulty.content = "x" * (8 * 2**20)
    faulty.token = r"[^\n]+"
    [answer], _ = outcomes(faulty.url)
    assert len(answer) == 8 * 2**20


ERRORS = [
    ({"code": 502, "message": "down"}, Unanswered),
    ({"code": "429", "message": "down"}, Unanswered),
    ({"type": "overloaded_error", "message": "down"}, Unanswered),
    ({"code": None, "type": "server_error", "message": "down"}, Broken),
    ({"status": "RESOURCE_EXHAUSTED", "message": "down"}, Unanswered),
    ({"code": 400, "message": "down"}, Refused),
    ({"code": 10**400, "message": "down"}, Refused),
    ({"code": True, "message": "down"}, Refused),
    ({"message": "down"}, Refused),
    ("down", Refused),
    (["down"], Refused),
]


@pytest.mark.parametrize(("error", "kind"), ERRORS)
@pytest.mark.parametrize(
    "place", ["alone", "beside null", "beside a choice", "in a choice", "list"]
)
def test_an_error_in_a_body_counts_by_its_code_wherever_it_stands(faulty, error, kind, place):
    plain = faulty.answer
    met = []

    def answer(path, request):
        status, body = plain(path, request)
        [choice] = body["choices"]
        if met and kind is not Refused:
            return status, body
        met.append(place)
        if place in ("alone", "list"):
            body = {"error": error}
        elif place == "in a choice":
            choice |= {"error": error, "finish_reason": "error"}
            choice["message"]["content"] = ""
        else:
            body |= {"error": error} | ({"choices": None} if place == "beside null" else {})
        return status, [body] if place == "list" else body

    faulty.answer = answer
    [found], connection = outcomes(faulty.url)
    if kind is Refused:
        assert type(found) is Refused and str(found).startswith(f"{faulty.url}: ")
        assert "down" in str(found) and connection.retried == 0
    else:
        assert found == "rivers" and connection.retried == 1
        met.clear()
        assert "down" in error_of(faulty.url, kind, retries=0)


@pytest.mark.parametrize("fault", ["choice-error", "null-error", "given-up", "cut-stream"])
def test_what_may_pass_is_tried_again_while_probing_too(faulty, fault):
    faulty.script, faulty.content = [fault] * 3, None

    async def main():
        async with connect(faulty.url) as connection:
            return await connection.probe(), connection.retried

    found, retried = asyncio.run(main())
    assert found.chat and found.prompt_logprobs == 20 and retried == 3
    assert found.lacks.keys() <= {"digits"}  # which this server never has


def test_a_service_that_reports_in_a_way_of_its_own_is_quoted(faulty):
    status = {"status_code": 1008, "status_msg": "insufficient balance"}
    faulty.answer = lambda path, request: (200, {"choices": None, "base_resp": status})

    async def main():
        async with connect(faulty.url) as connection:
            with pytest.raises(UnusableError, match="insufficient balance") as caught:
                await connection.probe()
            assert "\n" not in str(caught.value)

    asyncio.run(main())


CHAT = Chat(({"role": "user", "content": "x"},), max_tokens=50)


def asked(faulty, chat=CHAT, times=1, able=None):
    """The answers to a chat, or the errors, from a server that was not probed if `able` is given"""

    async def main():
        async with connect(faulty.url) as connection:
            connection.capabilities = able or await connection.probe()
            return await asyncio.gather(*[connection.ask(chat)] * times, return_exceptions=True)

    return asyncio.run(main())


@pytest.mark.parametrize("shape", SHAPES)
def test_an_answer_may_be_written_in_many_ways(faulty, shape):
    faulty.shape = shape
    faulty.content = None  # answers that differ
    assert [answer.text for answer in asked(faulty)] == ["cities and tools"]
    if shape == "stream":
        [answer] = asked(faulty, replace(CHAT, integers=True))
        assert [token.text for token in answer.tokens] == [answer.text] and answer.text.isdigit()
        [read] = asked(faulty, simulator.reading("rivers", [" a", "\n"], 9))
        assert (read.log_probabilities[:, [3, 6]] == -1.0).all()


COUNTS = [10**30, 2**53 + 1, -1, math.nan, math.inf, "many", True, None, 0.5, [], {}]


@pytest.mark.parametrize("count", COUNTS)
def test_counts_of_tokens_that_can_not_be_are_not_believed(faulty, count):
    faulty.usage = {
        "prompt_tokens": count,
        "completion_tokens": count,
        "prompt_tokens_details": {"cached_tokens": count},
    }
    able = Capabilities(chat=True)
    [answer] = asked(faulty, able=able)
    assert answer.usage == Usage(estimate(CHAT), CHAT.max_tokens)
    faulty.usage = {"prompt_tokens": 30, "completion_tokens": count}
    [answer] = asked(faulty, able=able)
    assert answer.usage == Usage(30, 0)
    faulty.usage = {"prompt_tokens": 2**53, "completion_tokens": 7.0}
    [answer] = asked(faulty, able=able)
    assert answer.usage == Usage(2**53, 7)


def test_a_server_that_drops_most_of_a_prompt_is_warned_of_once(faulty):
    able = Capabilities(chat=True)
    prompt = "The river is high and the old mill stands in the water. " * 100
    long = Chat(({"role": "user", "content": prompt},), max_tokens=50)
    chinese = Chat(
        ({"role": "user", "content": "\u6cb3\u6c34" * 1000 + "word " * 100},), max_tokens=50
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asked(faulty, long, able=able)
        faulty.context = 512
        assert not isinstance(asked(faulty, chinese, able=able)[0], Warning)
        asked(faulty, able=able)  # short enough
    with pytest.warns(UserWarning) as caught:
        answers = asked(faulty, long, times=3, able=able)
    assert [answer.text for answer in answers] == ["rivers"] * 3
    [warning] = [each for each in caught if each.category is UserWarning]
    said = str(warning.message)
    assert said.startswith(f"{faulty.url} counted 512 tokens in a prompt of about 1,")


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, 10**400])
@pytest.mark.parametrize(
    "name", ["concurrency", "requests_per_minute", "tokens_per_minute", "timeout"]
)
def test_numbers_are_above_0_and_not_beyond_all_bounds(name, value):
    with pytest.raises(UsageError, match=f"{name.replace('_', ' ')} has to be above 0"):
        connect("http://127.0.0.1:1/v1", **{name: value})


def test_a_proxy_that_is_not_there_is_named_as_the_reason(nowhere, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", nowhere.removesuffix("/v1"))
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    message = error_of("http://192.0.2.1:8000/v1", UnusableError)
    assert message.startswith("the proxy on the way to http://192.0.2.1:8000/v1 is not reached")


def test_a_process_that_has_too_many_files_open_says_so():
    async def main():
        async with connect("http://127.0.0.1:1/v1") as connection:
            too_many = OSError(errno.EMFILE, "Too many open files")
            key = SimpleNamespace(host="127.0.0.1", port=1, ssl=False, is_ssl=False)
            for error in (too_many, aiohttp.ClientConnectorError(key, too_many)):
                found = connection._http._lost(error)
                assert type(found) is Unanswered
                assert "this process has too many files open" in str(found)
            other = connection._http._lost(httpx2.TooManyRedirects("Exceeded"))
            assert str(other).endswith("sent no response that can be read: Exceeded")

    asyncio.run(main())


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
