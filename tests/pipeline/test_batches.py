"""Batches: files out and in, and the batch API with a command that ends anywhere."""

import asyncio
import io
import json

import planted
import pytest
from batch_server import BatchServer
from hypothesis import given
from hypothesis import strategies as st

from fastexplain.errors import Deferred, LLMError, RunError, UnusableError, UsageError
from fastexplain.ledger.prices import Price
from fastexplain.ledger.responses import PendingRequest, Responses
from fastexplain.ledger.stored import StoredConnection
from fastexplain.llm import address_of
from fastexplain.llm.openai.server import ServerConnection
from fastexplain.llm.openai.wire import THOUGHTS
from fastexplain.llm.requests import Capabilities, Chat, Reading, key
from fastexplain.pipeline.batches.client import BatchClient
from fastexplain.pipeline.batches.files import (
    OFFLINE,
    Collector,
    Ingested,
    Line,
    ingest,
    lines,
    recorded_for_files,
    split,
    write_files,
)
from fastexplain.pipeline.batches.rounds import explain_in_batches, take_answers
from fastexplain.pipeline.models import Model, Settings
from fastexplain.run.database import Database
from fastexplain.simulators.model import choose_mode


def chat(text):
    return Chat(({"role": "user", "content": text},), 5)


def waiting(texts):
    return [PendingRequest(key("m", chat(t)), "m", "explanation", chat(t)) for t in texts]


def ingested(file, responses, prices=None):
    found = Ingested()
    ingest(file, responses, {}, prices or {}, found)
    return found


def answer(name, text="rivers", **response):
    message = {"role": "assistant", "content": text}
    body = {
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2},
    }
    given = {"status_code": 200, "body": body, **response}
    return json.dumps({"custom_id": name, "response": given, "error": None}).encode() + b"\n"


@pytest.fixture
def database(tmp_path):
    with Database(tmp_path / "run.sqlite") as opened:
        yield opened


@pytest.fixture
def responses(database):
    return Responses(database, "now")


@pytest.fixture
def server():
    serving = BatchServer()
    yield serving
    serving.close()


def test_a_request_is_noted_and_deferred(responses):
    collector = Collector("m", "here", responses, can=OFFLINE)
    with pytest.raises(Deferred):
        asyncio.run(StoredConnection(collector, responses, "explanation").ask(chat("a")))
    assert [responses.pending(name) for name in collector.noted] == waiting(["a"])


def test_a_file_holds_what_was_noted(tmp_path, responses):
    requests = waiting(["a", "b"])
    [path] = write_files(tmp_path / "x.jsonl", split(lines(requests, {"m": OFFLINE})))
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["custom_id"] for line in written] == [r.key for r in requests]
    assert {(line["method"], line["url"]) for line in written} == {("POST", "/v1/chat/completions")}
    assert written[0]["body"]["messages"] == [{"role": "user", "content": "a"}]
    assert written[0]["body"]["model"] == "m"
    assert list(tmp_path.glob("*.partial")) == []


def test_a_file_that_cannot_be_written_says_so(tmp_path):
    found = split(lines(waiting(["a"]), {"m": OFFLINE}))
    with pytest.raises(RunError, match="can't be written"):
        write_files(tmp_path / "absent" / "x.jsonl", found)


@given(
    st.lists(st.tuples(st.sampled_from("mn"), st.sampled_from(["/a", "/b"]), st.integers(1, 9))),
    st.integers(1, 4),
)
def test_files_keep_to_the_limits(sizes, most):
    found = [Line(str(i), model, end, b"x" * size) for i, (model, end, size) in enumerate(sizes)]
    files = list(split(found, most_requests=most, most_bytes=12))
    assert sorted(line.key for held in files for line in held) == sorted(line.key for line in found)
    for held in files:
        assert len({(line.model, line.endpoint) for line in held}) == 1
        assert 0 < len(held) <= most
        assert sum(len(line.content) for line in held) <= 12


def test_a_request_that_no_file_can_hold_is_named():
    with pytest.raises(RunError, match="13 bytes"):
        list(split([Line("a", "m", "/a", b"x" * 13)], most_bytes=12))


