"""What the probe finds out about servers of different kinds, simulated here without HTTP."""

import asyncio
import json
import re

import pytest
from faulty_server import Faulty

from fastexplain.errors import LLMError, UnusableError
from fastexplain.llm import connect
from fastexplain.llm.openai.failures import Broken, Refused, Unanswered
from fastexplain.llm.openai.probe import probe
from fastexplain.llm.requests import Capabilities
from fastexplain.prompts import simulator
from fastexplain.simulators.model import choose_mode

SINGLE_DIGITS = r"\t|\n|\d|[^\t\n\d]+"
WHOLE_NUMBERS = r"\t|\n|\d+|[^\t\n\d]+"
EVERYTHING = Capabilities(
    chat=True,
    chat_logprobs=20,
    schema="json_schema",
    next_logprobs=20,
    digits=tuple(range(100, 110)),
    prompt_logprobs=20,
    largest=9,
    fillers=("unknown", "0", "?"),
    lacks={},
)


def refuse(why, status=400):
    raise Refused(f"http://x: {why} (status {status})", status)


class Server:
    """A server with a model that has seen a text's repetitions coming, and what it can do.

    Attributes:
        token, bos: the tokenizer, as a regular expression, and what it puts before a prompt.
        most, most_in_chats: alternatives that may be asked for.
        shift: of the alternatives of echoes.
        alternatives: whether there are any, besides each token itself.
        echo: "given", "refused", or "ignored".
        completions, chats: "given", "refused" (no such address), "bare" (without log-probabilities,
            which may be asked for), or "broken" (answers 500 to whatever asks for them).
        ids: whether it knows tokens by ids.
        places: what it lists behind a tab in prompts longer than the probe's own, if that differs.
        content: whether completions list their alternatives in the form for chats.
        refused: parameters of chats that it refuses.
        system: whether a chat may begin with a system message.
        thoughts: how it tells what it thinks before it answers in a chat, for which it takes 100
            tokens: "told" apart, "tagged", "ended" (the prompt ends with the first tag), or None.
        wordy: whether its answers in chats take 1,000 tokens.
        forms: the response formats that it follows, and those that it refuses; others it ignores.
        certain: whether the model sees repetitions coming.
        said: what it answers to chats.
    """

    def __init__(self, **changes):
        self.token, self.bos = SINGLE_DIGITS, ""
        self.most = self.most_in_chats = 20
        self.shift = 0
        self.alternatives = self.certain = self.ids = True
        self.places = None
        self.echo = self.completions = self.chats = "given"
        self.content = False
        self.refused = ()
        self.system, self.thoughts, self.wordy = True, None, False
        self.forms, self.unknown_forms = ("json_schema", "json_object"), ()
        self.said = "10"
        self.requests = []
        for name, value in changes.items():
            assert hasattr(self, name)
            setattr(self, name, value)

    async def send(self, path, body):
        self.requests.append((path, body))
        await asyncio.sleep(0)
        if path == "/chat/completions":
            return self.chat(body)
        assert path == "/completions" and body["max_tokens"] == 1
        return self.complete(body)

    def chat(self, body):
        if self.chats == "refused":
            refuse("Not Found", 404)
        for name in self.refused:
            if name in body:
                refuse(f"Unsupported parameter: '{name}'")
        if body.get("top_logprobs", 0) > self.most_in_chats:
            refuse("top_logprobs is too large")
        if body.get("logprobs") and self.chats == "broken":
            raise LLMError("http://x: logits_all=False (status 500) (tried 7 times)")
        if not self.system and body["messages"][0]["role"] == "system":
            refuse("System role not supported")
        message = {"role": "assistant", "content": self.written(body)}
        room = body.get("max_tokens") or body["max_completion_tokens"]
        if self.thoughts is not None:
            self.think(message, done=room >= 100)
        done = room >= 1000 * self.wordy + 100 * (self.thoughts is not None)
        choice = {
            "message": message,
            "finish_reason": "stop" if done else "length",
            "logprobs": None,
        }
        if body.get("logprobs") and self.chats == "given":
            tokens = re.findall(self.token, message["content"])
            choice["logprobs"] = {"content": [self.spoken(token) for token in tokens]}
        return {"choices": [choice]}

    def think(self, message, done):
        said = message["content"] if done else ""
        if self.thoughts == "told":
            message |= {"content": said or None, "reasoning_content": "Hm."}
        else:
            tag = "<think>" if self.thoughts == "tagged" else ""
            message["content"] = f"{tag}Hm." + (f"</think>{said}" if done else "")

    def written(self, body):
        form = body.get("response_format")
        if form is None:
            return self.said
        kind, schema = form["type"], form.get("json_schema", form).get("schema")
        if kind == "json_object" and schema:
            kind = "json_object_schema"
        if kind in self.unknown_forms:
            refuse(f"unknown response_format {kind}")
        if kind not in self.forms:
            plain = kind == "json_object_schema" and "json_object" in self.forms
            return '{"animal": "cat"}' if plain else "```json\n{}```"
        code = schema and schema["properties"]["code"]["enum"][0]
        return json.dumps({"code": code} if schema else {"animal": "cat"})

    def spoken(self, token):
        top = [{"token": t, "logprob": p} for t, p in self.around(token).items()]
        return {"token": token, "logprob": -0.1, "top_logprobs": top}

    def around(self, token):
        return {token: -0.1, "x": -4.0, "1": -5.0} if self.alternatives else {token: -0.1}

    def complete(self, body):
        if self.completions == "refused":
            refuse("This is a chat model", 404)
        if body["logprobs"] > self.most:
            refuse("logprobs is too large")
        if self.completions == "broken":
            raise LLMError("http://x: logits_all=False (status 500) (tried 7 times)")
        if body.get("echo") and self.echo == "refused":
            refuse("Only no echo is supported")
        if isinstance(body["prompt"], list):
            texts = [self.complete(body | {"prompt": text}) for text in body["prompt"]]
            choices = [{**each["choices"][0], "index": i} for i, each in enumerate(texts)]
            return {"choices": choices[::-1]}
        tokens = [self.bos] * bool(self.bos) + re.findall(self.token, body["prompt"])
        length = len(tokens)
        tokens.append(continuation(tokens))
        rows = [self.around(token if self.certain else "y") for token in tokens]
        if body.get("echo"):
            rows = [*rows[self.shift :], *[{"x": -0.1, "z": -1.0}] * self.shift]
        # The token itself is listed in any case.
        rows = [{token: -9.0} | row for token, row in zip(tokens, rows, strict=True)]
        rows[0] = None
        if self.places and "neuron" in body["prompt"]:
            behind = [i for i, token in enumerate(tokens) if i and tokens[i - 1] == "\t"]
            rows = [
                self.places[: body["logprobs"]] if i in behind else r for i, r in enumerate(rows)
            ]
            rows = [dict(row) if isinstance(row, list) else row for row in rows]
        first = 0 if body.get("echo") and self.echo == "given" else length
        if self.ids and "logprob_token_ids" in body:
            rows[-1] = {str(number - 100): -2.0 for number in body["logprob_token_ids"]}
        choice = {"text": "".join(tokens[first:]), "logprobs": None}
        if self.completions == "given" and self.content:
            choice["logprobs"] = {"content": [self.spoken(token) for token in tokens[first:]]}
        elif self.completions == "given":
            choice["logprobs"] = {"tokens": tokens[first:], "top_logprobs": rows[first:]}
        if self.ids and body.get("return_token_ids"):
            ids = [100 + int(token) if token.isdigit() else 7 for token in tokens[:length]]
            choice["prompt_token_ids"] = ids
        return {"choices": [choice]}


