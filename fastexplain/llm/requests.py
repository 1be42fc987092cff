"""What is asked of a language model and what comes back, whichever way the model is reached."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from fastexplain.errors import LLMError

Message = dict[str, str]


def without_system(messages: Sequence[Message]) -> list[Message]:
    """The messages of a chat for a model whose template knows no system message, as Gemma 2's.

    What the system message says stands at the beginning of the first other one instead.
    """
    first, *others = messages
    if first["role"] != "system":
        return [first, *others]
    content = f"{first['content']}\n\n{others[0]['content']}"
    return [{**others[0], "content": content}, *others[1:]]


@dataclass(frozen=True)
class Chat:
    """A chat, to be answered in text.

    Attributes:
        messages: `{"role": ..., "content": ...}`, oldest first.
        max_tokens: of the answer.
        temperature, seed: of the sampling; temperature 0 is the likeliest answer.
        integers: whether the probabilities of integers are wanted at each token of the answer.
        schema: a JSON schema that the answer has to follow.
    """

    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    integers: bool = False
    schema: dict[str, Any] | None = None


@dataclass(frozen=True)
class Reading:
    """A plain text with places; asked is what the model would write at each place.

    The text is `shared`, `head`, and then every line with the filler behind it. A place is the
    end of a line, where the filler begins.

    Attributes:
        shared: common to very many requests, so an engine may keep its state there.
        head: common to the requests of one explanation.
        lines: each ends in a tab and begins on a line of its own.
        filler: the word at the places; "" where there is one line, whose end is the text's.
        largest: the integers 0..largest are asked about.
    """

    shared: str
    head: str
    lines: tuple[str, ...]
    filler: str
    largest: int

    @cached_property
    def text(self) -> str:
        behind = f"{self.filler}\n" if self.filler else ""
        return self.shared + self.head + "".join(line + behind for line in self.lines)

    @cached_property
    def places(self) -> list[int]:
        """Where the fillers begin: offsets in `text`, in characters."""
        behind = len(self.filler) + 1
        result, at = [], len(self.shared) + len(self.head)
        for line in self.lines:
            at += len(line)
            result.append(at)
            at += behind
        return result


Request = Chat | Reading

# Makes a simulator's prompt to try a server with, of a filler and the largest integer.
Trial = Callable[[str, int], Reading]


@dataclass(frozen=True)
class Usage:
    """Tokens that a request took: of the prompt, of the answer, and read from a server's cache."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class UselessAnswerError(LLMError):
    """An answer came that is of no use: malformed, cut off or withheld.

    Attributes:
        usage: the tokens that it took, which are paid for.
    """

    def __init__(self, message: str, usage: Usage) -> None:
        super().__init__(message)
        self.usage = usage


def whole_lines(text: str, max_tokens: int) -> str:
    """What is whole of an answer that was cut off after so many tokens: its lines but the last.

    Raises:
        LLMError: there is none.
    """
    lines = text.rpartition("\n")[0]
    if not lines.strip():
        raise LLMError(f"the answer was cut off after {max_tokens} tokens")
    return lines


@dataclass(frozen=True)
class Token:
    """One token of an answer.

    Attributes:
        text: as it is written.
        integers: natural logarithms of the probabilities of those tokens that are an integer, by
            their text, spaces and all; as many as the server lists.
    """

    text: str
    integers: dict[str, float]


@dataclass(frozen=True)
class Answer:
    """The answer to a `Chat`.

    Attributes:
        text: of the answer.
        finish: why it ended: "stop", or "length" where `max_tokens` cut it off.
        tokens: the answer's tokens, where `integers` was asked for; else empty.
        usage: what it took.
    """

    text: str
    finish: str
    tokens: tuple[Token, ...] = ()
    usage: Usage = Usage()

    def encode(self) -> bytes:
        """As bytes for the store; without the usage, which has columns of its own."""
        tokens = [[token.text, token.integers] for token in self.tokens]
        return zlib.compress(json.dumps([self.text, self.finish, tokens]).encode(), 1)


