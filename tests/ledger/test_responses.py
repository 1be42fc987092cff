"""The store of responses and the ledger; and the connection behind it."""

import asyncio
import json
from dataclasses import asdict

import numpy as np
import pytest
from faulty_server import Faulty
from hypothesis import given
from hypothesis import strategies as st

from fastexplain.errors import BudgetError, Deferred, LLMError, UnusableError
from fastexplain.ledger.budget import Budget
from fastexplain.ledger.prices import Price
from fastexplain.ledger.responses import PendingRequest, Responses
from fastexplain.ledger.stored import Meter, StoredConnection
from fastexplain.llm import Connection, connect
from fastexplain.llm.requests import (
    Answer,
    Capabilities,
    Chat,
    Distribution,
    Reading,
    Token,
    Usage,
    UselessAnswerError,
    decode,
    from_json,
    key,
    to_json,
)
from fastexplain.run.database import Database
from fastexplain.run.rows import hash_rows

CHAT = Chat(({"role": "user", "content": "é\n"},), 5)
READING = Reading("shared", " head\n", ("a\t", "b\t"), "unknown", 9)
DISTRIBUTION = Distribution(np.log(np.full((2, 10), 0.1, np.float32)), Usage(40, 1, 8))
FOUND = Capabilities(chat=True, prompt_logprobs=20, fillers=("unknown",), lacks={"schema": "no"})


class Inner(Connection):
    model, address, concurrency = "m", "here", 4

    def __init__(self, *outcomes):
        self.outcomes, self.asked, self.probed = list(outcomes), [], 0
        self.gate = None

    async def probe(self):
        self.probed += 1
        self.capabilities = FOUND
        return FOUND

    async def ask(self, request):
        self.asked.append(request)
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(0)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@pytest.fixture
def responses(tmp_path):
    with Database(tmp_path / "run.sqlite") as database:
        yield Responses(database, "now")


def same(a, b):
    if isinstance(a, Distribution):
        np.testing.assert_array_equal(a.log_probabilities, b.log_probabilities)
        return a.usage == b.usage
    return a == b


def test_places_are_where_the_fillers_begin():
    assert READING.text == "shared head\na\tunknown\nb\tunknown\n"
    assert [READING.text[place:][:7] for place in READING.places] == ["unknown"] * 2
    last = Reading("", "q\n", ("a\t",), "", 9)
    assert (last.text, last.places) == ("q\na\t", [4])


@given(st.lists(st.text(max_size=5), min_size=1), st.sampled_from(["unknown", "0", "?"]), st.text())
def test_places_follow_every_line(tokens, filler, head):
    reading = Reading("shared", head, tuple(f"{t}\t" for t in tokens), filler, 9)
    for line, place in zip(reading.lines, reading.places, strict=True):
        assert reading.text[place - len(line) : place] == line
        assert reading.text[place:].startswith(f"{filler}\n")


@pytest.mark.parametrize(
    ("request_", "response"),
    [
        (CHAT, Answer("ü", "length", (Token("\t7", {"\t7": -0.25, "8": -2.0}),), Usage(1, 2, 3))),
        (READING, DISTRIBUTION),
    ],
)
def test_what_is_stored_comes_back(responses, request_, response):
    name = key("m", request_)
    assert responses.find(name, request_) is None
    responses.add(name, "m", "simulation", response, 0.5)
    assert same(responses.find(name, request_), response)
    assert same(decode(request_, response.encode(), response.usage), response)
    assert from_json(to_json(request_)) == request_