def continuation(tokens, seen=8):
    """What came behind the last tokens when they came before."""
    last = tokens[-seen:]
    starts = range(len(tokens) - seen)
    return next((tokens[i + seen] for i in starts if tokens[i : i + seen] == last), "x")


def found(**changes):
    server = Server(**changes)
    return asyncio.run(probe(server.send, "m"))


def same(found, **changes):
    """Everything but for these; the reasons aside, whose names have to be these."""
    lacks = changes.pop("lacks", ())
    if not changes.get("prompt_logprobs", 1) or not changes.get("next_logprobs", 1):
        changes["digits"] = ()  # they are of use together only
    assert sorted(found.lacks) == sorted(lacks)
    assert all(reason and "\n" not in reason for reason in found.lacks.values())
    expected = Capabilities(**(vars(EVERYTHING) | changes | {"lacks": found.lacks}))
    assert found == expected
    return True


def test_a_server_that_can_do_everything():
    server = Server()
    assert asyncio.run(probe(server.send, "m")) == EVERYTHING
    assert all(body["model"] == "m" for _, body in server.requests)
    assert len(server.requests) <= 9


@pytest.mark.parametrize("bos", ["", "<s>"])
def test_a_shift_is_found(bos):
    assert same(found(shift=1, bos=bos, ids=False), shift=1, digits=(), lacks=["digits"])


