"""Hashes of the database's rows, so that a changed bit in what is stored does not go unnoticed.

SQLite looks at the structure of its pages, not at what the rows in them say. Each row of these
tables has a hash of its values. It finds damage, it is no protection from forgery.
"""

from __future__ import annotations

import sqlite3

import xxhash

# What is hashed of each table: what does not change once it is stored, and whether a rating counts.
HASHED = {
    "explanations": "id, site, unit, method, model, version, text, failure, data, parameters, "
    "created",
    "simulations": "explanation, simulator, version, excerpt, split, activations, failure, created",
    "scores": "explanation, scorer, judge, version, split, measure, value, low, high, excerpts, "
    "reason, created",
    "responses": "request, model, content, prompt_tokens, completion_tokens, cached_tokens, cost, "
    "created",
    "connections": "model, address, capabilities, created",
    "tunings": "model, address, tuning, created",
    "pending": "request, model, purpose, content",
    "steering": "site, unit, steps, created",
    "ratings": "id, site, unit, rater, kind, judgement, shown, excerpts, seed, created, replaces, "
    "withdrawn",
}


def define(sqlite: sqlite3.Connection) -> None:
    """Give a connection the function `row_hash` that the statements below use."""
    sqlite.create_function("row_hash", -1, _row_hash, deterministic=True)


def hash_rows(table: str, where: str) -> str:
    """A statement that gives the rows of a table that meet a condition their hashes."""
    return f"UPDATE {table} SET hash = row_hash({HASHED[table]}) WHERE {where}"


def whole(table: str, name: str = "") -> str:
    """An expression: whether a row is what was stored; the table goes by a name in the query."""
    name = name or table
    columns = ", ".join(f"{name}.{column}" for column in HASHED[table].split(", "))
    return f"({name}.hash IS row_hash({columns}))"


def _row_hash(*values: object) -> int:
    """The hash of values as SQLite holds them, 64 bits with a sign as its integers have."""
    return xxhash.xxh3_64_intdigest(repr(values).encode("utf-8", "surrogatepass")) - (1 << 63)
