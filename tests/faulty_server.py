"""An OpenAI-compatible server on the loopback that makes mistakes, for tests and benchmarks.

In a test, `Faulty()` serves from a thread of its own. As a program it prints its port and serves
until its standard input ends:

    python tests/faulty_server.py --rate 0.3 --seed 1

What goes wrong is decided by the seed, by what is asked and by how often it was asked before, so
the order in which requests arrive does not matter.
"""

import argparse
import asyncio
import copy
import http.client
import json
import re
import sys
import threading
import zlib
from hashlib import blake2b
from itertools import accumulate

# Passing faults: the same request, sent again, may be answered.
PASSING = ("429", "429-after", "500", "503", "hang", "drip", "reset", "drop", "truncated")
# More of them, with status 200: an error in a choice beside half a text, one in place of choices,
# a finish reason that says that the server gave up, and a stream that ends early.
PASSING += ("choice-error", "null-error", "given-up", "cut-stream")
# Faults of the answer itself, the same each time.
LASTING = ("null", "nan", "short", "refusal", "unfinished")
# Ways to write good answers: as a stream, or of chats as parts or behind thoughts.
SHAPES = ("stream", "parts", "tagged", "channels")

_STATUSES = {"429": 429, "429-after": 429, "500": 500, "503": 503}
_FAILED = ("choice-error", "null-error", "given-up", "cut-stream")
_RETRY_AFTER = "0.02"
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_KEY = re.compile(rb"authorization: *([^\r]*)", re.IGNORECASE)
_TEXT = re.compile(r"^Text [0-9]+: (.*)$", re.MULTILINE)
_WORDS = ("rivers", "lakes", "birds", "numbers", "names", "tools", "verbs", "cities")