@dataclass(frozen=True)
class Distribution:
    """The answer to a `Reading`.

    Attributes:
        log_probabilities: float32 `[places, largest + 1]`: natural logarithms of the
            probabilities of 0, 1, 2, ... up to a constant of each row. One that the server does not
            list is taken to be half of the smallest that it lists; NaN through the row where those
            that are not listed might be more than a tenth of all.
        usage: what it took.
    """

    log_probabilities: np.ndarray
    usage: Usage = Usage()

    def encode(self) -> bytes:
        """As bytes for the store: little-endian float32, row by row."""
        return np.ascontiguousarray(self.log_probabilities, dtype="<f4").tobytes()


Response = Answer | Distribution


def decode(request: Request, stored: bytes, usage: Usage) -> Response:
    """What `encode` wrote of the response to `request`."""
    if isinstance(request, Reading):
        values = np.frombuffer(stored, dtype="<f4")
        return Distribution(values.reshape(len(request.lines), request.largest + 1), usage)
    text, finish, tokens = json.loads(zlib.decompress(stored))
    return Answer(text, finish, tuple(Token(*token) for token in tokens), usage)


def key(model: str, request: Request) -> str:
    """The name under which a response is stored: a hash of all that determines it, 32 hex digits.

    Where the model is reached does not enter: a batch may answer what a server was to be asked.
    """
    fields: list[Any]
    if isinstance(request, Chat):
        messages = [[message["role"], message["content"]] for message in request.messages]
        fields = ["chat", messages, request.max_tokens, request.temperature]
        fields += [request.seed, request.integers, request.schema]
    else:
        fields = ["reading-2", request.text, request.places, request.largest]
    content = json.dumps([model, *fields], sort_keys=True).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def to_json(request: Request) -> str:
    """A request as text, for a batch that waits for its answers."""
    return json.dumps(["chat" if isinstance(request, Chat) else "reading", asdict(request)])


def from_json(text: str) -> Request:
    """The request that `to_json` wrote."""
    kind, fields = json.loads(text)
    return (Chat if kind == "chat" else Reading)(**_with_tuples(fields))


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of a dataclass that were written as JSON, which knows lists only."""
    return {k: tuple(value) if isinstance(value, list) else value for k, value in fields.items()}


@dataclass(frozen=True)
class Capabilities:
    """What a connection was found to be able to do; see `Connection.probe`.

    Attributes:
        chat: it answers chats.
        system: a chat may begin with a system message.
        thinks: it thinks before it answers, in tokens that count too.
        limit: the name by which a chat's limit of tokens goes.
        sampling: what of `temperature` and `seed` a chat may set.
        chat_logprobs: alternatives that it lists at each token of a chat's answer, 0 if none.
        schema: how it can be held to a JSON schema: "json_schema", "json_object_schema" (the
            same in another form), "json_object" (JSON, if not the schema), or None.
        next_logprobs: alternatives that it lists to the token behind a plain text, 0 if none.
        digits: ids of the tokens 0, 1, ... `largest`, where their probabilities behind plain texts
            can be asked for by id, whether they are among the likeliest or not; else empty.
        prompt_logprobs: alternatives that it lists to each token of a plain text, 0 if none.
        shift: tokens by which these stand before the token that they are alternatives to.
        largest: the largest integer that is one token behind a tab: 10, or 9 where "10" is two.
        fillers: the words, of those that a prompt may put at its places, at which the integers
            can be read: they begin a token of their own behind a tab, and enough is listed there.
        lacks: for what it can't do, the server's reason in a few words, by the names above.
    """

    chat: bool = False
    system: bool = True
    thinks: bool = False
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    sampling: tuple[str, ...] = ("temperature", "seed")
    chat_logprobs: int = 0
    schema: Literal["json_schema", "json_object_schema", "json_object"] | None = None
    next_logprobs: int = 0
    digits: tuple[int, ...] = ()
    prompt_logprobs: int = 0
    shift: int = 0
    largest: int = 9
    fillers: tuple[str, ...] = ()
    lacks: dict[str, str] | None = None

    @classmethod
    def from_json(cls, text: str) -> Capabilities | None:
        """Those of which `asdict` was written as JSON, perhaps by another version with more.

        None where that version looked for less: what it found is not all that there may be.
        """
        known = cls.__dataclass_fields__.keys()
        fields = _with_tuples(json.loads(text))
        if not fields.keys() >= known:
            return None
        return cls(**{k: v for k, v in fields.items() if k in known})
