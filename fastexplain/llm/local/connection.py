"""A transformers model in this process, for runs without any server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import torch

from fastexplain.errors import FastexplainError, LLMError, UnusableError
from fastexplain.llm.base import Connection
from fastexplain.llm.local.engine import Engine
from fastexplain.llm.local.pieces import Pieces, Prompt
from fastexplain.llm.local.writing import Writer, Writing, Written
from fastexplain.llm.requests import (
    Answer,
    Capabilities,
    Chat,
    Distribution,
    Message,
    Request,
    Response,
    Token,
    Usage,
    whole_lines,
    without_system,
)
from fastexplain.models.loading import load_pretrained
from fastexplain.models.smollm2 import smollm2_directory

# Requests that the thread takes at once. What it has taken is answered together, so more would be
# lost when the command is killed; a CPU reads a few in a second.
_READINGS = {"cpu": 16, "cuda": 64}
_CHATS = 16

# What a simulator's prompt may put at its places: any word does, as places are known from the
# start.
_FILLERS = ("unknown", "?", "0")

# A chat template is tried once, since it is a program that may never end.
_TEMPLATE_SECONDS = 10
_TRIAL: tuple[Message, ...] = (
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": "Hello"},
)


class _Waiting(NamedTuple):
    """A request, as tokens (`Prompt` or `Writing`) and as it was asked, and where it is awaited."""

    work: Any
    request: Any
    answer: asyncio.Future[Response]


class LocalConnection(Connection):
    """A causal language model from Hugging Face, on the GPU if there is one.

    Requests wait in a queue. One thread takes those that can be answered together, so that the
    event loop goes on.

    Args:
        name: the word `smollm2`, a local directory or a Hugging Face id.

    Raises:
        UnusableError: the model can't be loaded.
    """

    address = "local"
    concurrency = 256

    def __init__(self, name: str) -> None:
        self.model = name
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._waiting: list[_Waiting] = []
        self._worker: asyncio.Task[None] | None = None
        # The model is loaded by the thread that will run it. Any other that had PyTorch compute
        # would leave OpenMP's threads behind, and where these are more than there are cores,
        # libgomp no longer has them spin between two products: 0.255 s a simulation, not 0.217.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fastexplain-local")
        self._thread.submit(self._load).result()

    def _load(self) -> None:
        # The checkpoint's own precision on a GPU; CPUs are slow in anything but float32.
        dtype: Any = torch.float32 if self._device.type == "cpu" else "auto"
        try:
            source = str(smollm2_directory()) if self.model == "smollm2" else self.model
            network, tokenizer, _ = load_pretrained(source, device=self._device, dtype=dtype)
        except FastexplainError as error:
            raise UnusableError(str(error)) from error
        self._tokenizer: Any = tokenizer
        self._pieces = Pieces(tokenizer, self.model)
        self._integers = _integer_tokens(tokenizer)
        config: Any = network.config.get_text_config()
        self._limit: int | None = getattr(config, "max_position_embeddings", None)
        ends = _ends(network, tokenizer)  # before the engine drops the model's own settings
        self._engine = Engine(network, self._pieces.digits)
        self._writer = Writer(self._engine, list(self._integers), ends)

    async def probe(self) -> Capabilities:
        listed = len(self._pieces.digits)
        why_no_chat = await self._try_template()
        chats = why_no_chat is None
        lacks = {"schema": "the local engine can't hold an answer to a schema"}
        if why_no_chat is not None:
            lacks |= dict.fromkeys(("chat", "chat_logprobs"), why_no_chat)
        if not listed:
            why = self._pieces.why_no_digits()
            lacks |= dict.fromkeys(("prompt_logprobs", "next_logprobs"), why)
        if not chats and not listed:
            raise UnusableError(f"{why_no_chat}; and {self._pieces.why_no_digits()}")
        self.capabilities = Capabilities(
            chat=chats,
            chat_logprobs=len(self._integers) if chats else 0,
            next_logprobs=listed,
            prompt_logprobs=listed,
            largest=max(listed - 1, 9),
            fillers=_FILLERS if listed else (),
            lacks=lacks,
        )
        return self.capabilities

    async def ask(self, request: Request) -> Response:
        work = self._writing(request) if isinstance(request, Chat) else self._pieces.prompt(request)
        most = len(work.ids) + work.max_tokens if isinstance(work, Writing) else len(work)
        if self._limit is not None and most > self._limit:
            raise LLMError(
                f"a prompt of {most} tokens is too long for '{self.model}' ({self._limit})"
            )
        answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(work, request, answer))
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return await answer

    async def close(self) -> None:
        self._engine.stop()
        await asyncio.to_thread(self._thread.shutdown)

    def _writing(self, chat: Chat) -> Writing:
        if chat.schema is not None:
            raise LLMError("the local engine can't hold an answer to a schema; ask without one")
        if self._tokenizer.chat_template is None:
            raise LLMError(self._no_template())
        ids = self._tokenizer(self._render(chat.messages), add_special_tokens=False)["input_ids"]
        return Writing(ids, chat.max_tokens, chat.integers, chat.temperature, chat.seed)

    def _render(self, messages: Sequence[Message]) -> str:
        """A chat as the model's template writes it, at the point where the answer begins.

        Thoughts are left out: nothing of them is read, and they take longer than the answer.

        Raises:
            LLMError: the template fails.
        """
        try:
            return self._apply(messages)
        except Exception as error:  # templates raise what they like, as for a system message
            with contextlib.suppress(Exception):
                return self._apply(without_system(messages))
            reason = " ".join(str(error).split()) or type(error).__name__
            raise LLMError(f"the chat template of '{self.model}' failed: {reason}") from error

    async def _try_template(self) -> str | None:
        """Why the model can't be asked in chats, if it can't; a short one is written to see.

        Raises:
            UnusableError: the template doesn't come to an end.
        """
        if self._tokenizer.chat_template is None:
            return self._no_template()
        tried: Future[str | None] = Future()
        tried.set_running_or_notify_cancel()

        def write() -> None:
            try:
                self._render(_TRIAL)
                tried.set_result(None)
            except LLMError as error:
                tried.set_result(str(error))

        # Nothing ends a thread, but one that is a daemon does not keep the process from its end.
        Thread(target=write, name="fastexplain-template", daemon=True).start()
        try:
            return await asyncio.wait_for(asyncio.wrap_future(tried), _TEMPLATE_SECONDS)
        except TimeoutError:
            raise UnusableError(
                f"the chat template of '{self.model}' has not written a chat of two messages in "
                f"{_TEMPLATE_SECONDS} s; correct it, or choose another model"
            ) from None

    def _apply(self, messages: Sequence[Message]) -> str:
        text: str = self._tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=False, enable_thinking=False
        )
        # Some models have no such switch, but begin with the thoughts of a prompt that ends so.
        return f"{text.rstrip()}\n\n</think>\n\n" if text.rstrip().endswith("<think>") else text

    def _no_template(self) -> str:
        return f"'{self.model}' has no chat template; choose a model trained on instructions"

    async def _work(self) -> None:
        """Have what waits answered, until nothing does."""
        try:
            await asyncio.sleep(0)  # those that ask at the same moment are all here then
            while taken := self._take():
                await self._answer(taken)
        finally:
            self._worker = None

    def _take(self) -> list[_Waiting]:
        """The oldest request that waits, and those that can be answered with it."""
        self._waiting = [each for each in self._waiting if not each.answer.done()]
        if not self._waiting:
            return []
        first = self._waiting[0].work
        shared, most = None, _CHATS
        if isinstance(first, Prompt):
            shared, most = first.shared, _READINGS[self._device.type]
        taken: list[_Waiting] = []
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            fits = getattr(each.work, "shared", None) == shared and len(taken) < most
            (taken if fits else self._waiting).append(each)
        return taken

    async def _answer(self, taken: list[_Waiting]) -> None:
        try:
            self._engine.check()
            answers = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._run, taken
            )
        except BaseException as error:
            for each in taken:
                if not each.answer.done():
                    each.answer.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return
        for each, answer in zip(taken, answers, strict=True):
            if each.answer.done():
                continue
            if isinstance(answer, LLMError):
                each.answer.set_exception(answer)
            else:
                each.answer.set_result(answer)

    def _run(self, taken: Sequence[_Waiting]) -> list[Response | LLMError]:
        """Answer requests together, or half of them at a time where there is not enough memory."""
        works = [each.work for each in taken]
        try:
            if isinstance(works[0], Writing):
                return [
                    self._as_answer(*pair)
                    for pair in zip(works, self._writer.write(works), strict=True)
                ]
            read = self._engine.read(works)
        except torch.OutOfMemoryError:
            if len(works) == 1:
                return [LLMError(f"'{self.model}' has too little memory left for this request")]
            half = len(works) // 2
            return self._run(taken[:half]) + self._run(taken[half:])
        # The engine reads all integers that are one token.
        return [
            Distribution(values[:, : request.largest + 1], Usage(len(prompt)))
            for (prompt, request, _), values in zip(taken, read, strict=True)
        ]

    def _as_answer(self, writing: Writing, written: Written) -> Answer | LLMError:
        text = self._decode(written.ids)
        if text.lstrip().startswith("<think>"):
            return LLMError(
                f"'{self.model}' can't be kept from thinking before it answers, for which the "
                "local engine leaves no room; have a server such as vLLM run it"
            )
        tokens: tuple[Token, ...] = ()
        if written.integers is not None:
            texts = self._token_texts(written.ids)
            rows = zip(texts, written.integers, strict=True)
            tokens = tuple(Token(text, self._by_text(row)) for text, row in rows)
        elif not written.finished:
            try:
                text = whole_lines(text, writing.max_tokens)
            except LLMError as error:
                return error
        usage = Usage(len(writing.ids), len(written.ids) + written.finished)
        return Answer(text, "stop" if written.finished else "length", tokens, usage)

    def _by_text(self, row: np.ndarray) -> dict[str, float]:
        """Log-probabilities by the text of the integer; several tokens may have the same."""
        result: dict[str, float] = {}
        for text, value in zip(self._integers.values(), row.tolist(), strict=True):
            result[text] = float(np.logaddexp(result[text], value)) if text in result else value
        return result

    def _token_texts(self, ids: list[int]) -> list[str]:
        """What each token adds to the text, which they make up when put together."""
        texts, written = [], ""
        for end in range(1, len(ids) + 1):
            text = self._decode(ids[:end])
            if end < len(ids) and text.endswith("\ufffd"):  # the middle of a character
                text = written
            texts.append(text[len(written) :])
            written = text
        return texts

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


def _ends(network: Any, tokenizer: Any) -> list[int]:
    """The tokens with which the model ends what it says."""
    ends = network.generation_config.eos_token_id if network.generation_config else None
    ends = ends if isinstance(ends, list) else [ends]
    return sorted({token for token in (*ends, tokenizer.eos_token_id) if token is not None})


def _integer_tokens(tokenizer: Any) -> dict[int, str]:
    """The tokens that are an integer from 0 to 10, spaces and tabs aside, with their texts."""
    result = {}
    for token, id_ in tokenizer.get_vocab().items():
        if any(digit in token for digit in "0123456789"):
            text = tokenizer.decode([id_])
            if text.strip(" \t") in _INTEGERS:
                result[id_] = f" {text}" if token[0] == "▁" and text[0] != " " else text
    return dict(sorted(result.items()))


_INTEGERS = frozenset(str(value) for value in range(11))