class Faulty:
    """An OpenAI-compatible server that knows the model `m`, and can be told what to do wrong.

    Attributes (all may be set at any time; * is of the answers):
        rate, seed, kinds: the share of requests that go wrong, by chance, and in which ways.
        script: what the next requests meet: a kind each, or "" for an answer.
        delay, spread: seconds until an answer, and up to how many more, by chance.
        status, body, headers: given in answer to everything posted, if the status is not 200;
            a body of bytes is sent as it is.
        listing, listing_headers: status and body in answer to a GET, and its headers.
        token, bos: * the tokenizer, as a regular expression, and what it puts before a prompt.
        listed: * log-probabilities behind a tab.
        most_logprobs: * the most alternatives that may be asked for.
        echoes, shift: * whether prompts get log-probabilities, and by how many tokens too early.
        completes, chats, chat_logprobs, schemas: * what there is at all.
        content: * of chats that ask for no simulation; None: some words, by the request.
        judge: * says of an explanation and a text, or of "" and one, whether it is right.
        shape: * how requests are answered, one of SHAPES; None: as usual.
        context: * tokens of a prompt that are read; the others are dropped in silence.
        usage: * what is counted, in place of that.

    Attributes (to be read):
        requests: path, body and key of everything posted.
        outcomes: of the same, in order: a digest of path and body, and the fault or "answered".
        lost: digests of answers behind which the connection ended: they may have come too late.
        most_at_once: the most requests that waited for an answer at the same time.
    """

    def __init__(self, *, rate=0.0, seed=0, kinds=PASSING + LASTING, delay=0.0, cached=False):
        self.rate, self.seed, self.kinds = rate, seed, tuple(kinds)
        self.script = []
        self.delay, self.spread = delay, 0.0
        self.status, self.body, self.headers = 200, {}, {}
        self.listing_headers = {}
        self.listing = 200, {"object": "list", "data": [{"id": "m", "object": "model"}]}
        self.token, self.bos = r"\t|\n|\d|[^\t\n\d]+", ""
        self.listed = {"3": -1.0, "6": -1.0, "unknown": -0.5, "rare": -30.0}
        self.most_logprobs = 20
        self.echoes, self.shift = True, 0
        self.completes = self.chats = self.chat_logprobs = True
        self.schemas = ("json_schema", "json_object")
        self.content = self.shape = self.usage = None
        self.judge = lambda explanation, text: zlib.crc32(text.encode()) % 2 == 0
        self.context = 10**9
        self.requests, self.outcomes, self.lost = [], [], set()
        self.most_at_once = self._at_once = 0
        self._asked = {}  # digest: times
        self._replies = {} if cached else None
        self._loop = asyncio.new_event_loop()
        self._connections, self._ended = set(), threading.Condition()
        started = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(started,), daemon=True)
        self._thread.start()
        started.wait()
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def close(self):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def drain(self):
        """Return when all that was sent by clients that have ended is read and recorded."""
        # Connections are made in the order of arrival: those of such clients before this one.
        last = http.client.HTTPConnection("127.0.0.1", self.port)
        last.request("GET", "/v1/models")
        last.getresponse().read()
        last.close()
        with self._ended:
            assert self._ended.wait_for(lambda: not self._connections, timeout=60)

    def _serve(self, started):
        start = self._loop.create_server(lambda: _Protocol(self), "127.0.0.1", 0, backlog=1024)
        server = self._loop.run_until_complete(start)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        self._loop.run_forever()
        server.close()
        for connection in list(self._connections):
            connection.abort()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    # What to answer

    def answer(self, path, request):
        """Status and body in answer to a post."""
        if self.status != 200:
            return self.status, self.body
        if request["model"] != "m":
            return _error(404, f"The model `{request['model']}` does not exist.")
        if path == "/v1/chat/completions" and self.chats:
            return self._chat(request)
        if path == "/v1/completions" and self.completes:
            return self._complete(request)
        return _error(404, "Not Found")

    def _chat(self, request):
        form = (request.get("response_format") or {}).get("type")
        if form and form not in self.schemas:
            return _error(400, f"response_format {form} is not supported")
        if request.get("logprobs") and not self.chat_logprobs:
            return _error(400, "logprobs is not supported")
        if request.get("top_logprobs", 0) > self.most_logprobs:
            return _error(400, f"top_logprobs is at most {self.most_logprobs}")
        text = self._said(request, form)
        tokens = re.findall(self.token, text)
        most = request.get("max_tokens") or request.get("max_completion_tokens") or len(tokens)
        finish = "stop" if len(tokens) <= most else "length"
        del tokens[most:]
        message = {"role": "assistant", "content": "".join(tokens)}
        choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
        if request.get("logprobs"):
            choice["logprobs"] = {
                "content": [self._spoken(t, request.get("top_logprobs", 0)) for t in tokens]
            }
        asked = "".join(message["content"] for message in request["messages"])
        return 200, self._reply("chat.completion", choice, asked, len(tokens))

    def _said(self, request, form):
        """What a chat is answered: a simulation of the last text in it, if it wants one."""
        if self.content is not None:
            return self.content
        asked = request["messages"][-1]["content"]
        if texts := _TEXT.findall(asked):
            return json.dumps(judged(asked, texts, self.judge))
        if form:
            return json.dumps(structured(asked, request["response_format"]), ensure_ascii=False)
        if request.get("logprobs"):
            lines = repeated(asked)
            return "\n".join(lines) if lines else str(value(asked))
        number = zlib.crc32(json.dumps(request["messages"]).encode())
        return f"{_WORDS[number % 8]} and {_WORDS[number // 8 % 8]}"

    def _spoken(self, token, most):
        """A token of an answer with its alternatives: of integers, those that are listed."""
        listed = self.listed if token.strip().isdigit() else {}
        listed = listed if token in listed else {**listed, token: -0.1}
        return {
            "token": token,
            "logprob": listed[token],
            "bytes": list(token.encode()),
            "top_logprobs": [
                {"token": t, "logprob": p, "bytes": list(t.encode())}
                for t, p in _likeliest(listed, most).items()
            ],
        }

    def _complete(self, request):
        asked = request.get("logprobs") or 0
        if asked > self.most_logprobs:
            return _error(400, f"logprobs is at most {self.most_logprobs}")
        prompt = request["prompt"]
        tokens = [self.bos] * bool(self.bos) + re.findall(self.token, prompt)
        written = len(tokens)
        behind = {}  # the last token seen behind each
        distributions = [None]
        for place, token in enumerate(tokens):
            if place:
                behind[tokens[place - 1]] = token
            distributions.append(self._next(token, behind))
        for _ in range(request.get("max_tokens", 16)):
            distribution = distributions[-1] or {"x": -0.1}
            tokens.append(max(distribution, key=distribution.get))
            behind[tokens[-2]] = tokens[-1]
            distributions.append(self._next(tokens[-1], behind))
        first = 0 if request.get("echo") else written
        choice = {"index": 0, "text": "".join(tokens[first:]), "finish_reason": "length"}
        if asked and (self.echoes or first):
            choice["logprobs"] = self._logprobs(tokens, distributions, first, asked)
        return 200, self._reply("text_completion", choice, prompt, len(tokens) - written)

    def _next(self, token, behind):
        """What may follow a token: behind a tab what is listed, else what followed it before."""
        return self.listed if token == "\t" else {behind.get(token, "x"): -0.01, "y": -5.0}

    def _logprobs(self, tokens, distributions, first, most):
        offsets = list(accumulate(map(len, tokens), initial=0))
        # A server whose entries hold what may follow a token lists the token itself all the same.
        listed = [
            {token: -9.0, **_likeliest(distributions[place + self.shift] or {}, most)}
            for place, token in enumerate(tokens)
        ]
        if first == 0:
            listed[0] = None
        return {
            "tokens": tokens[first:],
            "text_offset": offsets[first:-1],
            "top_logprobs": listed[first:],
            "token_logprobs": [
                None if alternatives is None else alternatives[token]
                for token, alternatives in zip(tokens[first:], listed[first:], strict=True)
            ],
        }

    def _reply(self, kind, choice, asked, written):
        read = min(self.context, len(re.findall(r"\d|[^\W\d]+|[^\w ]", asked)))
        usage = (
            {
                "prompt_tokens": read,
                "completion_tokens": written,
                "total_tokens": read + written,
            }
            if self.usage is None
            else self.usage
        )
        body = {"id": "x", "object": kind, "model": "m", "choices": [choice], "usage": usage}
        return shaped(self.shape, body)

    # What goes wrong

    def draw(self, digest):
        """The fault that a request meets: by chance, from what is asked and how often it was."""
        times = self._asked[digest] = self._asked.get(digest, 0) + 1
        if self.script:
            return self.script.pop(0)
        chance = int.from_bytes(blake2b(digest, digest_size=8).digest(), "big")
        lasting = [kind for kind in self.kinds if kind in LASTING]
        passing = [kind for kind in self.kinds if kind in PASSING]
        share = len(lasting) / max(1, len(self.kinds))
        if chance % 1000 < 1000 * self.rate * share:
            return lasting[chance // 1000 % len(lasting)]
        again = blake2b(digest, digest_size=8, salt=times.to_bytes(8, "big")).digest()
        chance = int.from_bytes(again, "big")
        if chance % 1000 < 1000 * self.rate * (1 - share):
            return passing[chance // 1000 % len(passing)]
        return ""

    def digest(self, path, body):
        key = self.seed.to_bytes(8, "big")
        return blake2b(path.encode() + b" " + body, digest_size=16, key=key).digest()


def repeated(asked):
    """The text that a simulator's chat ends in, line by line with values; empty if none does."""
    before, _, text = asked.rpartition("<start>\n")
    if not before or not text.endswith("\n<end>"):
        return []
    lines = text.split("\n")[:-1]
    return ["<start>", *(f"{line}\t{value(line)}" for line in lines), "<end>"]


def structured(asked, form):
    """The list of tokens that a simulator's chat ends in with values; else what fits the schema."""
    try:
        tokens = json.loads(asked.rpartition("\n\n")[2])
    except ValueError:
        tokens = None
    if isinstance(tokens, list):
        return {"activations": [{"token": token, "value": value(token)} for token in tokens]}
    return fitting(form.get("json_schema", {}).get("schema", {"type": "object"}))


def fitting(schema):
    """The least that fits a JSON schema."""
    if "enum" in schema:
        return schema["enum"][0]
    if schema["type"] == "object":
        required = schema.get("required", ())
        return {name: fitting(schema["properties"][name]) for name in required}
    if schema["type"] == "array":
        return [fitting(schema["items"])] * schema.get("minItems", 0)
    return {"string": "", "integer": 0, "number": 0, "boolean": False}[schema["type"]]


def judged(asked, texts, judge):
    """What a judge says of each of the texts in a question, or which is the intruder."""
    explanation = asked.partition("\n\n")[0] if not asked.startswith("Text 1: ") else ""
    explanation = explanation.removeprefix("The neuron reacts to: ")
    said = [judge(explanation, text) for text in texts]
    if explanation:
        return {str(i): "yes" if yes else "no" for i, yes in enumerate(said, start=1)}
    return {"intruder": said.index(False) + 1 if False in said else 1}


def value(line):
    """Some activation for a token, mostly 0."""
    number = zlib.crc32(line.encode())
    return number // 3 % 10 if number % 3 == 0 else 0


def _likeliest(distribution, most):
    return dict(sorted(distribution.items(), key=lambda item: -item[1])[:most])


def _error(status, message):
    return status, {"error": {"message": message, "type": "invalid_request_error"}}


def spoilt(kind, body):
    """A good answer with one of the lasting faults; the next where it can have no such fault."""
    body = copy.deepcopy(body)
    [choice] = body["choices"]
    logprobs = choice.get("logprobs") or {}
    if kind == "null" and "message" in choice and not logprobs:
        choice["message"]["content"] = None
    elif kind == "null":
        choice["logprobs"] = None
    elif kind == "nan" and "content" in logprobs:
        for token in logprobs["content"]:
            token["logprob"] = float("nan")
            for alternative in token["top_logprobs"]:
                alternative["logprob"] = float("nan")
    elif kind == "nan" and logprobs:
        for alternatives in logprobs["top_logprobs"]:
            for token in alternatives or {}:
                alternatives[token] = float("nan")
    elif kind == "short" and logprobs:
        for values in logprobs.values():
            del values[len(values) // 2 :]
    elif kind == "unfinished":
        choice["finish_reason"] = "tool_calls"
        if "text" in choice:
            choice["logprobs"] = None
    elif "message" in choice:
        choice["message"].update(content=None, refusal="I can't help with that.")
    else:
        choice.update(text="", finish_reason="content_filter", logprobs=None)
    return body


def failed(kind, body):
    """What comes in place of a good answer, with status 200, where the server failed."""
    body = copy.deepcopy(body)
    [choice] = body["choices"]
    if kind == "choice-error":
        said = choice.get("message") or choice
        name = "content" if "content" in said else "text"
        said[name] = said[name][: len(said[name]) // 2]
        choice.update(finish_reason="error", error={"code": 502, "message": f"a fault: {kind}"})
    elif kind == "null-error":
        body.update(choices=None, error={"code": 429, "message": f"a fault: {kind}"})
    elif kind == "given-up":
        choice["finish_reason"] = "abort"
    else:
        whole = streamed(body)
        return whole[: whole.rindex(b"data:", 0, whole.rindex(b"data:")) - 3]
    return body


def shaped(shape, body):
    """A good answer, written in another way; of a completion as a stream only."""
    if shape == "stream":
        return streamed(body)
    message = body["choices"][0].get("message")
    if shape is None or message is None:
        return body
    text = message["content"]
    if shape == "parts":
        thoughts = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}
        half = len(text) // 2
        parts = [{"type": "text", "text": piece} for piece in (text[:half], text[half:])]
        message["content"] = [thoughts, *parts]
    elif shape == "tagged":
        message["content"] = f"<think>Hm.</think>\n\n{text}"
    else:
        before = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final"
        message["content"] = f"{before}<|message|>{text}<|return|>"
    return body


def streamed(body):
    """A body as a stream of events: a comment, a chunk for each character, and the rest."""
    [choice] = body["choices"]
    rest = {name: value for name, value in body.items() if name not in ("choices", "usage")}
    chunks = []
    name = "message" if "message" in choice else "text"
    text = choice["message"]["content"] if name == "message" else choice["text"]
    for piece in text:
        delta = {"delta": {"content": piece}} if name == "message" else {"text": piece}
        chunks.append(rest | {"choices": [{"index": 0, "finish_reason": None, **delta}]})
    last = {key: value for key, value in choice.items() if key != name}
    chunks.append(rest | {"choices": [last | ({"delta": {}} if name == "message" else {})]})
    chunks.append(rest | {"choices": [], "usage": body["usage"]})
    events = [": processing", *(f"data: {json.dumps(chunk)}" for chunk in chunks), "data: [DONE]"]
    return "".join(f"{event}\n\n" for event in events).encode()


class _Protocol(asyncio.Protocol):
    """One connection: requests come one after another."""

    def __init__(self, faulty):
        self.faulty = faulty
        self.received = b""
        self.waiting, self.digest = False, None
        self.loop = asyncio.get_running_loop()

    def connection_made(self, transport):
        self.transport = transport
        self.faulty._connections.add(transport)

    def connection_lost(self, error):
        with self.faulty._ended:
            self.faulty._connections.discard(self.transport)
            self.faulty._ended.notify_all()
        self.faulty.lost.add(self.digest)
        self.served()

    def data_received(self, data):
        self.received += data
        if self.received[:1] not in b"GP":  # TLS
            self.write(_http(400, b"this is plain HTTP", {}))
            self.transport.close()
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            head = self.received[:end]
            length = int(match[1]) if (match := _LENGTH.search(head)) else 0
            if len(self.received) < end + 4 + length:
                return
            body = self.received[end + 4 : end + 4 + length]
            self.received = self.received[end + 4 + length :]
            self.respond(head, body)

    def respond(self, head, body):
        faulty = self.faulty
        method, target, _ = head.split(b" ", 2)
        path = target.decode()
        if method == b"GET":
            return self.send(*faulty.listing, faulty.listing_headers)
        replies = faulty._replies
        if replies is not None and (known := replies.get(body)) is not None:
            self.loop.call_later(faulty.delay, self.write, known)
            return None
        faulty._at_once += 1
        faulty.most_at_once = max(faulty.most_at_once, faulty._at_once)
        self.waiting = True
        request = json.loads(body)
        key = match[1].decode() if (match := _KEY.search(head)) else None
        digest = faulty.digest(path, body)
        self.digest = digest.hex()
        fault = faulty.draw(digest)
        if replies is None:
            faulty.requests.append((path, request, key))
        if fault in ("hang", "drop") or fault in _STATUSES:
            faulty.outcomes.append((self.digest, fault))
            return self.fail(fault)
        status, reply = faulty.answer(path.partition("?")[0], request)
        if fault in LASTING and status == 200:
            reply = spoilt(fault, reply)
        if fault in _FAILED and status == 200:
            reply = failed(fault, reply)
        whole = _http(status, reply, faulty.headers if status != 200 else {})
        if replies is not None:
            replies[body] = whole
        else:
            faulty.outcomes.append((self.digest, fault or "answered"))
        delay = faulty.delay + faulty.spread * digest[0] / 255
        if fault in ("drip", "reset", "truncated"):
            delay, whole = 0, self.broken(fault, whole, reply)
        if delay:
            self.loop.call_later(delay, self.write, whole)
        elif whole:
            self.write(whole)
        return None

    def fail(self, fault):
        if fault == "drop":
            self.transport.close()
        elif fault != "hang":
            headers = {"Retry-After": _RETRY_AFTER} if fault == "429-after" else {}
            status = _STATUSES[fault]
            self.send(status, _error(status, f"a fault: {fault}")[1], headers)

    def broken(self, fault, whole, reply):
        """What there is to send of an answer that doesn't arrive."""
        text = json.dumps(reply).encode()
        if fault == "truncated":
            return _http(200, text[: len(text) // 2], {}, "application/json")
        half = whole[: -(len(text) // 2)]
        if fault == "drip":
            self.drip(half, 0)
        else:
            self.transport.write(half)
            self.loop.call_soon(self.transport.abort)
        return b""

    def drip(self, data, at):
        """Byte after byte, and then none: but never so slowly that nothing comes for long."""
        if at < len(data) and not self.transport.is_closing():
            self.transport.write(data[at : at + 1])
            self.loop.call_later(0.01, self.drip, data, at + 1)

    def send(self, status, body, headers=None):
        self.write(_http(status, body, headers or {}))

    def write(self, data):
        self.served()
        if not self.transport.is_closing():
            self.transport.write(data)

    def served(self):
        self.faulty._at_once -= self.waiting
        self.waiting = False


def _http(status, body, headers, kind="text/html"):
    """A response as it goes over the wire; bytes as they are, all else as JSON."""
    if not isinstance(body, bytes):
        body, kind = json.dumps(body).encode(), "application/json"
    lines = [f"HTTP/1.1 {status} Status", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def main():
    parser = argparse.ArgumentParser(description="Serve as an OpenAI-compatible API with faults.")
    parser.add_argument("--rate", type=float, default=0.0, help="share of requests that go wrong")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds until an answer")
    parser.add_argument("--cached", action="store_true", help="compute no answer twice; no record")
    server = Faulty(**vars(parser.parse_args()))
    print(server.port, flush=True)
    sys.stdin.read()
    server.close()


if __name__ == "__main__":
    main()