def test_a_shift_that_can_not_be_told_is_not_guessed():
    capabilities = found(certain=False)
    assert same(capabilities, prompt_logprobs=0, fillers=(), lacks=["prompt_logprobs"])
    assert "where a text repeats itself" in capabilities.lacks["prompt_logprobs"]
    assert found(shift=2).prompt_logprobs == 0


def test_the_tokenizer_is_learnt_from_an_echo():
    assert same(found(token=WHOLE_NUMBERS), largest=10, digits=tuple(range(100, 111)))
    assert same(found(token=rf"\tunknown|{SINGLE_DIGITS}"), fillers=("0", "?"))
    assert same(found(token=r"\?\n|" + SINGLE_DIGITS))


def test_a_tokenizer_that_joins_tabs_with_digits_is_of_no_use_for_echoes():
    capabilities = found(token=r"\t\d|\t|\n|\d|[^\t\n\d]+")
    lacks = ["prompt_logprobs"]
    assert same(capabilities, prompt_logprobs=0, fillers=(), lacks=lacks)
    assert "no single tokens for 0 to 9 behind a tab" in capabilities.lacks["prompt_logprobs"]


@pytest.mark.parametrize("most", [19, 10, 7, 5])
def test_as_many_alternatives_as_the_server_gives(most):
    count = 10 if most >= 10 else 5
    assert same(found(most=most, most_in_chats=20), prompt_logprobs=count, next_logprobs=count)
    assert same(found(most=20, most_in_chats=most), chat_logprobs=count)


def test_a_server_that_gives_too_few_alternatives_lacks_them():
    capabilities = found(most=4)
    lacks = ["prompt_logprobs", "next_logprobs"]
    assert same(capabilities, prompt_logprobs=0, next_logprobs=0, fillers=(), lacks=lacks)
    assert "too large" in capabilities.lacks["prompt_logprobs"]


def test_tokens_without_alternatives_are_of_no_use():
    capabilities = found(alternatives=False)
    lacks = ["chat_logprobs", "prompt_logprobs", "next_logprobs"]
    changes = {"chat_logprobs": 0, "prompt_logprobs": 0, "next_logprobs": 0}
    assert same(capabilities, **changes, fillers=(), lacks=lacks)
    assert "no alternatives" in capabilities.lacks["chat_logprobs"]


PLAIN = {"prompt_logprobs": 0, "next_logprobs": 0, "fillers": ()}


def test_openai_has_chats():
    """Newer models: no completions, numbers of up to three digits as one token."""
    capabilities = found(completions="refused", token=WHOLE_NUMBERS)
    lacks = ["prompt_logprobs", "next_logprobs"]
    assert same(capabilities, **PLAIN, largest=10, lacks=lacks)
    assert "This is a chat model" in capabilities.lacks["prompt_logprobs"]


def test_openais_thinking_models_take_no_temperature():
    server = Server(completions="refused", refused=("max_tokens", "temperature", "logprobs"))
    capabilities = asyncio.run(probe(server.send, "o"))
    lacks = ["prompt_logprobs", "next_logprobs", "chat_logprobs"]
    changes = {"limit": "max_completion_tokens", "sampling": ("seed",), "chat_logprobs": 0}
    changes["thinks"] = True
    assert same(capabilities, **PLAIN, **changes, lacks=lacks)


@pytest.mark.parametrize(
    ("refused", "sampling"),
    [
        (("seed",), ("temperature",)),
        (("temperature",), ("seed",)),
        (("seed", "temperature"), ()),
    ],
)
def test_what_a_chat_may_set_is_found(refused, sampling):
    assert same(found(refused=refused), sampling=sampling)