def test_answers_are_stored_and_a_file_may_come_twice(responses):
    requests = waiting(["a", "b", "c"])
    responses.add_pending(requests)
    a, b, c = (r.key for r in requests)
    error = {"error": {"message": "too\nhard"}}
    file = (
        answer(b, "This neuron reacts to b")
        + b"\n{broken\n[1]\n"
        + answer("0" * 32)
        + answer(c, status_code=429, body=error)
    )
    found = ingested(io.BytesIO(file), responses, {"m": Price(1, 1, 10)})
    reason = "the batch has no answer: too hard (status 429)"
    assert found == Ingested(answered=1, failed=1, unknown=1, unreadable=2, reason=reason)
    assert found.line() == (
        f"answers stored: 1; requests failed: 1 ({reason}); "
        "lines that answer nothing that waits: 1; lines that can't be read: 2"
    )
    assert responses.find(b, chat("b")).text == "This neuron reacts to b"
    assert responses.pending(c).failure == "the batch has no answer: too hard (status 429)"
    assert responses.pending(a).failure is None
    [row] = responses.ledger()
    assert (row.answered, row.prompt_tokens, row.cost) == (1, 10, pytest.approx(30e-6))
    ingested(io.BytesIO(answer(b)), responses)
    assert responses.ledger() == [row]

    # What failed is told once asked, and asked again by the next command.
    collector = Collector("m", "here", responses, can=OFFLINE)
    with pytest.raises(LLMError, match="too hard"):
        asyncio.run(collector.ask(chat("c")))
    responses.forget_failures()
    with pytest.raises(Deferred):
        asyncio.run(collector.ask(chat("c")))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"response": None, "error": {"code": "expired", "message": "late"}}, "late"),
        ({"response": {"status_code": 200, "body": None}, "error": None}, "no reason"),
        ({"response": {"status_code": 200, "body": {"choices": []}}}, "choice"),
        ({"error": "gone"}, "gone"),
        # As vLLM's run-batch writes it.
        (
            {
                "response": {"status_code": 400, "request_id": "vllm-batch-0", "body": None},
                "error": {"error": {"message": "too long", "type": "BadRequest", "code": 400}},
            },
            "too long (status 400)",
        ),
    ],
)
def test_a_line_without_an_answer_is_a_failure(responses, line, reason):
    [request] = waiting(["a"])
    responses.add_pending([request])
    text = json.dumps({"custom_id": request.key, **line}).encode()
    assert ingested([text], responses).failed == 1
    assert reason in responses.pending(request.key).failure


def test_what_a_batch_did_not_get_to_still_waits(responses):
    requests = waiting(["a", "b"])
    responses.add_pending(requests)
    codes = ("batch_expired", "batch_cancelled")
    file = [
        json.dumps({"custom_id": r.key, "response": None, "error": {"code": code}}).encode()
        for r, code in zip(requests, codes, strict=True)
    ]
    found = ingested(file, responses)
    assert found == Ingested(left=2)
    assert found.line() == "answers stored: 0; requests not got to: 2"
    assert [responses.pending(r.key).failure for r in requests] == [None, None]


def test_a_line_nested_too_deep_is_no_answer(responses):
    assert ingested([b"[" * 100_000], responses).unreadable == 1


def test_an_offline_engine_is_asked_in_chats_only(responses):
    can = recorded_for_files(responses, "m", "here")
    with pytest.raises(UnusableError, match=r"echo.*offline engines hold chats only"):
        choose_mode(can, "prompt-logprobs", "expected")
    assert choose_mode(can, None, "expected") == "generated-logprobs"

    probed = Capabilities(limit="max_completion_tokens", prompt_logprobs=20, fillers=("unknown",))
    responses.record_capabilities("m", "here", probed)
    can = recorded_for_files(responses, "m", "here")
    assert can.limit == "max_completion_tokens" and not can.chat_logprobs
    assert not (can.prompt_logprobs or can.next_logprobs or can.fillers)


class Ended(Exception):
    """Stands for the end of the process."""


