"""OpenAI's batch API: files of requests, answered within a day at half the price.

A batch goes through these steps. Each one's outcome is recorded before the next, so that a command
that ended anywhere goes on from there; where it ended between a step and its record, the server is
asked what it has.

1. A batch is made of noted requests: status `new`.
2. Their file is uploaded under a name of its own: `uploaded`.
3. The server is told to work on it: `created`.
4. Its state is asked for until it has ended, in whatever way.
5. Output and errors are fetched and ingested; what was not answered may be asked again.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping

import openai
from openai.types import Batch as State

from fastexplain.batches import Ingested, Line, ingest, lines, split
from fastexplain.errors import LLMError
from fastexplain.llm.prices import Price
from fastexplain.llm.requests import Capabilities
from fastexplain.llm.server import ServerConnection
from fastexplain.responses import Batch, PendingRequest, Responses

_ENDED = ("completed", "failed", "expired", "cancelled")

# Seconds between two looks at a batch: at first, and at the most.
_FIRST_WAIT, _LONGEST_WAIT = 5.0, 60.0


class BatchClient:
    """Has batches of requests answered by one server.

    Args:
        connection: to the server.
        responses: the store, which also knows how far each batch has got.
        prices: in a batch, by the model's name; None: unknown.
        tell: called with a line on what is going on.
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        connection: ServerConnection,
        responses: Responses,
        prices: Mapping[str, Price | None],
        tell: Callable[[str], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._connection = connection
        self._client = connection.client
        self._responses = responses
        self._prices = prices
        self._tell = tell
        self._sleep = sleep

    async def submit(self, requests: list[PendingRequest], can: Capabilities) -> None:
        """Make batches of requests and have the server begin with them.

        Args:
            requests: all for one model.
            can: what the model can do at this server.

        Raises:
            LLMError: the server takes no batches, or not these.
        """
        for held in split(lines(requests, {held.model: can for held in requests})):
            batch = self._responses.add_batch(
                held[0].model, self._connection.address, [line.key for line in held]
            )
            await self._begin(batch, held)

    async def finish(self, can: Mapping[str, Capabilities]) -> int:
        """Wait for all batches at this server, and store their answers.

        Args:
            can: what models can do at this server, by their names.

        Returns:
            How many requests were answered, or failed for good.

        Raises:
            LLMError: the server can't be asked, or has refused a batch.
        """
        answered = 0
        for batch in self._responses.batches():
            if batch.address == self._connection.address:
                answered += await self._finish(batch, can)
        return answered

    async def _begin(self, batch: Batch, held: list[Line]) -> Batch:
        """Upload a batch's file and create it, as far as that is not done yet."""
        with self._errors():
            if batch.file is None:
                content = b"".join(line.content for line in held)
                file = await self._uploaded(batch.name)
                if file is None:
                    uploaded = await self._client.files.create(
                        file=(batch.name, content), purpose="batch"
                    )
                    file = uploaded.id
                batch = batch._replace(file=file, status="uploaded")
                self._responses.record_batch(batch)
            if batch.batch is None:
                assert batch.file is not None
                created = await self._created(batch.file)
                if created is None:
                    made = await self._client.batches.create(
                        input_file_id=batch.file,
                        endpoint=held[0].endpoint,  # type: ignore[arg-type]
                        completion_window="24h",
                    )
                    created = made.id
                    self._tell(f"batch {created}: {len(held):,} requests submitted")
                batch = batch._replace(batch=created, status="created")
                self._responses.record_batch(batch)
        return batch

    async def _uploaded(self, name: str) -> str | None:
        """The id of a file that was uploaded under this name."""
        async for file in self._client.files.list(purpose="batch"):
            if file.filename == name:
                return file.id
        return None

    async def _created(self, file: str) -> str | None:
        """The id of a batch that was created of this file."""
        async for state in self._client.batches.list():
            if state.input_file_id == file:
                return state.id
        return None

    async def _finish(self, batch: Batch, can: Mapping[str, Capabilities]) -> int:
        if batch.batch is None:
            requests = self._responses.requests_of(batch)
            held = list(lines(requests, can))
            if not held:
                self._responses.end_batch(batch)
                return 0
            batch = await self._begin(batch, held)
        assert batch.batch is not None
        with self._errors():
            state = await self._wait(batch.batch)
            counts = Ingested(0, 0, 0, 0)
            for file in (state.output_file_id, state.error_file_id):
                if file is not None:
                    found = await self._ingest(file, can)
                    counts = Ingested(*(a + b for a, b in zip(counts, found, strict=True)))
        self._responses.end_batch(batch)
        self._tell(f"batch {state.id} {state.status}: {counts.line()}")
        if state.status == "failed":
            errors = state.errors.data or [] if state.errors else []
            why = next((error.message for error in errors if error.message), "no reason given")
            raise LLMError(f"{self._connection.address} refused the batch {state.id}: {why}")
        return counts.answered + counts.failed

    async def _ingest(self, file: str, can: Mapping[str, Capabilities]) -> Ingested:
        """Fetch a file of answers, which may be larger than memory, and store them."""
        with tempfile.TemporaryFile() as whole:
            async with self._client.files.with_streaming_response.content(file) as content:
                async for part in content.iter_bytes():
                    whole.write(part)
            whole.seek(0)
            return ingest(whole, self._responses, can, self._prices)

    async def _wait(self, name: str) -> State:
        """The state of a batch that has ended."""
        wait = _FIRST_WAIT
        before: tuple[object, ...] = ()
        while True:
            state = await self._client.batches.retrieve(name)
            counts = state.request_counts
            done = "" if counts is None else f", {counts.completed:,} of {counts.total:,} done"
            if (state.status, done) != before:
                self._tell(f"batch {name}: {state.status}{done}")
                before = state.status, done
            if state.status in _ENDED:
                return state
            await self._sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except openai.OpenAIError as error:
            # Without its cause: a traceback would show the request, and with it the key.
            raise self._connection.told(error) from None
