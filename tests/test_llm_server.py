"""The server connection: against a small server with faults, and against a real vLLM.

The latter, marked `server`, is run by tests/server.sh.
"""

import asyncio
import os
import socket

import numpy as np
import pytest
from faulty_server import Faulty

from fastexplain.errors import LLMError
from fastexplain.llm import connect
from fastexplain.prompts import simulator
from fastexplain.simulate import expectation, simulate

KEY = "sk-a-key-that-must-not-show"
TOKENS = [
    " Grandma",
    " hung",
    " the",
    " copper",
    " pan",
    "\n",
    "<|im_end|>",
    "\t",
    "�",
    "😀",
    "café",
]


@pytest.fixture
def faulty():
    server = Faulty()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def asked(url, call, model="m"):
    async def main():
        async with connect(model, base_url=url) as connection:
            return await call(connection)

    return asyncio.run(main())


def error_of(url, call, model="m"):
    with pytest.raises(LLMError) as caught:
        asked(url, call, model)
    error = caught.value
    assert "\n" not in str(error)
    assert KEY not in str(error)
    # A traceback shows causes; those of the client hold the request with its headers.
    assert error.__cause__ is None and (error.__suppress_context__ or error.__context__ is None)
    return str(error)


def ask(connection):
    return connection.generate([{"role": "user", "content": "x"}], max_tokens=5)


def predict(connection):
    return simulate("rivers", TOKENS, connection)


def test_a_chat_is_answered(faulty):
    assert asked(faulty.url, ask) == "rivers"
    path, request, authorization = faulty.requests[0]
    assert path == "/v1/chat/completions"
    assert (request["model"], request["max_tokens"], request["temperature"]) == ("m", 5, 0)
    assert authorization == f"Bearer {KEY}"


def test_values_come_from_the_listed_integers(faulty):
    assert asked(faulty.url, predict) == pytest.approx([4.5] * len(TOKENS))
    assert [r["max_tokens"] for _, r, _ in faulty.requests] == [1, 1]


@pytest.mark.parametrize("bos", ["", "<s>"])
@pytest.mark.parametrize(
    ("token", "largest"), [(r"\t|\n|\d|[^\t\n\d]+", 9), (r"\t|\n|\d+|[^\t\n\d]+", 10)]
)
def test_the_tokenizer_is_learnt_from_an_echo(faulty, token, bos, largest):
    faulty.token, faulty.bos = token, bos
    assert asked(faulty.url, lambda connection: connection.largest_integer()) == largest
    asked(faulty.url, predict)
    assert f" {largest} is as strongly" in faulty.requests[-1][1]["prompt"]


def test_ten_does_not_count_as_one(faulty):
    faulty.token, faulty.listed = r"\t|\n|\d+|[^\t\n\d]+", {"10": -0.1}
    assert asked(faulty.url, predict) == pytest.approx([10.0] * len(TOKENS))


def test_a_place_without_any_integer_is_missing(faulty):
    faulty.listed = {"unknown": -0.1, " 3": -2.0}
    assert np.isnan(asked(faulty.url, predict)).all()


@pytest.mark.parametrize("token", [r"\t\w+|\n|[^\t\n]+", r"\t\d|\t|\n|\d|[^\t\n\d]+"])
def test_a_tokenizer_that_joins_tabs_is_refused(faulty, token):
    faulty.token = token
    assert "behind a tab" in error_of(faulty.url, predict)


def test_a_tokenizer_that_joins_tabs_to_words_only_is_refused(faulty):
    faulty.token = r"\tunknown|\t|\n|\d|[^\t\n\d]+"
    assert "joins a tab" in error_of(faulty.url, predict)


def test_offsets_that_are_not_of_characters_are_noticed(faulty):
    faulty.bos = "R"  # as the prompt does not begin, but counted in no offset
    plain = Faulty.answer

    def shifted(path, request):
        status, body = plain(faulty, path, request)
        logprobs = body["choices"][0]["logprobs"]
        logprobs["text_offset"] = [max(0, o - 1) for o in logprobs["text_offset"]]
        return status, body

    faulty.answer = shifted
    assert "behind a tab" in error_of(faulty.url, predict)


def test_fewer_alternatives_are_asked_for_where_twenty_are_too_many(faulty):
    faulty.most_logprobs = 5
    asked(faulty.url, predict)
    assert [r["logprobs"] for _, r, _ in faulty.requests] == [20, 5, 5]


def test_a_server_without_prompt_log_probabilities_says_what_it_lacks(faulty):
    faulty.echoes = False
    assert "log-probabilities of prompts" in error_of(faulty.url, predict)
    faulty.status, faulty.body = 400, {"error": {"message": "echo is not supported"}}
    message = error_of(faulty.url, predict)
    assert "echo is not supported" in message and "simulate with vLLM" in message