@pytest.mark.parametrize("thoughts", ["told", "tagged", "ended"])
def test_models_that_think_are_known_by_it(thoughts):
    server = Server(thoughts=thoughts)
    assert same(asyncio.run(probe(server.send, "m")), thinks=True)
    # All but the greeting leave room for thoughts.
    limits = [body["max_tokens"] for path, body in server.requests if "chat" in path]
    assert all(limit >= 100 for limit in limits[1 + (thoughts == "ended") :])


def test_who_says_much_does_not_think():
    assert same(found(wordy=True))


def test_models_without_system_messages_get_none():
    server = Server(system=False)
    assert same(asyncio.run(probe(server.send, "m")), system=False)


def test_llama_cpp_has_no_echo():
    """Its own server lists what comes behind a text in the form for chats."""
    capabilities = found(echo="refused", content=True)
    lacks = ["prompt_logprobs"]
    assert same(capabilities, prompt_logprobs=0, fillers=(), lacks=lacks)
    assert "Only no echo is supported" in capabilities.lacks["prompt_logprobs"]
    assert found(echo="refused", token=WHOLE_NUMBERS).largest == 10


def test_an_echo_that_is_ignored_is_noticed():
    for content in (False, True):
        capabilities = found(echo="ignored", content=content)
        lacks = ["prompt_logprobs"]
        assert same(capabilities, prompt_logprobs=0, fillers=(), lacks=lacks)
        assert "not those of the prompt" in capabilities.lacks["prompt_logprobs"]


def test_log_probabilities_that_are_ignored_are_noticed():
    """Ollama's older versions, and many proxies."""
    capabilities = found(completions="bare", chats="bare")
    lacks = ["prompt_logprobs", "next_logprobs", "chat_logprobs"]
    assert same(capabilities, **PLAIN, chat_logprobs=0, lacks=lacks)
    assert set(capabilities.lacks.values()) == {"the answer came without log-probabilities"}


def test_a_server_that_fails_lacks_what_it_fails_at():
    """llama-cpp-python without --logits_all."""
    server = Server(completions="broken", chats="broken")
    capabilities = asyncio.run(probe(server.send, "m"))
    lacks = ["prompt_logprobs", "next_logprobs", "chat_logprobs"]
    assert same(capabilities, **PLAIN, chat_logprobs=0, lacks=lacks)
    asked = [body.get("top_logprobs") for path, body in server.requests if "chat" in path]
    assert asked.count(20) == 1 and 10 not in asked  # tries take long where each is repeated


@pytest.mark.parametrize(
    ("forms", "unknown", "schema"),
    [
        (("json_object_schema", "json_object"), ("json_schema",), "json_object_schema"),
        (("json_object",), ("json_schema",), "json_object"),
        (("json_object",), ("json_schema", "json_object_schema"), "json_object"),
        (("json_object",), (), "json_object"),
        ((), (), None),
        ((), ("json_schema", "json_object"), None),
    ],
)
def test_the_form_of_a_schema_is_found(forms, unknown, schema):
    capabilities = found(forms=forms, unknown_forms=unknown)
    assert same(capabilities, schema=schema, lacks=[] if schema else ["schema"])


def test_without_chats_there_is_no_more_to_ask_of_them():
    server = Server(chats="refused")
    capabilities = asyncio.run(probe(server.send, "m"))
    assert same(capabilities, chat=False, chat_logprobs=0, schema=None, lacks=["chat"])
    assert sum("chat" in path for path, _ in server.requests) == 1


@pytest.mark.parametrize("said", ["", None])
def test_a_model_without_answers_has_no_chats(said):
    capabilities = found(said=said)
    assert same(capabilities, chat=False, chat_logprobs=0, schema=None, lacks=["chat"])


def test_a_server_without_anything_says_what_it_lacks():
    with pytest.raises(UnusableError) as caught:
        found(chats="refused", completions="refused")
    message = str(caught.value)
    assert message.startswith("'m' answers neither chats nor completions with log-probabilities")
    assert "Not Found" in message and "This is a chat model" in message
    assert message.endswith("use a server that does, such as vLLM, or a local model")


