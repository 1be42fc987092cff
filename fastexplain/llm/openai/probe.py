"""Finding out what a server can do, with a few small requests.

Each ability is asked about by itself and judged by what comes back: many servers ignore what they
don't know, and some answer 500 to it.

- Chats: whether they may begin with a system message, and in which form their limit and their
  sampling may be set; whether the model thinks before it answers; whether log-probabilities come
  with them, and whether an answer can be held to a schema.
- Completions: whether log-probabilities of the token behind a text come with them.
- Echo: a text of lines that repeats itself is asked for with log-probabilities. Behind the first
  time its tokens are as good as certain, which shows to which token a list of alternatives belongs:
  llama-cpp-python 0.3.36 lists those of the next one. The same text shows which words and integers
  are tokens of their own behind a tab.
- Ids: whether tokens are listed that are asked for by their ids, as vLLM does.
- Where they aren't, a simulator's prompt: at which fillers enough of the integers is listed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from itertools import accumulate, product
from typing import Any

import numpy as np

from fastexplain.errors import LLMError, UnusableError
from fastexplain.llm.openai import listings, wire
from fastexplain.llm.openai.answers import CUT_OFF, finish_of
from fastexplain.llm.openai.failures import Broken, Refused, Unanswered
from fastexplain.llm.requests import Capabilities, Chat, Message, Reading, Request, Trial

Fields = dict[str, Any]
Send = Callable[[str, Fields], Awaitable[Fields]]

# Alternatives to ask for at each token: the limit of vLLM and of OpenAI's chats, then what other
# services allow, then the limit of OpenAI's completions.
_ALTERNATIVES = (20, 10, 5)

# Alternatives to ask for where those at the places of a simulator's prompt are too few.
_MORE = (100, 400)
# The share of a prompt's places at which enough has to be listed. With it SmolLM2's values by 100
# alternatives (at "0") and by 400 ("?") correlate at .999 with those of the whole distribution; by
# 20 at "0", where .98 of the places suffice, at .97.
_READABLE = 0.99

# The forms of a chat, those that say the most first. OpenAI's models that think refuse the first
# limit and a temperature, and several services a seed.
_LIMITS = ("max_tokens", "max_completion_tokens")
_SAMPLING = (("temperature", "seed"), ("temperature",), ("seed",), ())
_FORMS = ("json_schema", "json_object_schema", "json_object")

# Of HTTP: the server has no such address, or does nothing there.
_NOT_THERE = (404, 405, 501)

_BRIEF = {"role": "system", "content": "You answer in one short sentence."}
_HELLO = "Say hello."
# Tokens for the greeting. Where a prompt ends with the tag that begins thoughts, only the tag that
# ends them shows what they are: a model that needs more than the first gets time to come to it.
_HELLO_TOKENS = (16, 512)
_TEN = "Write the number 10 and nothing else."
# A model answers this with a code only if it is held to the schema.
_ANIMAL = "Name an animal, as JSON."
_CODES = [17, 28, 39]
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"code": {"type": "integer", "enum": _CODES}},
    "required": ["code"],
    "additionalProperties": False,
}

# Lines of a letter, a tab and a word, as in a simulator's prompt. When they come again, each token
# is certain.
_FILLERS = ("unknown", "0", "?")
_WORDS = ("unknown", "?", *map(str, range(11)))
_LINES = [f"{letter}\t" for letter in "abcdefghijklm"]
_TIMES = 3
_BLOCK = "".join(f"{line}{word}\n" for line, word in zip(_LINES, _WORDS, strict=True))
_TEXT = _BLOCK * _TIMES
# What comes next is 10.
_BEFORE_TEN = _TEXT.removesuffix("10\n")

# Tokens by which a list of alternatives may come before its token.
_SHIFTS = range(2)
# How often the alternatives' likeliest has to be the token that is certain, at the right shift,
# and may be at a wrong one.
_CERTAIN, _CHANCE = 0.4, 0.2


async def probe(send: Send, model: str, trial: Trial | None = None) -> Capabilities:
    """What a server's model can do.

    Args:
        send: posts a JSON object below the API's address and returns the one that is answered;
            raises `Refused` where the server won't have it.
        model: the name by which the server knows it.
        trial: makes a simulator's prompt; None: what is listed at its places isn't tried.

    Raises:
        UnusableError: nothing can be asked at all, or nothing that is of use to us.
        Unanswered: a request was not answered, for a reason that may pass.
    """
    return await _Prober(send, model, trial).probe()


class _Prober:
    def __init__(self, send: Send, model: str, trial: Trial | None) -> None:
        self._send = send
        self._trial = trial
        self._model = model
        self._failures: dict[str, LLMError] = {}

    async def probe(self) -> Capabilities:
        chats, completions = await _together(self._chats(), self._completions())
        lacks = {name: str(failure) for name, failure in self._failures.items()}
        if chats or completions:
            # Completions tell the tokens behind a tab more exactly than chats do.
            return Capabilities(**(chats | completions), lacks=lacks)
        reasons = "; ".join(dict.fromkeys(lacks.values()))
        if all(isinstance(failure, Broken) for failure in self._failures.values()):
            raise UnusableError(f"{reasons}: it fails whatever it is asked; its log may say why")
        raise UnusableError(
            f"'{self._model}' answers neither chats nor completions with log-probabilities "
            f"({reasons}); use a server that does, such as vLLM, or a local model"
        )

    async def _able(self, name: str, ability: Awaitable[Fields]) -> Fields:
        """What an ability adds to the capabilities; nothing, and the reason noted, if it lacks."""
        try:
            return await ability
        except (UnusableError, Unanswered):  # which say nothing of the ability
            raise
        except LLMError as error:
            self._failures[name] = error
            return {}

    async def _ask(self, request: Request, able: Capabilities) -> tuple[Fields, Any]:
        """The choice that answers a request, and what we read in it."""
        data = await self._send(*wire.body(request, self._model, able))
        return wire.choice(data), wire.read(request, data, able)

    async def _chats(self) -> Fields:
        forms = (
            # Only models that think refuse the other limit.
            {"system": system, "thinks": limit != _LIMITS[0], "limit": limit, "sampling": sampling}
            for system, sampling, limit in product((True, False), _SAMPLING, _LIMITS)
        )
        found = await self._able("chat", _first(forms, self._chat))
        if not found:
            return {}
        able = Capabilities(**found)
        more = await _together(
            self._able("chat_logprobs", _first(_ALTERNATIVES, self._chat_logprobs, able)),
            self._able("schema", _first(_FORMS, self._schema, able, but=LLMError)),
        )
        return found | more[0] | more[1]

    async def _chat(self, form: Fields) -> Fields:
        """In one form; with it, whether a model thinks before it answers."""
        able = Capabilities(**form)
        for most in _HELLO_TOKENS:
            hello = Chat((_BRIEF, *_user(_HELLO)), max_tokens=most)
            data = await self._send(*wire.body(hello, self._model, able))
            if form["thinks"] or wire.thinks(data):
                return form | {"chat": True, "thinks": True}
            if finish_of(wire.choice(data)) not in CUT_OFF:
                wire.read(hello, data, able)
                break
        return form | {"chat": True}

    async def _chat_logprobs(self, count: int, able: Capabilities) -> Fields:
        chat = Chat(_user(_TEN), max_tokens=8, integers=True)
        choice, _ = await self._ask(chat, replace(able, chat_logprobs=count))
        tokens = _of_several(choice).tokens
        single = any(token.strip() == "10" for token in tokens)
        return {"chat_logprobs": count} | ({"largest": 10} if single else {})

    async def _schema(self, form: Any, able: Capabilities) -> Fields:
        chat = Chat(_user(_ANIMAL), max_tokens=64, schema=_SCHEMA)
        _, answer = await self._ask(chat, replace(able, schema=form))
        _check_schema(answer.text, form)
        return {"schema": form}

    async def _completions(self) -> Fields:
        behind, echo = await _together(
            self._able("next_logprobs", _first(_ALTERNATIVES, self._next_logprobs)),
            self._able("prompt_logprobs", _first(_ALTERNATIVES, self._prompt_logprobs)),
        )
        if not echo:
            return behind
        digits = await self._able("digits", self._digits()) if behind else {}
        if not digits and self._trial is not None:
            echo["fillers"], fillers = (), echo["fillers"]
            echo |= await self._able("fillers", self._fillers(echo, fillers, self._trial))
        return behind | echo | digits

    async def _next_logprobs(self, count: int) -> Fields:
        choice = await self._complete(_BEFORE_TEN, logprobs=count)
        _of_several(choice)
        listed = listings.next_token(choice)
        if not any(str(value) in listed for value in range(11)):
            raise LLMError("the server lists no integer behind a tab where only one can follow")
        return {"next_logprobs": count, "largest": 10 if "10" in listed else 9}

    async def _prompt_logprobs(self, count: int) -> Fields:
        listing = _of_several(await self._complete(_TEXT, logprobs=count, echo=True))
        behind = _behind_tabs(listing.tokens)
        return {
            "prompt_logprobs": count,
            "shift": _shift(listing),
            "largest": _largest(listing.tokens, behind),
            "fillers": tuple(word for word in _FILLERS if behind[word] is not None),
        }

    async def _digits(self) -> Fields:
        choice = await self._complete(_TEXT, logprobs=1, echo=True, return_token_ids=True)
        tokens, ids = listings.listing(choice).tokens, choice.get("prompt_token_ids")
        if not isinstance(ids, list) or len(ids) not in (len(tokens), len(tokens) - 1):
            raise LLMError("the server does not tell the ids of a text's tokens")
        behind = _behind_tabs(tokens)
        largest = _largest(tokens, behind)
        places: Any = [behind[str(value)] for value in range(largest + 1)]
        found: Fields = {"digits": tuple(ids[place] for place in places), "largest": largest}
        two = Reading("", _TEXT, tuple(_LINES[:2]), _FILLERS[0], largest)
        _, exact = await self._ask(two, Capabilities(**found))
        if not np.isfinite(exact.log_probabilities).all():
            raise LLMError("the server does not list the tokens that are asked for by their ids")
        return found

    async def _fillers(self, echo: Fields, words: Sequence[str], trial: Trial) -> Fields:
        """The words at which enough is listed, by as few alternatives as will do."""
        share, most = 0.0, echo["prompt_logprobs"]
        for count in (most, *(count for count in _MORE if count > most)):
            able = Capabilities(**(echo | {"prompt_logprobs": count}))
            fillers = []
            for filler in words:
                try:
                    _, read = await self._ask(trial(filler, able.largest), able)
                except Refused:
                    break
                listed = float(np.isfinite(read.log_probabilities).any(axis=1).mean())
                share, most = max(share, listed), count
                if listed >= _READABLE:
                    fillers.append(filler)
            if fillers:
                return {"prompt_logprobs": count, "fillers": tuple(fillers)}
        raise LLMError(
            f"its {most} alternatives a token hold enough of the numbers at {share:.0%} of a "
            "prompt's places; have it list more, as vLLM does with --max-logprobs 400"
        )

    async def _complete(self, prompt: str, **more: Any) -> Fields:
        """The choice that completes a text."""
        body = wire.completion(prompt, self._model, **more)
        return wire.choice(await self._send("/completions", body))


def _user(content: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": content},)


async def _first(
    forms: Iterable[Any],
    ask: Callable[..., Awaitable[Fields]],
    *arguments: Any,
    but: type[LLMError] = Refused,
) -> Fields:
    """What comes of the first form of a request that the server takes.

    Args:
        forms: the best first; `ask` is called with one and the arguments.
        but: errors behind which the next form is tried; if all fail, the first of them is raised.
    """
    refusal: LLMError | None = None
    for form in forms:
        try:
            return await ask(form, *arguments)
        except (UnusableError, Unanswered):
            raise
        except but as error:
            refusal = refusal or error
            if but is Refused and getattr(error, "status", 0) in _NOT_THERE:
                break
    assert refusal is not None
    raise refusal


def _of_several(choice: Fields) -> listings.Listing:
    """What a choice lists: numbers, and more than the tokens themselves."""
    listing = listings.listing(choice)
    rows = [row for row in listing.listed if isinstance(row, dict)]
    values = [value for row in rows for value in row.values()]
    if not all(isinstance(value, float | int) and value < np.inf for value in values):
        raise LLMError("the log-probabilities that the server lists are no numbers")
    if len(values) == len(rows):
        raise LLMError("the server lists the log-probabilities of the tokens, but no alternatives")
    return listing


def _check_schema(text: str, schema: str) -> None:
    """Raise LLMError unless the server held this answer to the schema, or to JSON at least."""
    # It may be cut off: small models put white space without end wherever it is allowed.
    answer = "".join(text.split())
    if schema == "json_object":
        follows = answer.startswith("{")
    else:
        follows = answer.startswith('{"code"') and any(
            f'{{"code":{code}}}'.startswith(answer) for code in _CODES
        )
    if not follows:
        raise LLMError("the server's answers do not follow a schema that is asked for")


def _behind_tabs(tokens: list[str]) -> dict[str, int | None]:
    """Which token of `_TEXT` begins each word of its last lines; None: it has the tab too."""
    ends = accumulate(map(len, _BLOCK.splitlines(keepends=True)), initial=len(_TEXT) - len(_BLOCK))
    places = [start + len(line) for start, line in zip(ends, _LINES, strict=False)]
    return dict(zip(_WORDS, listings.indices(tokens, _TEXT, places), strict=True))


def _largest(tokens: list[str], behind: dict[str, int | None]) -> int:
    """The largest integer that is one token: 10, or 9 where that is two."""
    for value in range(11):
        index = behind[str(value)]
        if index is None or tokens[index] != str(value):
            if value < 10:
                raise LLMError("the model's tokenizer has no single tokens for 0 to 9 behind a tab")
            return 9
    return 10


def _shift(listing: listings.Listing) -> int:
    """By how many tokens the alternatives come before their token."""
    tokens, listed = listing
    certain = range(len(tokens) // _TIMES, len(tokens))
    likeliest = [max(row, key=row.__getitem__) if row else None for row in listed]
    shares = [
        sum(likeliest[index - shift] == tokens[index] for index in certain) / len(certain)
        for shift in _SHIFTS
    ]
    best = max(shares)
    if best < _CERTAIN or sorted(shares)[-2] > _CHANCE:
        raise LLMError(
            "it can't be told which tokens the alternatives belong to that the server lists: "
            "where a text repeats itself, the likeliest are not its tokens"
        )
    return shares.index(best)


async def _together(*calls: Coroutine[Any, Any, Any]) -> list[Any]:
    """Results of calls that run at once; the others end with the first that fails."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