def test_keys_tell_requests_apart():
    others = [
        CHAT,
        Chat(CHAT.messages, 6),
        Chat(CHAT.messages, 5, 0.5),
        Chat(CHAT.messages, 5, seed=1),
        Chat(CHAT.messages, 5, integers=True),
        Chat(CHAT.messages, 5, schema={"type": "object"}),
        Chat(({"role": "system", "content": "é\n"},), 5),
        READING,
        Reading("shared", " head\n", ("a\t", "b\t"), "0", 9),
        Reading("shared", " head\n", ("a\t", "b\t"), "unknown", 10),
        Reading("shared", " head\n", ("a\tunknown\nb\t",), "unknown", 9),
    ]
    names = {key(model, request) for model in ("m", "n") for request in others}
    assert len(names) == 2 * len(others)
    # The same text, however it was cut, is the same request.
    assert key("m", Reading("shared head\n", "", ("a\t", "b\t"), "unknown", 9)) == key("m", READING)


def test_the_ledger_adds_up(responses):
    responses.add("a", "m", "simulation", DISTRIBUTION, 0.5)
    responses.add("b", "m", "simulation", DISTRIBUTION, None)
    responses.add_failure("m", "simulation", Usage(5, 3), 0.25)
    responses.add_failure("m", "explanation", Usage(), 0.0)
    explanation, simulation = responses.ledger()
    assert explanation == ("now", "m", "explanation", 0, 1, 0, 0, 0, 0.0, 0)
    assert simulation == ("now", "m", "simulation", 2, 1, 85, 16, 5, 0.75, 1)


def test_capabilities_are_recorded(responses):
    assert responses.capabilities("m", "here") is None
    responses.record_capabilities("m", "here", FOUND)
    assert responses.capabilities("m", "here") == FOUND
    # A record of a version that looked for more.
    more, less = asdict(FOUND) | {"colours": [1, 2]}, asdict(FOUND)
    del less["digits"]
    for other, found in ((more, FOUND), (less, None)):  # where it looked for less, it is asked anew
        with responses.database.transaction() as sqlite:
            sqlite.execute("UPDATE connections SET capabilities = ?", (json.dumps(other),))
            sqlite.execute(hash_rows("connections", "1"))
        assert responses.capabilities("m", "here") == found


def test_what_was_answered_waits_no_longer(responses):
    rows = [PendingRequest(key("m", r), "m", "simulation", r) for r in (CHAT, READING)]
    responses.add_pending(rows)
    responses.add_pending(rows)
    assert [responses.pending(row.key) for row in rows] == rows
    responses.add(rows[1].key, "m", "simulation", DISTRIBUTION, None)
    assert [responses.pending(row.key) for row in rows] == [rows[0], None]


def ask(connection, *requests):
    async def main():
        outcomes = (connection.ask(request) for request in requests)
        return await asyncio.gather(*outcomes, return_exceptions=True)

    return asyncio.run(main())


def test_nothing_is_asked_twice(responses):
    inner, meter = Inner(Answer("1", "stop", usage=Usage(10, 2))), Meter()
    stored = StoredConnection(inner, responses, "explanation", price=Price(1, 1, 10), meter=meter)
    [first] = ask(stored, CHAT)
    [again] = ask(stored, CHAT)
    assert first == again
    assert len(inner.asked) == 1
    assert (meter.answered, meter.stored, meter.failed) == (1, 1, 0)
    assert meter.cost == pytest.approx(30e-6)
    assert responses.ledger()[0].cost == pytest.approx(30e-6)


def test_requests_alike_at_one_time_are_sent_once(responses):
    inner = Inner(Answer("1", "stop"), LLMError("no"))
    stored = StoredConnection(inner, responses, "explanation")
    assert [a.text for a in ask(stored, CHAT, CHAT, CHAT)] == ["1"] * 3
    assert [str(e) for e in ask(stored, READING, READING)] == ["no"] * 2
    assert len(inner.asked) == 2
    assert stored.meter.failed == 1


def test_a_failure_is_booked_and_asked_again(responses):
    inner = Inner(LLMError("no"), Answer("1", "stop"))
    stored = StoredConnection(inner, responses, "explanation")
    assert str(ask(stored, CHAT)[0]) == "no"
    assert ask(stored, CHAT)[0].text == "1"
    [row] = responses.ledger()
    assert (row.answered, row.failed) == (1, 1)


