"""What the run's database holds: its tables by version, and how its rows are read."""

from __future__ import annotations

import json
from typing import Any

from fastexplain.records import NeuronId, Scores, StoredExplanation

# Each brings a database from the version before to its own: the first to 1, and so on. Never
# change one that was released; add another.
MIGRATIONS: list[tuple[str, ...]] = [
    (
        """CREATE TABLE explanations (
            id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used again
            layer INTEGER NOT NULL,
            neuron INTEGER NOT NULL,
            method TEXT NOT NULL CHECK (method IN ('lookup', 'llm')),
            model TEXT NOT NULL,
            version TEXT NOT NULL,  -- of the prompt, or of the lookup
            text TEXT,  -- NULL: it failed
            failure TEXT,
            data TEXT NOT NULL,  -- JSON
            parameters TEXT NOT NULL,  -- JSON
            created TEXT NOT NULL  -- UTC, ISO 8601
        )""",
        "CREATE INDEX explanations_by_neuron ON explanations (layer, neuron, method)",
        """CREATE TABLE simulations (
            explanation INTEGER NOT NULL REFERENCES explanations ON DELETE CASCADE,
            simulator TEXT NOT NULL,
            version TEXT NOT NULL,  -- of the simulator's prompt
            excerpt INTEGER NOT NULL,
            split TEXT NOT NULL,
            activations BLOB,  -- little-endian float32, one a token; NULL: it failed
            failure TEXT,
            created TEXT NOT NULL,
            PRIMARY KEY (explanation, simulator, version, excerpt)
        ) WITHOUT ROWID""",
        """CREATE TABLE scores (
            explanation INTEGER NOT NULL REFERENCES explanations ON DELETE CASCADE,
            simulator TEXT NOT NULL,
            version TEXT NOT NULL,
            random_only REAL,  -- NULL: undefined
            top_and_random REAL,
            top_only REAL,
            excerpts_random INTEGER NOT NULL,
            excerpts_top INTEGER NOT NULL,
            created TEXT NOT NULL,
            PRIMARY KEY (explanation, simulator, version)
        ) WITHOUT ROWID""",
        "CREATE INDEX scores_by_headline ON scores (top_and_random)",
    ),
    (
        """CREATE TABLE responses (
            request TEXT PRIMARY KEY,  -- hash of model, content and parameters
            model TEXT NOT NULL,
            content BLOB NOT NULL,
            prompt_tokens INTEGER NOT NULL,
            completion_tokens INTEGER NOT NULL,
            cached_tokens INTEGER NOT NULL,
            cost REAL,  -- in US dollars; NULL: the price is not known
            created TEXT NOT NULL
        )""",
        """CREATE TABLE pending (  -- requests that a batch file asks
            request TEXT PRIMARY KEY,
            model TEXT NOT NULL,
            purpose TEXT NOT NULL,
            content TEXT NOT NULL,  -- JSON
            batch INTEGER REFERENCES batches,  -- NULL: not submitted by us
            failure TEXT  -- NULL: not answered yet
        )""",
        """CREATE TABLE batches (
            id INTEGER PRIMARY KEY,
            name TEXT NOT NULL,  -- of its file, by which the server can be asked for it
            model TEXT NOT NULL,
            address TEXT NOT NULL,
            file TEXT,  -- the server's names, as far as it got
            batch TEXT,
            status TEXT NOT NULL,
            created TEXT NOT NULL
        )""",
        """CREATE TABLE ledger (
            command TEXT NOT NULL,  -- when it began: UTC, ISO 8601
            model TEXT NOT NULL,
            purpose TEXT NOT NULL,
            answered INTEGER NOT NULL DEFAULT 0,
            failed INTEGER NOT NULL DEFAULT 0,
            prompt_tokens INTEGER NOT NULL DEFAULT 0,
            cached_tokens INTEGER NOT NULL DEFAULT 0,
            completion_tokens INTEGER NOT NULL DEFAULT 0,
            cost REAL NOT NULL DEFAULT 0,  -- of those answers whose price is known
            unpriced INTEGER NOT NULL DEFAULT 0,  -- answers whose price is not
            PRIMARY KEY (command, model, purpose)
        ) WITHOUT ROWID""",
        """CREATE TABLE connections (
            model TEXT NOT NULL,
            address TEXT NOT NULL,
            capabilities TEXT NOT NULL,  -- JSON
            created TEXT NOT NULL,
            PRIMARY KEY (model, address)
        ) WITHOUT ROWID""",
    ),
]


SELECT_EXPLANATIONS = """
    SELECT e.id, e.layer, e.neuron, e.method, e.model, e.version, e.text, e.failure, e.data,
        e.parameters, e.created, s.simulator, s.version, r.cost, s.random_only, s.top_and_random,
        s.top_only, s.excerpts_random, s.excerpts_top
    FROM explanations e LEFT JOIN scores s ON s.explanation = e.id
        LEFT JOIN responses r
            ON e.method = 'llm' AND r.request = json_extract(e.parameters, '$.request')
"""


def read_explanation(row: tuple[Any, ...]) -> StoredExplanation:
    """A row of SELECT_EXPLANATIONS."""
    (key, layer, neuron, method, model, version, text, failure, data, parameters, created) = row[
        :11
    ]
    simulator, simulation, cost, *scores = row[11:]
    return StoredExplanation(
        NeuronId(layer, neuron),
        method,
        model,
        version,
        text,
        json.loads(data),
        json.loads(parameters),
        failure,
        None if simulator is None else Scores(*scores),
        key,
        created,
        simulator,
        simulation,
        cost,
    )
