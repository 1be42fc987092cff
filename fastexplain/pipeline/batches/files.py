"""Batch files: requests out, answers in, in the form of OpenAI's batch API.

A line of an input file is a request with its name in the store, `{"custom_id": ..., "method":
"POST", "url": ..., "body": ...}`; a line of an output file has the same name with the response,
`{"custom_id": ..., "response": {"status_code": ..., "body": ...}, "error": ...}`. vLLM's
`run-batch` reads and writes the same, but takes chats only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastexplain.errors import Deferred, LLMError, RunError
from fastexplain.ledger.prices import BATCH_FACTOR, Price, cost
from fastexplain.ledger.responses import PendingRequest, Responses
from fastexplain.llm.base import Connection
from fastexplain.llm.openai import wire
from fastexplain.llm.requests import Capabilities, Request, Response, Usage, key

if TYPE_CHECKING:
    from fastexplain.llm.openai.server import ServerConnection

# OpenAI's limits on a file.
MOST_REQUESTS = 50_000
MOST_BYTES = 200_000_000

# What a batch's engine can do, where it could not be probed: OpenAI's and vLLM's `run-batch` both
# answer chats, with log-probabilities and held to a schema.
OFFLINE = Capabilities(chat=True, chat_logprobs=20, schema="json_schema")

# In place of an address, for what the answers to files show of a model.
FILES = "batch files"

# Codes of errors by which a batch lists the requests that it did not get to before it ended.
_NOT_REACHED = ("batch_expired", "batch_cancelled")


def recorded_for_files(responses: Responses, model: str, address: str) -> Capabilities:
    """What a model can be asked by files for an offline engine, as far as a run's records tell.

    Args:
        address: of a server with the same model.
    """
    found = responses.capabilities(model, FILES) or responses.capabilities(model, address)
    found = found or OFFLINE
    why = "files for offline engines hold chats only"
    lacks = dict.fromkeys(("next_logprobs", "prompt_logprobs", "fillers"), why)
    return replace(
        found,
        next_logprobs=0,
        prompt_logprobs=0,
        fillers=(),
        lacks=(found.lacks or {}) | lacks,
    )


class Collector(Connection):
    """Stands for a connection in a batch: notes requests' names in place of sending them.

    Args:
        model, address: of the connection that it stands for.
        responses: where those that wait are found again, see `StoredConnection`.
        server: takes the batches; None for files.
        can: what the model can do, if the server isn't to be probed.

    Attributes:
        noted: names of the requests noted so far, in their order and each once.
    """

    concurrency = 1
    price_factor = BATCH_FACTOR

    def __init__(
        self,
        model: str,
        address: str,
        responses: Responses,
        *,
        server: ServerConnection | None = None,
        can: Capabilities | None = None,
    ) -> None:
        self.model, self.address, self.server, self.capabilities = model, address, server, can
        self.noted: dict[str, None] = {}
        self._responses = responses

    async def probe(self) -> Capabilities:
        assert self.server is not None
        return await self.server.probe()

    async def ask(self, request: Request) -> Response:
        """Note a request.

        Raises:
            Deferred: it is noted.
            LLMError: a batch of this command was to answer it, and failed to.
        """
        name = key(self.model, request)
        known = self._responses.pending(name)
        if known is not None and known.failure is not None:
            raise LLMError(known.failure)
        self.noted[name] = None
        raise Deferred("noted for a batch")


@dataclass
class Ingested:
    """What came of output files: how many of their lines were what.

    `failed` requests are recorded with their reasons, the first of which is `reason`. `left` ones
    the batch did not get to; they still wait. `unknown` lines answer nothing that was asked, or
    what is answered already; `unreadable` ones are no JSON of this form.
    """

    answered: int = 0
    failed: int = 0
    left: int = 0
    unknown: int = 0
    unreadable: int = 0
    reason: str | None = None

    def line(self) -> str:
        """As a sentence."""
        parts = [f"answers stored: {self.answered:,}"]
        parts += [f"requests failed: {self.failed:,} ({self.reason})"] * bool(self.failed)
        parts += [f"requests not got to: {self.left:,}"] * bool(self.left)
        parts += [f"lines that answer nothing that waits: {self.unknown:,}"] * bool(self.unknown)
        parts += [f"lines that can't be read: {self.unreadable:,}"] * bool(self.unreadable)
        return "; ".join(parts)


class Line(NamedTuple):
    """A line of an input file: the request's name and model, where it is asked, and itself."""

    key: str
    model: str
    endpoint: str
    content: bytes