def test_what_is_deferred_is_not_booked(responses):
    stored = StoredConnection(Inner(Deferred("later")), responses, "explanation")
    assert isinstance(ask(stored, CHAT)[0], Deferred)
    assert responses.ledger() == [] and stored.meter.done == 0


def test_fresh_asks_once_more_and_only_once(responses):
    responses.add(key("m", CHAT), "m", "explanation", Answer("old", "stop"), None)
    inner = Inner(Answer("new", "stop"))
    stored = StoredConnection(inner, responses, "explanation", fresh=True)
    assert [ask(stored, CHAT)[0].text for _ in range(2)] == ["new", "new"]
    assert len(inner.asked) == 1


def test_a_cancelled_request_leaves_the_next_one_be(responses):
    inner = Inner(Answer("1", "stop"))
    stored = StoredConnection(inner, responses, "explanation")

    async def main():
        inner.gate = asyncio.Event()
        first = asyncio.create_task(stored.ask(CHAT))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        inner.gate.set()
        return await stored.ask(CHAT)

    assert asyncio.run(main()).text == "1"


def test_who_waits_for_the_same_answer_may_stop_waiting(responses):
    inner = Inner(Answer("1", "stop"))
    stored = StoredConnection(inner, responses, "explanation")

    async def main():
        inner.gate = asyncio.Event()
        asking, waiting = [asyncio.create_task(stored.ask(CHAT)) for _ in range(2)]
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        inner.gate.set()
        return await asking

    assert asyncio.run(main()).text == "1"


def test_an_answer_of_no_use_is_paid_for(responses):
    useless = UselessAnswerError("cut off", Usage(1000, 4000))
    inner, budget = Inner(useless, useless), Budget(0.06, None)
    stored = StoredConnection(inner, responses, "explanation", price=Price(1, 1, 10), budget=budget)
    assert str(ask(stored, CHAT)[0]) == "cut off"
    # What it cost is what the next one may cost.
    assert isinstance(ask(stored, CHAT)[0], BudgetError)
    assert budget.spent == pytest.approx(0.041) and stored.meter.cost == budget.spent
    assert (stored.meter.prompt_tokens, stored.meter.completion_tokens) == (1000, 4000)
    [row] = responses.ledger()
    assert (row.failed, row.prompt_tokens, row.cost) == (1, 1000, pytest.approx(0.041))
    assert len(inner.asked) == 1


def test_what_is_deferred_holds_its_share_of_the_budget_until_it_is_there(responses):
    inner, budget = Inner(*[Deferred("later")] * 4), Budget(1.0, 3)
    stored = StoredConnection(inner, responses, "explanation", price=Price(1, 1, 10), budget=budget)
    for _ in range(2):  # a batch that ended without an answer: noted once more
        assert all(isinstance(each, Deferred) for each in ask(stored, CHAT, READING))
    assert budget.requests == 2 and budget.spent == 0
    responses.add(key("m", CHAT), "m", "explanation", Answer("1", "stop", usage=Usage(10, 5)), None)
    assert ask(stored, CHAT, CHAT)[1].text == "1"
    assert budget.requests == 2 and budget.spent == pytest.approx(60e-6)


def test_a_budget_holds_nothing_back_for_what_failed(responses):
    inner = Inner(LLMError("no"), Answer("1", "stop", usage=Usage(10, 5)))
    budget = Budget(7e-5, None)  # room for one of them
    stored = StoredConnection(inner, responses, "explanation", price=Price(1, 1, 10), budget=budget)
    assert [type(o) for o in ask(stored, CHAT)] == [LLMError]
    assert ask(stored, CHAT)[0].text == "1"
    assert isinstance(ask(stored, READING)[0], BudgetError)
    assert len(inner.asked) == 2