def test_what_is_wrong_with_every_request_ends_the_probe():
    sent = []

    async def send(path, body):
        sent.append(path)
        if len(sent) < 3:
            await asyncio.sleep(0)
            raise UnusableError("no server answers at http://x")
        await asyncio.get_running_loop().create_future()

    async def main():
        with pytest.raises(UnusableError, match="no server answers"):
            await probe(send, "m")
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_a_server_that_fails_whatever_it_is_asked_lacks_nothing():
    async def send(path, body):
        raise Broken("http://x: boom (status 500) (tried 7 times)")

    with pytest.raises(UnusableError, match=r"boom \(status 500\).*fails whatever it is asked"):
        asyncio.run(probe(send, "m"))


def test_what_may_pass_says_nothing_of_an_ability():
    server = Server()

    async def send(path, body):
        if body.get("echo"):
            raise Unanswered("http://x: slow down (status 429) (tried 7 times)")
        return await server.send(path, body)

    with pytest.raises(Unanswered, match="slow down"):
        asyncio.run(probe(send, "m"))


@pytest.mark.parametrize("kind", ["null", "nan", "short"])
def test_a_faulty_answer_is_no_ability(kind):
    server = Server()
    plain = server.complete

    def spoilt(body):
        data = plain(body)
        logprobs = data["choices"][0]["logprobs"]
        if kind == "short":
            logprobs["top_logprobs"].pop()
        else:
            value = None if kind == "null" else float("nan")
            rows = logprobs["top_logprobs"]
            logprobs["top_logprobs"] = [row and dict.fromkeys(row, value) for row in rows]
        return data

    server.complete = spoilt
    capabilities = asyncio.run(probe(server.send, "m"))
    assert capabilities.prompt_logprobs == 0
    assert "prompt_logprobs" in capabilities.lacks


# Behind a tab of a simulator's prompt: four numbers, words, and the other numbers.
NUMBERS = [(str(value), -1.0 - value / 10) for value in range(4)]
WORDS = [(f"w{number}", -2.0 - number / 10) for number in range(60)]
OTHERS = [(str(value), -8.0) for value in range(4, 10)]


def tried(**changes):
    """What is found with a simulator's prompt, and the alternatives asked for at its places."""
    server = Server(ids=False, **changes)
    found = asyncio.run(probe(server.send, "m", simulator.trial))
    asked = [body for _, body in server.requests if body.get("echo")]
    return found, [body["logprobs"] for body in asked if "neuron" in body["prompt"]]


def test_fillers_are_those_at_which_a_simulators_prompt_lists_enough():
    found, asked = tried(places=[*NUMBERS, ("w", -9.0), *WORDS])
    assert same(found, digits=(), lacks=["digits"])
    assert asked == [20] * 3


def test_more_alternatives_are_asked_for_where_the_server_allows_them():
    found, asked = tried(places=[*NUMBERS, *WORDS, *OTHERS], most=100)
    assert same(found, digits=(), prompt_logprobs=100, lacks=["digits"])
    assert asked == [20] * 3 + [100] * 3


def test_prompts_whose_numbers_are_not_listed_are_not_read():
    found, _ = tried(places=[*NUMBERS, *WORDS, *OTHERS])
    assert same(found, digits=(), fillers=(), lacks=["digits", "fillers"])
    assert "20 alternatives a token hold enough of the numbers at 0% " in found.lacks["fillers"]
    assert "--max-logprobs" in found.lacks["fillers"]
    assert choose_mode(found, None, "expected") == "generated-logprobs"
    with pytest.raises(UnusableError, match=r"no numbers at the places of a prompt \(its 20 alt"):
        choose_mode(found, "prompt-logprobs", "expected")


def test_tokens_that_are_listed_by_ids_need_no_trial():
    server = Server(places=[*NUMBERS, *WORDS])
    assert asyncio.run(probe(server.send, "m", simulator.trial)) == EVERYTHING


def test_ids_that_are_told_but_not_used_are_of_no_use():
    server = Server()
    complete = server.complete
    server.complete = lambda body: complete(
        {k: v for k, v in body.items() if k != "logprob_token_ids"}
    )
    found = asyncio.run(probe(server.send, "m"))
    assert same(found, digits=(), lacks=["digits"])
    assert "by their ids" in found.lacks["digits"]


def test_over_http(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    faulty = Faulty()

    async def main():
        async with connect("m", base_url=faulty.url) as connection:
            assert await connection.probe() is connection.capabilities
            return connection.capabilities

    try:
        capabilities = asyncio.run(main())
    finally:
        faulty.close()
    assert same(capabilities, digits=(), lacks=["digits"])
