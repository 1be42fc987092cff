"""What the run's database holds, as the migrations that made it so.

A migration brings a database one step forward. Those that were applied are recorded in it by name.
Never change one that was released; add another at the end.
"""

from __future__ import annotations

import sqlite3

from fastexplain.run.rows import hash_rows

_EXPLANATIONS = (
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
)

_RESPONSES = (
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
)

_UNITS_AND_LONG_SCORES = (
    """CREATE TABLE explanations_2 (
        id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used again
        site TEXT NOT NULL,  -- such as 5, or 5.e17
        unit INTEGER NOT NULL,
        layer INTEGER NOT NULL AS (CAST(site AS INTEGER)),
        method TEXT NOT NULL,  -- lookup, model, human, imported, revised, ...
        model TEXT NOT NULL,
        version TEXT NOT NULL,  -- of the prompt, or of the lookup
        text TEXT,  -- NULL: it failed
        failure TEXT,
        data TEXT NOT NULL,  -- JSON
        parameters TEXT NOT NULL,  -- JSON
        parent INTEGER REFERENCES explanations ON DELETE SET NULL,
        created TEXT NOT NULL  -- UTC, ISO 8601
    )""",
    """INSERT INTO explanations_2
    SELECT id, layer, neuron, iif(method = 'llm', 'model', method), model, version, text, failure,
        data, parameters, NULL, created
    FROM explanations""",
    # The sequence goes over too: ids of what was deleted are not used again either.
    "DELETE FROM sqlite_sequence WHERE name = 'explanations_2'",
    "UPDATE sqlite_sequence SET name = 'explanations_2' WHERE name = 'explanations'",
    """CREATE TABLE scores_2 (
        explanation INTEGER NOT NULL REFERENCES explanations ON DELETE CASCADE,
        scorer TEXT NOT NULL,  -- correlation, ...
        judge TEXT NOT NULL,  -- the model that the scorer asked, such as a simulator
        version TEXT NOT NULL,  -- how it was asked
        split TEXT NOT NULL,  -- the excerpts that it is over: top_and_random, ...
        measure TEXT NOT NULL,
        value REAL,  -- NULL: undefined
        low REAL,  -- of its confidence interval
        high REAL,
        excerpts INTEGER NOT NULL,
        reason TEXT,  -- why it is undefined
        created TEXT NOT NULL,
        PRIMARY KEY (explanation, scorer, judge, version, split, measure)
    ) WITHOUT ROWID""",
    *(
        f"""INSERT INTO scores_2
        SELECT explanation, 'correlation', simulator, version, '{split}', 'correlation', {split},
            NULL, NULL, {excerpts}, iif({split} IS NOT NULL, NULL, iif({excerpts} > 0,
            'one side has no variance', 'no excerpt was simulated')), created
        FROM scores"""
        for split, excerpts in (
            ("random_only", "excerpts_random"),
            ("top_and_random", "excerpts_random + excerpts_top"),
            ("top_only", "excerpts_top"),
        )
    ),
    "DROP TABLE scores",
    "DROP TABLE explanations",
    "ALTER TABLE explanations_2 RENAME TO explanations",
    "ALTER TABLE scores_2 RENAME TO scores",
    "CREATE INDEX explanations_by_unit ON explanations (site, unit, method)",
    # Without it every deletion would look through the table for what was made from the row.
    "CREATE INDEX explanations_by_parent ON explanations (parent) WHERE parent IS NOT NULL",
    # Of the headline alone, since an index holds the whole key of each of its rows once more.
    """CREATE INDEX scores_by_headline ON scores (value) WHERE scorer = 'correlation'
        AND measure = 'correlation' AND split = 'top_and_random'""",
    """CREATE VIRTUAL TABLE explanations_text USING fts5 (
        text, content = 'explanations', content_rowid = 'id', tokenize = 'porter unicode61'
    )""",
    "INSERT INTO explanations_text (explanations_text) VALUES ('rebuild')",
    """CREATE TRIGGER explanation_added AFTER INSERT ON explanations BEGIN
        INSERT INTO explanations_text (rowid, text) VALUES (new.id, new.text);
    END""",
    """CREATE TRIGGER explanation_deleted AFTER DELETE ON explanations BEGIN
        INSERT INTO explanations_text (explanations_text, rowid, text)
        VALUES ('delete', old.id, old.text);
    END""",
    """CREATE TRIGGER explanation_changed AFTER UPDATE OF text ON explanations BEGIN
        INSERT INTO explanations_text (explanations_text, rowid, text)
        VALUES ('delete', old.id, old.text);
        INSERT INTO explanations_text (rowid, text) VALUES (new.id, new.text);
    END""",
)