def submit_and_finish(
    url, responses, texts=(), reported=None, waits=None, prices=None, model="m", **options
):
    """What a command does: submit what is new, wait for all, store the answers."""

    async def sleep(seconds):
        if waits is not None:
            waits.append(seconds)

    async def main():
        async with ServerConnection(model, url, retries=2) as connection:
            report = (lambda line: None) if reported is None else reported.append
            can = {model: OFFLINE}
            client = BatchClient(
                connection, responses, can, prices or {}, report, sleep=sleep, **options
            )
            requests = waiting(texts)
            responses.add_pending(requests)
            await client.submit(requests)
            return await client.finish()

    return asyncio.run(main())


def test_a_batch_is_answered(server, responses):
    server.states = ["in_progress", "in_progress", "finalizing", "completed"]
    server.broken = {1}
    reported, waits = [], []
    prices = {"m": Price(1, 1, 1)}
    assert submit_and_finish(server.url, responses, "abc", reported, waits, prices)
    found = [responses.find(r.key, r.request) for r in waiting("abc")]
    failures = [getattr(responses.pending(r.key), "failure", None) for r in waiting("abc")]
    assert sum(f is not None for f in found) == 2
    assert [f for f in failures if f] == ["the batch has no answer: too hard (status 400)"]
    assert responses.batches() == []
    assert waits == [5.0, 10.0, 20.0]
    assert reported[0] == "batch batch-0: 3 requests submitted"
    assert reported[-1].startswith(
        "batch batch-0 completed: answers stored: 2; requests failed: 1 ("
    )
    assert responses.ledger()[0].cost > 0


@pytest.mark.parametrize("step", range(6))
@pytest.mark.parametrize("after", [False, True])
def test_a_command_that_ends_anywhere_goes_on_from_there(server, responses, step, after):
    """It ends before or after each write to the database; nothing is sent twice or lost."""
    steps = 0

    def ending(method):
        def wrapped(*arguments, **options):
            nonlocal steps
            steps += 1
            if steps - 1 == step and not after:
                raise Ended
            result = method(*arguments, **options)
            if steps - 1 == step:
                raise Ended
            return result

        return wrapped

    names = ("add_batch", "record_batch", "add", "end_batch")
    for name in names:
        setattr(responses, name, ending(getattr(responses, name)))
    texts = "ab"
    with pytest.raises(Ended):
        submit_and_finish(server.url, responses, texts)
    for name in names:
        delattr(responses, name)
    begun = step > 0 or after
    submit_and_finish(server.url, responses, "" if begun else texts)
    assert all(responses.find(r.key, r.request) for r in waiting(texts))
    assert (server.uploads, server.creations) == (1, 1)
    assert responses.batches() == [] and responses.ledger()[0].answered == 2


@pytest.mark.parametrize("fault", [500, -500])
def test_faults_of_the_api_are_tried_again(server, responses, fault):
    """Even where all was done, and only the answer got lost, nothing is made twice."""
    # Behind a fault the server is first asked what it has.
    server.fail_next = [fault, 0, 0, fault, 0, 0, 503, 0] if fault > 0 else [fault, 0, fault, 0]
    waits = []
    assert submit_and_finish(server.url, responses, "ab", waits=waits)
    assert server.fail_next == [] and waits
    assert (server.uploads, server.creations) == (1, 1)
    assert all(responses.find(r.key, r.request) for r in waiting("ab"))


def test_lists_without_pages_end(server, responses):
    """Some servers list all, and neither say that there is no more nor heed where to begin."""
    server.pages = False
    assert submit_and_finish(server.url, responses, "ab")
    server.fail_next = [500, 0, 0, 500]
    assert submit_and_finish(server.url, responses, "cd")
    assert (server.fail_next, server.uploads, server.creations) == ([], 2, 2)


def test_a_batch_without_a_state_is_not_waited_for(server, responses):
    server.states = ["validating", None]
    with pytest.raises(LLMError, match=r"127\.0\.0\.1.* names no state of the batch batch-0"):
        submit_and_finish(server.url, responses, "ab")
    assert [batch.batch for batch in responses.batches()] == ["batch-0"]