def lines(requests: Iterable[PendingRequest], can: Mapping[str, Capabilities]) -> Iterator[Line]:
    """The lines of input files for requests.

    Args:
        requests: what to ask.
        can: what each model's connection can do, by the model's name.
    """
    for request in requests:
        path, body = wire.body(request.request, request.model, can[request.model])
        line = {"custom_id": request.key, "method": "POST", "url": f"/v1{path}", "body": body}
        content = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        yield Line(request.key, request.model, f"/v1{path}", content)


def split(
    found: Iterable[Line], *, most_requests: int = MOST_REQUESTS, most_bytes: int = MOST_BYTES
) -> Iterator[list[Line]]:
    """Deal lines out to files: each of one model and one endpoint, and within the limits.

    Raises:
        RunError: a line alone is more than a file may hold.
    """
    open_files: dict[tuple[str, str], tuple[list[Line], int]] = {}
    for line in found:
        size = len(line.content)
        if size > most_bytes:
            raise RunError(f"a request of {size:,} bytes is more than a batch file may hold")
        kind = line.model, line.endpoint
        part, part_bytes = open_files.get(kind, ([], 0))
        if len(part) == most_requests or part_bytes + size > most_bytes:
            yield part
            part, part_bytes = [], 0
        part.append(line)
        open_files[kind] = part, part_bytes + size
    yield from (part for part, _ in open_files.values())


def write_files(path: Path, files: Iterable[list[Line]]) -> list[Path]:
    """Write input files: the first to `path`, others beside it with a number in their names.

    A file is whole or absent. Files of an earlier call are replaced.

    Raises:
        RunError: one can't be written.
    """
    written: list[Path] = []
    for number, part in enumerate(files, start=1):
        target = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
        partial = target.parent / f"{target.name}.partial"
        try:
            with partial.open("wb") as file:
                file.writelines(line.content for line in part)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise RunError(f"{target} can't be written: {error.strerror}") from error
        written.append(target)
    return written


def ingest(
    file: Iterable[bytes],
    responses: Responses,
    can: Mapping[str, Capabilities],
    prices: Mapping[str, Price | None],
    found: Ingested,
) -> None:
    """Store the answers in an output file, or in one with errors, line by line.

    A request that was answered waits no longer, so the same file again changes nothing.

    Args:
        can, prices: by the model's name; where a model is absent, `OFFLINE` and unknown. If such a
            model is seen to think, that is recorded for the next file.
        found: the lines are counted here.
    """
    for text in file:
        if not text.strip():
            continue
        line = wire.parse(text)
        # A request has a name too, and the address to send it to.
        if (
            not isinstance(line, dict)
            or "url" in line
            or not isinstance(line.get("custom_id"), str)
        ):
            found.unreadable += 1
            continue
        error = line.get("error")
        if (request := responses.pending(line["custom_id"])) is None:
            found.unknown += 1
        elif isinstance(error, dict) and error.get("code") in _NOT_REACHED:
            found.left += 1
        elif reason := _take(line, request, responses, can, prices.get(request.model)):
            found.failed += 1
            found.reason = found.reason or reason
        else:
            found.answered += 1


def _take(
    line: dict[str, Any],
    request: PendingRequest,
    responses: Responses,
    can: Mapping[str, Capabilities],
    price: Price | None,
) -> str | None:
    """Store the answer to a request, or why it has none, which is returned."""
    try:
        body = _body(line)
        able = can.get(request.model)
        if able is None:
            able = replace(OFFLINE, thinks=wire.thinks(body))
            if able.thinks and responses.capabilities(request.model, FILES) != able:
                responses.record_capabilities(request.model, FILES, able)
        response = wire.read(request.request, body, able)
    except LLMError as error:
        usage = getattr(error, "usage", Usage())
        responses.fail_pending(request, str(error), usage, cost(usage, price))
        return str(error)
    spent = cost(response.usage, price)
    responses.add(request.key, request.model, request.purpose, response, spent)
    return None


def _body(line: dict[str, Any]) -> dict[str, Any]:
    """The response's body in a line of an output file.

    Raises:
        LLMError: the line says that there is none, and why.
    """
    response = line.get("response")
    given = response if isinstance(response, dict) else {}
    body, status = given.get("body"), given.get("status_code", 200)
    if not line.get("error") and status == 200 and isinstance(body, dict):
        return body
    why = line.get("error") or body
    if isinstance(why, dict) and why.get("error"):  # as vLLM has it in "error", others in the body
        why = why["error"]
    if isinstance(why, dict):
        why = why.get("message") or why.get("code")
    reason = " ".join(str(why or "no reason").split())[:300]
    raise LLMError(f"the batch has no answer: {reason} (status {status})")