_MEANS = (
    """CREATE TABLE means (
        method TEXT NOT NULL,  -- of the explanations
        scorer TEXT NOT NULL,
        site TEXT NOT NULL,  -- empty: of the whole run
        split TEXT NOT NULL,
        measure TEXT NOT NULL,
        neurons INTEGER NOT NULL,  -- where the score is defined
        value REAL NOT NULL,
        low REAL,  -- over the choice of excerpts
        high REAL,
        created TEXT NOT NULL,
        PRIMARY KEY (method, scorer, site, split, measure)
    ) WITHOUT ROWID""",
)

# The tables that there were then.
_FIRST_HASHED = (
    "explanations", "simulations", "scores", "responses", "connections", "pending",
)  # fmt: skip

MIGRATIONS: dict[str, tuple[str, ...]] = {
    "1 explanations": _EXPLANATIONS,
    "2 responses": _RESPONSES,
    "3 units and long scores": _UNITS_AND_LONG_SCORES,
    "4 batches without a status": ("ALTER TABLE batches DROP COLUMN status",),
    "5 hashes of rows": tuple(
        statement
        for table in _FIRST_HASHED
        for statement in (
            f"ALTER TABLE {table} ADD COLUMN hash INTEGER",
            hash_rows(table, "1"),
        )
    ),
    "6 means of scores": _MEANS,
    "7 steering": (
        """CREATE TABLE steering (
            site TEXT NOT NULL,
            unit INTEGER NOT NULL,
            steps TEXT NOT NULL,  -- JSON: a list of records.Steering
            created TEXT NOT NULL,
            hash INTEGER,
            PRIMARY KEY (site, unit)
        ) WITHOUT ROWID""",
    ),
    "8 tunings": (
        """CREATE TABLE tunings (  -- apart from what a probe finds, which is replaced by the next
            model TEXT NOT NULL,
            address TEXT NOT NULL,
            tuning TEXT NOT NULL,  -- JSON
            created TEXT NOT NULL,
            hash INTEGER,
            PRIMARY KEY (model, address)
        ) WITHOUT ROWID""",
    ),
    "9 ratings": (
        # They outlive what they judge: so all that was shown stands in them.
        """CREATE TABLE ratings (
            id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used again
            site TEXT NOT NULL,
            unit INTEGER NOT NULL,
            rater TEXT NOT NULL,
            kind TEXT NOT NULL,  -- ranking, grades or skipped
            judgement TEXT NOT NULL,  -- JSON: an integer for each explanation, as it was shown
            shown TEXT NOT NULL,  -- JSON: explanations in the order shown, each with its sources
            excerpts TEXT NOT NULL,  -- JSON: ids by top and random
            seed INTEGER NOT NULL,
            created TEXT NOT NULL,
            replaces INTEGER REFERENCES ratings,  -- the rater's former judgement
            withdrawn TEXT,  -- when it was replaced or undone; NULL: it counts
            hash INTEGER
        )""",
        """CREATE UNIQUE INDEX ratings_that_count ON ratings (rater, site, unit)
            WHERE withdrawn IS NULL""",
    ),
}


def applied(sqlite: sqlite3.Connection) -> list[str]:
    """The names of the migrations that a database has had, oldest first."""
    known = sqlite.execute("SELECT 1 FROM sqlite_master WHERE name = 'migrations'").fetchone()
    if known:
        return [name for (name,) in sqlite.execute("SELECT name FROM migrations ORDER BY rowid")]
    # Up to the second one they were counted only.
    [count] = sqlite.execute("PRAGMA user_version").fetchone()
    return list(MIGRATIONS)[:count]


def migrate(sqlite: sqlite3.Connection) -> None:
    """Apply the migrations that are missing; within a transaction, without foreign keys' checks."""
    done = applied(sqlite)
    sqlite.execute("CREATE TABLE IF NOT EXISTS migrations (name TEXT PRIMARY KEY)")
    for name, statements in MIGRATIONS.items():
        if name not in done:
            for statement in statements:
                sqlite.execute(statement)
        sqlite.execute("INSERT OR IGNORE INTO migrations VALUES (?)", (name,))