def test_a_server_that_keeps_failing_is_given_up_and_goes_on_later(server, responses):
    server.fail_next = [500, 0, 500, 0, 500]
    with pytest.raises(LLMError, match="a fault: 500"):
        submit_and_finish(server.url, responses, "ab")
    assert [batch.file for batch in responses.batches()] == [None]
    assert submit_and_finish(server.url, responses)
    assert (server.uploads, server.creations) == (1, 1)


def test_answers_that_break_off_are_fetched_again(server, responses):
    server.cut_next = 2
    assert submit_and_finish(server.url, responses, "ab")
    assert responses.ledger()[0].answered == 2
    server.cut_next = 3
    with pytest.raises(LLMError, match="broke off"):
        submit_and_finish(server.url, responses, "cd")
    assert submit_and_finish(server.url, responses)
    assert (server.creations, responses.ledger()[0].answered) == (2, 4)


@pytest.mark.parametrize("faults", [[404], [0, 404]])
def test_a_server_without_batches_says_so(server, responses, faults):
    server.fail_next = faults
    with pytest.raises(LLMError, match=r"127\.0\.0\.1.*a fault: 404"):
        submit_and_finish(server.url, responses, "a")
    assert responses.batches() == []


def test_a_batch_that_is_refused_says_why_and_is_done_with(server, responses):
    server.states = ["validating", "failed"]
    with pytest.raises(LLMError, match="refused the batch batch-0: line 1 is no good"):
        submit_and_finish(server.url, responses, "ab")
    assert responses.batches() == []


def unanswered(texts, responses):
    """Those of the texts whose requests have no answer yet."""
    return [t for t, r in zip(texts, waiting(texts), strict=True) if not find(r, responses)]


def find(request, responses):
    return responses.find(request.key, request.request)


def test_what_an_expired_batch_left_out_is_submitted_again(server, responses):
    server.states, server.unanswered = ["expired"], {0}
    assert submit_and_finish(server.url, responses, "ab")
    [text] = unanswered("ab", responses)
    server.unanswered = set()
    assert submit_and_finish(server.url, responses, text)
    assert unanswered("ab", responses) == [] and server.creations == 2


def test_a_cancelled_batch_is_not_submitted_again_by_itself(server, responses):
    server.states, server.unanswered = ["cancelled"], {0}
    with pytest.raises(LLMError, match="was cancelled"):
        submit_and_finish(server.url, responses, "ab")
    assert len(unanswered("ab", responses)) == 1
    assert responses.batches() == [] and server.creations == 1


def test_batches_wait_for_room_in_the_queue(server, responses):
    server.room, reported = 4, []
    assert submit_and_finish(server.url, responses, "abcdefgh", reported, most_requests=2)
    assert unanswered("abcdefgh", responses) == []
    assert (server.uploads, server.creations) == (4, 6)
    assert "batch batch-2 has to wait: the queue is full" in reported


def test_a_batch_that_the_queue_never_has_room_for_is_cut_up(server, responses):
    server.room = 3
    asked = "abcdefgh"
    sizes = []

    async def main():
        async with ServerConnection("m", server.url) as connection:
            client = BatchClient(connection, responses, {"m": OFFLINE}, {}, lambda line: None)
            while left := unanswered(asked, responses):
                requests = waiting(left)
                responses.add_pending(requests)
                await client.submit(requests)
                assert await client.finish()
                sizes.append(len(unanswered(asked, responses)))

    asyncio.run(main())
    assert sizes == [8, 8, 0]
    server.room = 0
    with pytest.raises(LLMError, match="the queue is full"):
        submit_and_finish(server.url, responses, "i")
    assert responses.batches() == []


def test_a_batch_that_the_server_does_not_know_says_so(server, responses):
    server.fail_next = [0, 0, 404]
    with pytest.raises(LLMError, match="knows no batch batch-0; use the key"):
        submit_and_finish(server.url, responses, "a")
    assert submit_and_finish(server.url, responses) and server.creations == 1


