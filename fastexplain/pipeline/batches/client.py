"""OpenAI's batch API: files of requests, answered within a day at half the price.

A batch goes through these steps. Each one's outcome is recorded before the next, so that a command
that ended anywhere goes on from there; where it ended between a step and its record, the server is
asked what it has.

1. A batch is made of noted requests.
2. Their file is uploaded under a name of its own: the batch has a `file`.
3. The server begins to work on it: it has a `batch`.
4. Its state is asked for until it has ended, in whatever way. One for which the server's queue has
   no room loses its `batch`, and is created again when those before it have ended.
5. Output and errors are fetched and ingested; what was not answered may be asked again.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
)
from typing import TypeVar

import httpx2
import openai
from openai.types import Batch as State
from openai.types import FileObject

from fastexplain.counting import counted
from fastexplain.errors import LLMError
from fastexplain.ledger.prices import Price
from fastexplain.ledger.responses import Batch, PendingRequest, Responses
from fastexplain.llm.openai.limits import Backoff, is_passing, retry_after
from fastexplain.llm.openai.server import ServerConnection
from fastexplain.llm.requests import Capabilities
from fastexplain.pipeline.batches.files import MOST_REQUESTS, Ingested, Line, ingest, lines, split

_ENDED = ("completed", "failed", "expired", "cancelled")

# Seconds between two looks at a batch: at first, and at the most.
_FIRST_WAIT, _LONGEST_WAIT = 5.0, 60.0

# Seconds for a file of 200 MB on its way: half a megabit a second.
_UPLOAD_TIMEOUT = 3600.0

# Statuses by which a server says that it won't ever take a file or the batch made of it.
_NEVER = (400, 404, 413, 422)

# By this error a batch fails if more tokens would wait at OpenAI than an account may have there.
_QUEUE_FULL = "token_limit_exceeded"

_T = TypeVar("_T")
_Listed = TypeVar("_Listed", FileObject, State)


class BatchClient:
    """Has batches of requests answered by one server.

    Args:
        connection: to the server.
        responses: the store, which also knows how far each batch has got.
        can: what the models can do at this server, by their names. Batches of others are left be.
        prices: in a batch, by the model's name; None: unknown.
        report: called with a line on what is going on.
        most_requests: in a batch.
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        connection: ServerConnection,
        responses: Responses,
        can: Mapping[str, Capabilities],
        prices: Mapping[str, Price | None],
        report: Callable[[str], None],
        *,
        most_requests: int = MOST_REQUESTS,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._connection = connection
        self._retries = connection.client.max_retries
        self._client = connection.client.with_options(max_retries=0)
        self._responses = responses
        self._can = can
        self._prices = prices
        self._report = report
        self._sleep = sleep
        self._backoff = Backoff()
        self._most_requests = most_requests

    async def submit(self, requests: Iterable[PendingRequest]) -> None:
        """Make batches of requests and have the server begin with them.

        Raises:
            LLMError: the server takes no batches, or not these.
        """
        for part in split(lines(requests, self._can), most_requests=self._most_requests):
            batch = self._responses.add_batch(
                part[0].model, self._connection.address, [line.key for line in part]
            )
            await self._begin(batch, part, fresh=True)

    async def finish(self) -> bool:
        """Wait for all batches at this server, and store their answers.

        Returns:
            Whether it is of use to submit what is left: answers or failures came, or batches
            will be smaller.

        Raises:
            LLMError: the server can't be asked, or has refused a batch, or one was cancelled.
        """
        useful = False
        while batches := self._batches():
            for place, batch in enumerate(batches):
                alone = all(other.batch is None for other in batches[place:])
                useful |= await self._finish(batch, alone)
        return useful

    def _batches(self) -> list[Batch]:
        return [
            batch
            for batch in self._responses.batches()
            if batch.address == self._connection.address and batch.model in self._can
        ]

    async def _begin(self, batch: Batch, part: list[Line], *, fresh: bool = False) -> Batch:
        """Upload a batch's file and create it, as far as that is not done yet.

        Args:
            fresh: the server can't know anything of the batch.
        """

        async def upload() -> str:
            content = b"".join(line.content for line in part)
            client = self._client.with_options(timeout=_UPLOAD_TIMEOUT)
            return (await client.files.create(file=(batch.name, content), purpose="batch")).id

        async def create() -> str:
            assert batch.file is not None
            made = await self._client.batches.create(
                input_file_id=batch.file,
                endpoint=part[0].endpoint,  # type: ignore[arg-type]
                completion_window="24h",
            )
            self._report(f"batch {made.id}: {counted(len(part), 'request')} submitted")
            return made.id

        with self._errors():
            try:
                if batch.file is None:
                    file = await self._once(upload, lambda: self._uploaded(batch.name), fresh)
                    batch = self._responses.record_batch(batch, file=file)
                made = await self._once(create, lambda: self._created(batch.file), fresh)
            except openai.APIStatusError as error:
                if error.status_code in _NEVER:
                    self._responses.end_batch(batch)
                raise
        return self._responses.record_batch(batch, batch=made)

    async def _once(
        self,
        make: Callable[[], Awaitable[str]],
        find: Callable[[], Awaitable[str | None]],
        fresh: bool,
    ) -> str:
        """The id of what `find` finds at the server, else of what `make` makes there.

        Args:
            fresh: there is nothing to be found, unless a try to make it failed half-way.
        """

        async def work() -> str:
            nonlocal fresh
            found = None if fresh else await find()
            fresh = False
            return found or await make()

        return await self._persist(work)

    async def _uploaded(self, name: str) -> str | None:
        """The id of a file that was uploaded under this name."""
        async for file in _once_each(self._client.files.list(purpose="batch")):
            if file.filename == name:
                return file.id
        return None

    async def _created(self, file: str | None) -> str | None:
        """The id of a batch that was created of this file, other than ones that failed."""
        async for state in _once_each(self._client.batches.list(limit=100)):
            if state.input_file_id == file and state.status != "failed":
                return state.id
        return None

    async def _finish(self, batch: Batch, alone: bool) -> bool:
        """Wait for a batch, and store its answers; `finish` says what is returned.

        Args:
            alone: no batch of ours waits at the server, so that this one is created by itself.
        """
        if batch.batch is None:
            part = list(lines(self._responses.requests_of(batch), self._can))
            if not part:
                self._responses.end_batch(batch)
                return False
            batch = await self._begin(batch, part)
        assert batch.batch is not None
        found = Ingested()
        with self._errors():
            state = await self._wait(batch.batch)
            if state.status == "failed":
                return self._refused(batch, state, alone)
            for file in (state.output_file_id, state.error_file_id):
                if file is not None:
                    await self._ingest(file, found)
        self._responses.end_batch(batch)
        self._report(f"batch {state.id} {state.status}: {found.line()}")
        if state.status == "cancelled":
            raise LLMError(
                f"the batch {state.id} was cancelled; the same command submits the rest of it"
            )
        return bool(found.answered + found.failed)

    def _refused(self, batch: Batch, state: State, alone: bool) -> bool:
        """Deal with a batch that failed as a whole.

        Raises:
            LLMError: another try would be of no use.
        """
        errors = state.errors.data or [] if state.errors else []
        why = next((error.message for error in errors if error.message), "no reason given")
        requests = len(self._responses.requests_of(batch))
        if any(error.code == _QUEUE_FULL for error in errors) and (requests > 1 or not alone):
            self._report(f"batch {state.id} has to wait: {why}")
            if not alone:
                self._responses.record_batch(batch, batch=None)
                return False
            self._most_requests = requests // 2
            self._responses.end_batch(batch)
            return True
        self._responses.end_batch(batch)
        raise LLMError(f"{self._connection.address} refused the batch {state.id}: {why}")

    async def _ingest(self, file: str, found: Ingested) -> None:
        """Fetch a file of answers, which may be larger than memory, and store them."""
        with tempfile.TemporaryFile() as whole:

            async def fetch() -> None:
                whole.seek(0)
                whole.truncate()
                async with self._client.files.with_streaming_response.content(file) as content:
                    async for part in content.iter_bytes():
                        whole.write(part)

            try:
                await self._persist(fetch)
            except openai.NotFoundError:
                self._report(f"the server has no file {file}; its answers are asked for again")
                return
            whole.seek(0)
            ingest(whole, self._responses, self._can, self._prices, found)

    async def _wait(self, name: str) -> State:
        """The state of a batch that has ended."""
        wait = _FIRST_WAIT
        reported = ""
        while True:
            try:
                state = await self._persist(lambda: self._client.batches.retrieve(name))
            except openai.NotFoundError:
                raise LLMError(
                    f"{self._connection.address} knows no batch {name}; use the key with which it "
                    "was submitted, or ask without batches"
                ) from None
            if not isinstance(state.status, str):  # the package doesn't check what it is sent
                raise LLMError(f"{self._connection.address} names no state of the batch {name}")
            counts = state.request_counts
            done = "" if counts is None else f", {counts.completed:,} of {counts.total:,} done"
            if (line := f"batch {name}: {state.status}{done}") != reported:
                self._report(line)
                reported = line
            if state.status in _ENDED:
                return state
            await self._sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)

    async def _persist(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Have something done at the server, again if it fails in a way that may pass.

        The openai package's own retries know nothing of answers that break off, nor of what a
        try that failed may have made.
        """
        failures = 0
        while True:
            try:
                return await work()
            except (openai.APIConnectionError, openai.APIStatusError, httpx2.HTTPError) as error:
                failures += 1
                pause = self._backoff.wait(failures)
                if isinstance(error, openai.APIStatusError):
                    if not is_passing(error.status_code):
                        raise
                    pause = max(pause, retry_after(error.response.headers, time.time()) or 0.0)
                if failures > self._retries:
                    raise
            await self._sleep(pause)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except openai.OpenAIError as error:
            # Without its cause: a traceback would show the request, and with it the key.
            raise self._connection.as_llm_error(error) from None
        except httpx2.HTTPError as error:
            raise LLMError(
                f"{self._connection.address}: the connection broke off ({type(error).__name__}); "
                "the same command goes on from there"
            ) from None


async def _once_each(listed: AsyncIterable[_Listed]) -> AsyncIterator[_Listed]:
    """What a server lists, until it repeats: one without pages sends all of it again."""
    seen = set()
    async for each in listed:
        if each.id in seen:
            return
        seen.add(each.id)
        yield each