def test_a_website_is_not_an_api(faulty):
    faulty.answer = lambda path, request: (200, "<html>welcome</html>")
    for call in (ask, predict):
        assert "not as an OpenAI-compatible API" in error_of(faulty.url, call)


def test_no_server_at_the_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    for call in (ask, predict):
        message = error_of(url, call)
        assert message.startswith(f"no server answers at {url}")


def test_a_model_that_the_server_does_not_have(faulty):
    for call in (ask, predict):
        assert error_of(faulty.url, call, "n").endswith("has no model 'n'; it has: m")


def test_an_address_that_is_not_an_api(faulty):
    address = faulty.url.removesuffix("/v1")
    faulty.status, faulty.body = 404, {"detail": "Not Found"}
    faulty.http.RequestHandlerClass.do_GET = lambda handler: handler.reply(404, {})
    assert "most addresses end in /v1" in error_of(address, ask)


def test_a_refused_key_is_not_repeated(faulty, monkeypatch):
    faulty.status = 401
    faulty.body = {"error": {"message": f"Incorrect API key provided: {KEY}"}}
    assert "refused the key in OPENAI_API_KEY" in error_of(faulty.url, ask)
    monkeypatch.delenv("OPENAI_API_KEY")
    assert "wants a key; set OPENAI_API_KEY" in error_of(faulty.url, ask)


def test_the_key_shows_nowhere(faulty):
    faulty.status = 422
    faulty.body = {"error": {"message": f"no good: {KEY}\nreally"}}
    assert "no good: *** really" in error_of(faulty.url, ask)
    connection = connect("m", base_url="http://user:secret@127.0.0.1:1/v1")
    assert repr(connection) == "ServerConnection('m', 'http://127.0.0.1:1/v1')"


def test_a_key_is_needed_for_openai_only(monkeypatch, faulty):
    monkeypatch.delenv("OPENAI_API_KEY")
    assert asked(faulty.url, ask) == "rivers"
    with pytest.raises(LLMError, match="set OPENAI_API_KEY"):
        connect("gpt-x")
    with pytest.raises(LLMError, match="http://host:port/v1"):
        connect("m", base_url="localhost:8000")


VLLM = os.environ.get("FASTEXPLAIN_TEST_SERVER", "")
needs_vllm = pytest.mark.skipif(not VLLM, reason="FASTEXPLAIN_TEST_SERVER is not set")


@pytest.mark.server
@needs_vllm
def test_vllm_and_the_local_engine_simulate_alike():
    local = connect("smollm2", local=True)
    for explanation in ["things to cook with", "“é”, and other accents — 中文", "names"]:
        prompt = simulator.prompt(explanation, TOKENS, 9)

        async def read(connection, prompt=prompt):
            return await connection.integer_log_probabilities(prompt.text, prompt.places)

        near, far = asyncio.run(read(local)), asked(VLLM, read, "smollm2")
        listed = np.isfinite(far)
        assert listed.sum() > 0.5 * listed.size
        np.testing.assert_allclose(far[listed], near[listed], atol=2e-3)

        # The server lists the likeliest 20 tokens, and integers that are not among them count
        # as 0. This small model puts little on integers, so that moves its values; cut in the
        # same way, the local engine's are the same.
        absent = np.where(listed.any(axis=1, keepdims=True), -np.inf, np.nan)
        cut = np.where(listed, near, absent)
        values = asked(VLLM, lambda c, e=explanation: simulate(e, TOKENS, c), "smollm2")
        np.testing.assert_allclose(values, expectation(cut), atol=5e-3)
        whole = listed.all(axis=1)
        assert whole.any()
        np.testing.assert_allclose(values[whole], expectation(near)[whole], atol=5e-3)


@pytest.mark.server
@needs_vllm
def test_vllm_echoes_single_digits():
    assert asked(VLLM, lambda connection: connection.largest_integer(), "smollm2") == 9


@pytest.mark.server
@needs_vllm
def test_vllm_answers_chats_as_the_local_engine_does():
    chat = [{"role": "user", "content": "What is the capital of France? One word."}]

    def answer(connection):
        return connection.generate(chat, max_tokens=10)

    local = asyncio.run(answer(connect("smollm2", local=True)))
    assert asked(VLLM, answer, "smollm2") == local


@pytest.mark.server
@needs_vllm
def test_vllm_names_the_models_that_it_has():
    assert error_of(VLLM, ask, "absent").endswith("has no model 'absent'; it has: smollm2")