def test_answers_that_the_server_keeps_no_longer_are_asked_again(server, responses):
    server.fail_next, reported = [0, 0, 0, 404], []
    assert not submit_and_finish(server.url, responses, "a", reported)
    assert "the server has no file file-1; its answers are asked for again" in reported
    assert responses.batches() == [] and unanswered("a", responses) == ["a"]


def test_batches_of_other_models_are_left_be(server, responses):
    server.fail_next = [500, 0, 500, 0, 500]
    with pytest.raises(LLMError):
        submit_and_finish(server.url, responses, "a")
    assert not submit_and_finish(server.url, responses, model="other")
    assert [batch.model for batch in responses.batches()] == ["m"]


def settings(url, **more):
    model = Model("m", url)
    return Settings(model, model, **more)


def in_batches(*arguments, **options):
    return asyncio.run(explain_in_batches(*arguments, **options))


NEURONS = [planted.CAT, planted.DIGIT, planted.ALWAYS]


def test_neurons_are_explained_in_two_batches(server, run):
    neurons = [run.neuron(f"0:{n}").id for n in NEURONS]
    outcome = in_batches(run, neurons, settings(server.url))
    assert (outcome.explained, outcome.finished) == (3, True)
    kinds = [state["endpoint"] for state in server.batches.values()]
    assert kinds == ["/v1/chat/completions", "/v1/completions"]
    with run.database() as database:
        for neuron in neurons:
            [row] = database.explanations(neuron)
            assert row.text and row.simulation
            assert len(database.simulated(row.id, row.simulator, row.simulation)) == 10
        ledger = Responses(database).ledger()
    assert {row.purpose: row.answered for row in ledger}["explanation"] == 3
    in_batches(run, neurons, settings(server.url))
    assert server.creations == 2


def test_judges_are_asked_in_batches_and_one_that_has_no_answer_costs_no_other(server, run):
    neurons = [run.neuron(f"0:{planted.MOON_AFTER_BRIGHT}").id]
    server.faulty.judge = lambda explanation, text: "bright<<moon" in text or "brightmoon" in text
    judged = settings(server.url, scorers=["detection", "intruder"])
    failures = []

    def explained():
        failures.clear()
        return in_batches(run, neurons, judged, on_failure=lambda n, why: failures.append(why))

    def scores():
        with run.database() as database:
            [row] = database.explanations(neurons[0])
            found = {(s.scorer, s.measured.measure): s.measured for s in database.scores(row.id)}
            assert database.query("SELECT count(*) FROM simulations") == [(0,)]
        return found

    server.broken = {1}
    assert (explained().explained, server.creations) == (1, 2)
    partial = scores()["detection", "balanced_accuracy"]
    assert "1 of 5 questions have no answer: the batch has no answer: too hard" in partial.reason
    server.broken = set()
    assert explained().finished and not failures
    found = scores()
    assert found["detection", "balanced_accuracy"][:4] == (*partial[:2], 1, 25)
    assert found["intruder", "accuracy"].value == 1
    sent = server.creations
    assert explained().finished and server.creations == sent and scores() == found


def test_an_address_may_be_written_in_other_ways(server, run):
    neurons = [run.neuron(f"0:{n}").id for n in NEURONS]
    url = server.url.replace("127.0.0.1", "LOCALHOST") + "/"
    assert in_batches(run, neurons, settings(url)).explained == 3
    with run.database() as database:
        assert Responses(database).capabilities("m", address_of(url, local=False)) is not None


def test_a_request_that_a_batch_cannot_answer_costs_only_itself(server, run):
    server.broken, failures = {0}, []
    neurons = [run.neuron(f"0:{n}").id for n in NEURONS]
    outcome = in_batches(
        run, neurons, settings(server.url), on_failure=lambda neuron, why: failures.append(why)
    )
    assert (outcome.explained, outcome.finished) == (2, True)
    assert all("too hard" in failure for failure in failures) and len(failures) == 2
    server.broken = set()
    assert in_batches(run, neurons, settings(server.url)).explained == 3