def test_an_answer_is_stored_before_its_place_is_given_away(tmp_path):
    """So a command that is killed loses at most as many answers as requests may be in flight."""
    server, in_flight, path = Faulty(delay=0.001), [], tmp_path / "run.sqlite"
    server.spread = 0.005
    plain = server.answer

    def answer(path_, request):
        with Database(path, read_only=True) as seen:
            [[stored]] = seen.query("SELECT count(*) FROM responses")
        in_flight.append(len(server.requests) - stored)
        return plain(path_, request)

    server.answer = answer

    async def main(responses):
        async with connect("m", base_url=server.url, concurrency=3) as inner:
            inner.capabilities = FOUND
            both = [StoredConnection(inner, responses, purpose) for purpose in ("a", "b")]
            chats = [Chat(({"role": "user", "content": str(n)},), 5) for n in range(40)]
            await asyncio.gather(*(both[n % 2].ask(chat) for n, chat in enumerate(chats)))

    try:
        with Database(path) as database:
            asyncio.run(main(Responses(database)))
    finally:
        server.close()
    assert len(in_flight) == 40 and max(in_flight) <= 3


@pytest.mark.parametrize("finish", ["length", "MAX_TOKENS", "SAFETY", "tool_calls", "anything"])
def test_an_answer_that_is_not_finished_is_not_stored_and_asked_again(responses, finish):
    server = Faulty()
    plain = server.answer

    def unfinished(path, request):
        status, body = plain(path, request)
        body["choices"][0]["finish_reason"] = finish
        return status, body

    async def main():
        async with connect("m", base_url=server.url) as inner:
            inner.capabilities = FOUND
            stored = StoredConnection(inner, responses, "explanation")
            server.answer = unfinished
            with pytest.raises(UselessAnswerError, match=r"cut off after 5 tokens|not finished"):
                await stored.ask(CHAT)
            server.answer = plain
            return (await stored.ask(CHAT)).finish

    try:
        assert asyncio.run(main()) == "stop"
    finally:
        server.close()
    [row] = responses.ledger()
    assert (row.answered, row.failed, len(server.requests)) == (1, 1, 2)
    assert row.completion_tokens > 0 and row.prompt_tokens > 0


def needs_chats(can):
    if not can.chat:
        raise UnusableError("no chats")
    return "chats"


def test_what_a_record_lacks_is_looked_for_again(responses):
    """A server may have been started anew, in another way."""
    responses.record_capabilities("m", "here", Capabilities(prompt_logprobs=20))
    inner = Inner()
    stored = StoredConnection(inner, responses, "explanation")
    assert asyncio.run(stored.probe_for(needs_chats)) == "chats"
    assert stored.capabilities == inner.capabilities == FOUND and inner.probed == 1
    assert responses.capabilities("m", "here") == FOUND
    assert asyncio.run(stored.probe_for(needs_chats)) == "chats" and inner.probed == 1


def test_what_a_probe_does_not_find_is_not_there(responses):
    class Mute(Inner):
        async def probe(self):
            self.probed += 1
            self.capabilities = Capabilities(prompt_logprobs=20)
            return self.capabilities

    for times in (1, 2):
        inner = Mute()
        with pytest.raises(UnusableError, match="no chats"):
            asyncio.run(StoredConnection(inner, responses, "x").probe_for(needs_chats))
        assert inner.probed == 1, times


def test_a_model_in_this_process_is_looked_at_anew(responses):
    responses.record_capabilities("m", "local", Capabilities())
    inner = Inner()
    inner.address = "local"
    assert asyncio.run(StoredConnection(inner, responses, "x").probe()) == FOUND
    assert responses.capabilities("m", "local") == FOUND


def test_a_connection_is_probed_once_and_again_when_fresh(responses):
    inner = Inner()
    for _ in range(2):
        stored = StoredConnection(inner, responses, "simulation")
        assert asyncio.run(stored.probe()) == stored.capabilities == FOUND
    assert inner.probed == 1
    other = Inner()
    assert asyncio.run(StoredConnection(other, responses, "x").probe()) == other.capabilities
    assert other.probed == 0
    asyncio.run(StoredConnection(other := Inner(), responses, "x", fresh=True).probe())
    assert other.probed == 1
