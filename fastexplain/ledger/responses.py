"""The store of responses: what was answered is never asked again, and what it cost is known.

It lives in the run's database. A response is written in one transaction with its entry in the
ledger, as it arrives, so that a command that is killed loses only what was in flight.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any, NamedTuple

from fastexplain.ledger.claims import Claims
from fastexplain.llm.requests import (
    Capabilities,
    Request,
    Response,
    Usage,
    decode,
    from_json,
    to_json,
)
from fastexplain.run.database import Database, now
from fastexplain.run.rows import hash_rows


class LedgerRow(NamedTuple):
    """What one command asked one model for one purpose.

    `purpose` is "explanation", "simulation" or a scorer's name. `cost` is in US dollars, of all
    answers but the `unpriced` ones. Cost and tokens include those of useless answers, and
    `prompt_tokens` those that a server read from its cache.
    """

    command: str
    model: str
    purpose: str
    answered: int
    failed: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost: float
    unpriced: int


class PendingRequest(NamedTuple):
    """A request that waits for a batch.

    `key` is its name in the store; `failure` says why a batch did not answer it, if one failed to.
    """

    key: str
    model: str
    purpose: str
    request: Request
    failure: str | None = None


class Batch(NamedTuple):
    """A batch under way: `name` is its file's, `file` and `batch` are the server's ids."""

    id: int
    name: str
    model: str
    address: str
    file: str | None = None
    batch: str | None = None


class Responses:
    """The responses, the ledger, and the requests that wait in batches.

    Args:
        database: the run's; it stays open as long as this is used.
        command: under what the ledger books, by default the time of this call.

    Attributes:
        database: the same; its `write` has a method run without waiting for the disk.
        claims: on the names of requests that are in flight, so that nobody else asks them.

    All methods raise RunError where the database can't be used.
    """

    def __init__(self, database: Database, command: str | None = None) -> None:
        self.database = database
        [(_, _, path), *_] = database.query("PRAGMA database_list")
        self.claims = Claims(Path(f"{path}-asked") if path else None)
        self.command = command or now("microseconds")

    def find(self, key: str, request: Request) -> Response | None:
        """The stored response to a request, by its `requests.key`."""
        rows = self.database.stored(
            "responses",
            "content, prompt_tokens, completion_tokens, cached_tokens",
            "request = ?",
            (key,),
        )
        if not rows:
            return None
        [(content, *usage)] = rows
        return decode(request, content, Usage(*usage))

    def add(
        self, key: str, model: str, purpose: str, response: Response, cost: float | None
    ) -> None:
        """Store a response and book it; a former one to the same request is replaced.

        Args:
            cost: in US dollars, None if unknown.
        """
        usage = response.usage
        with self.database.transaction() as sqlite:
            sqlite.execute(
                "INSERT OR REPLACE INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)",
                (key, model, response.encode(), *astuple(usage), cost, now()),
            )
            sqlite.execute(hash_rows("responses", "request = ?"), (key,))
            sqlite.execute("DELETE FROM pending WHERE request = ?", (key,))
            self._book(sqlite, model, purpose, usage, cost, answered=1)

    def add_failure(self, model: str, purpose: str, usage: Usage, cost: float | None) -> None:
        """Book a request that failed for good, with the usage and cost of a useless answer."""
        with self.database.transaction() as sqlite:
            self._book(sqlite, model, purpose, usage, cost, failed=1)

    def _book(
        self,
        sqlite: sqlite3.Connection,
        model: str,
        purpose: str,
        usage: Usage,
        cost: float | None,
        *,
        answered: int = 0,
        failed: int = 0,
    ) -> None:
        row = LedgerRow(
            *(self.command, model, purpose, answered, failed),
            *(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens),
            *(cost or 0.0, int(cost is None)),
        )
        counts = LedgerRow._fields[3:]
        sqlite.execute(
            f"""INSERT INTO ledger ({", ".join(LedgerRow._fields)})
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE
            SET {", ".join(f"{name} = {name} + excluded.{name}" for name in counts)}""",
            row,
        )

    def ledger(self) -> list[LedgerRow]:
        """All that was booked, oldest command first."""
        rows = self.database.query(
            f"SELECT {', '.join(LedgerRow._fields)} FROM ledger ORDER BY command, purpose, model"
        )
        return [LedgerRow(*row) for row in rows]

    def capabilities(self, model: str, address: str) -> Capabilities | None:
        """What a former probe of this connection found."""
        rows = self.database.stored(
            "connections", "capabilities", "model = ? AND address = ?", (model, address)
        )
        return Capabilities.from_json(rows[0][0]) if rows else None

    def record_capabilities(self, model: str, address: str, found: Capabilities) -> None:
        """Record what a probe found, in place of a former record."""
        with self.database.transaction() as sqlite:
            sqlite.execute(
                "INSERT OR REPLACE INTO connections VALUES (?, ?, ?, ?, NULL)",
                (model, address, json.dumps(asdict(found)), now()),
            )
            sqlite.execute(hash_rows("connections", "model = ? AND address = ?"), (model, address))

    def last_simulator(self) -> tuple[str, str] | None:
        """Model and address of what simulated last, where it is known how that was reached."""
        rows = self.database.query(
            """SELECT l.model, c.address FROM ledger l JOIN connections c ON c.model = l.model
            WHERE l.purpose = 'simulation' ORDER BY l.command DESC, c.created DESC LIMIT 1"""
        )
        return (str(rows[0][0]), str(rows[0][1])) if rows else None

    def tuning(self, model: str, address: str) -> dict[str, Any] | None:
        """How simulations by this connection were found to be made best, if that was looked for."""
        rows = self.database.stored(
            "tunings", "tuning", "model = ? AND address = ?", (model, address)
        )
        with self.database.understood():
            return dict(json.loads(rows[0][0])) if rows else None

    def record_tuning(self, model: str, address: str, found: dict[str, Any]) -> None:
        """Record what `tuning` gives from then on, in place of a former record."""
        with self.database.transaction() as sqlite:
            sqlite.execute(
                "INSERT OR REPLACE INTO tunings VALUES (?, ?, ?, ?, NULL)",
                (model, address, json.dumps(found), now()),
            )
            sqlite.execute(hash_rows("tunings", "model = ? AND address = ?"), (model, address))

    def add_pending(self, requests: Iterable[PendingRequest]) -> None:
        """Note requests that a batch is to ask; those noted already stay as they are."""
        rows = [(r.key, r.model, r.purpose, to_json(r.request)) for r in requests]
        with self.database.transaction() as sqlite:
            sqlite.executemany(
                """INSERT OR IGNORE INTO pending (request, model, purpose, content)
                VALUES (?, ?, ?, ?)""",
                rows,
            )
            keys = ((key,) for key, *_ in rows)
            sqlite.executemany(hash_rows("pending", "request = ? AND hash IS NULL"), keys)

    def fail_pending(
        self, request: PendingRequest, reason: str, usage: Usage, cost: float | None
    ) -> None:
        """Record that a batch did not answer a request, and book what a useless answer took.

        The failure itself is counted when the request is asked once more.
        """
        with self.database.transaction() as sqlite:
            sqlite.execute(
                "UPDATE pending SET failure = ?, batch = NULL WHERE request = ?",
                (reason, request.key),
            )
            self._book(sqlite, request.model, request.purpose, usage, cost)

    def forget_failures(self) -> None:
        """Have what batches failed to answer asked again."""
        with self.database.transaction() as sqlite:
            sqlite.execute("DELETE FROM pending WHERE failure IS NOT NULL")

    def add_batch(self, model: str, address: str, keys: Sequence[str]) -> Batch:
        """Make a batch of noted requests, which is to be submitted."""
        name = f"fastexplain-{uuid.uuid4().hex}.jsonl"
        with self.database.transaction() as sqlite:
            number = sqlite.execute(
                "INSERT INTO batches (name, model, address, created) VALUES (?, ?, ?, ?)",
                (name, model, address, now()),
            ).lastrowid
            assert number is not None
            sqlite.executemany(
                "UPDATE pending SET batch = ? WHERE request = ?", ((number, key) for key in keys)
            )
        return Batch(number, name, model, address)

    def record_batch(self, row: Batch, **changes: str | None) -> Batch:
        """Record how far a batch has got: its `file` or `batch`, as it is now."""
        row = row._replace(**changes)  # type: ignore[arg-type]
        with self.database.transaction() as sqlite:
            sqlite.execute(
                "UPDATE batches SET file = ?, batch = ? WHERE id = ?", (row.file, row.batch, row.id)
            )
        return row

    def end_batch(self, batch: Batch) -> None:
        """Note that a batch is done with; what it left unanswered belongs to none again."""
        with self.database.transaction() as sqlite:
            sqlite.execute("UPDATE pending SET batch = NULL WHERE batch = ?", (batch.id,))
            sqlite.execute("DELETE FROM batches WHERE id = ?", (batch.id,))

    def batches(self) -> list[Batch]:
        """The batches that are not done with, oldest first."""
        columns = ", ".join(Batch._fields)
        rows = self.database.query(f"SELECT {columns} FROM batches ORDER BY id")
        return [Batch(*row) for row in rows]

    def requests_of(self, batch: Batch) -> list[PendingRequest]:
        """A batch's requests that are not answered yet, in order of keys."""
        return self._pending("batch = ? ORDER BY request", batch.id)

    def pending(self, key: str) -> PendingRequest | None:
        """The request of this name, if no batch has answered it yet."""
        return next(iter(self._pending("request = ?", key)), None)

    def pending_models(self) -> list[str]:
        """The models that batches are to ask."""
        return [name for (name,) in self.database.query("SELECT DISTINCT model FROM pending")]

    def _pending(self, condition: str, value: str | int) -> list[PendingRequest]:
        rows = self.database.stored(
            "pending", "request, model, purpose, content, failure", condition, (value,)
        )
        return [
            PendingRequest(key, model, purpose, from_json(text), failure)
            for key, model, purpose, text, failure in rows
        ]