def test_a_limit_on_requests_holds_in_batches(server, run):
    neurons = [run.neuron(f"0:{n}").id for n in NEURONS]
    outcome = in_batches(run, neurons, settings(server.url, max_requests=2))
    assert "`max_requests`" in str(outcome.stopped)
    written = [f for f in server.files.values() if f["filename"].startswith("fastexplain")]
    assert sum(len(f["content"].splitlines()) for f in written) == 2


def test_files_for_an_offline_engine_and_back(server, run, tmp_path):
    """Round by round; the engine is the server's way to answer."""
    neurons = [run.neuron(f"0:{n}").id for n in NEURONS]
    asked, answers = tmp_path / "asked.jsonl", tmp_path / "answers.jsonl"
    counts, reported = [], []
    for _ in range(3):
        outcome = in_batches(
            run, neurons, settings("http://elsewhere/v1"), asked, report=reported.append
        )
        if outcome.finished:
            break
        requests = [json.loads(line) for line in asked.read_text().splitlines()]
        counts.append(len(requests))
        with answers.open("wb") as file:
            for line in requests:
                _, body = server.faulty.answer(line["url"], line["body"])
                response = {"status_code": 200, "body": body}
                answered = {"custom_id": line["custom_id"], "response": response}
                file.write(json.dumps(answered).encode() + b"\n")
        found = take_answers(run, answers, Price(1, 1, 1))
        assert (found.answered, found.failed) == (len(requests), 0)
    assert outcome.finished and outcome.explained == 3
    assert reported[-1].startswith("Nothing is left to ask")
    assert counts[0] == 3 and counts[1] > 10 and len(counts) == 2
    with run.database() as database:
        assert all(database.explanations(n)[0].scores.excerpts_top == 5 for n in neurons)


def test_an_offline_engine_whose_model_thinks_is_left_room_from_the_second_file_on(run, tmp_path):
    neuron = run.neuron(f"0:{NEURONS[0]}").id
    asked, answers = tmp_path / "asked.jsonl", tmp_path / "answers.jsonl"
    limits = []
    for said in ("<think>Hm, so", "<think>Hm.</think>cats"):
        outcome = in_batches(run, [neuron], settings("http://elsewhere/v1"), asked)
        assert not outcome.finished
        [line] = [json.loads(line) for line in asked.read_text().splitlines()]
        limits.append(line["body"]["max_tokens"])
        finish = "stop" if "</think>" in said else "length"
        choice = {"message": {"content": said}, "finish_reason": finish}
        response = {"status_code": 200, "body": {"choices": [choice]}}
        answers.write_text(json.dumps({"custom_id": line["custom_id"], "response": response}))
        found = take_answers(run, answers, None)
        assert found.answered == (finish == "stop")
    assert limits[1] == limits[0] + THOUGHTS


def test_a_file_that_answers_nothing_is_refused(run, tmp_path):
    with pytest.raises(UsageError, match="can't be read"):
        take_answers(run, tmp_path / "absent", None)
    (tmp_path / "x").write_text("hello\n")
    with pytest.raises(UsageError, match="no output of a batch"):
        take_answers(run, tmp_path / "x", None)
    neuron = run.neuron(f"0:{NEURONS[0]}").id
    asked = tmp_path / "asked.jsonl"
    in_batches(run, [neuron], settings("http://elsewhere/v1"), asked)
    with pytest.raises(UsageError, match="made from a file of requests"):
        take_answers(run, asked, None)


def test_batches_are_for_servers(run):
    here = Model("smollm2", local=True)
    with pytest.raises(UsageError, match="drop `batch`"):
        in_batches(run, [], Settings(here, here))
    with pytest.raises(UsageError, match="`fresh` and batches"):
        in_batches(run, [], settings("http://x/v1", fresh=True))


def test_readings_go_to_completions():
    reading = Reading("a", "b\n", ("c\t",), "unknown", 9)
    can = Capabilities(prompt_logprobs=20, fillers=("unknown",))
    [line] = lines([PendingRequest("k", "m", "simulation", reading)], {"m": can})
    assert line.endpoint == "/v1/completions"
