"""Runs in places that can't be written, and databases that are not of our making."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastexplain import Run, open_run
from fastexplain.errors import RunError, UsageError
from fastexplain.explainers.lookup import store_lookup
from fastexplain.report.search import explanations_with
from fastexplain.run.conditions import Condition
from fastexplain.run.database import Database

# Commands that write nothing, and what each must show of the planted run.
_READING = {
    "show": (["0:3"], "lookup"),
    "top": (["--limit", "2"], "lookup"),
    "find": (["moon"], "moon"),
    "check": ([], "No file of"),
    "cost": ([], ""),
}

_SCRIPT = """
import sys, fastexplain
from fastexplain.cli.main import main
run, arguments = sys.argv[1], sys.argv[2:]
if arguments == ["table"]:
    print(len(fastexplain.open_run(run).table()))
else:
    sys.argv[1:] = [arguments[0], run, *arguments[1:]]
    main()
"""


def unprivileged(*arguments: object, script: str = _SCRIPT) -> list[str]:
    """The command that runs a script so that permissions bind it, also for root."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return command
    if (setpriv := shutil.which("setpriv")) is None:
        pytest.skip("root may write anywhere, and setpriv is not here")
    taken = "-dac_override,-dac_read_search"
    return [setpriv, f"--bounding-set={taken}", f"--inh-caps={taken}", *command]


@pytest.fixture
def explained(planted_run: Run, tmp_path: Path):
    """A run with explanations; it may be written again when the test is over."""
    path = Path(shutil.copytree(planted_run.path, tmp_path / "run"))
    store_lookup(open_run(path))
    yield path
    path.chmod(0o755)


def leave_a_log(path: Path) -> None:
    """Have a writer die with what it stored in its write-ahead log only."""
    script = (
        "import os, sys\n"
        "from fastexplain.run.database import Database\n"
        "from fastexplain.records import NeuronId\n"
        "from fastexplain.results import ExplanationRow\n"
        "database = Database(sys.argv[1])\n"
        "database.query('PRAGMA wal_autocheckpoint = 0')\n"
        "row = ExplanationRow(NeuronId(0, 3), 'model', 'm', '1', 'moonlight')\n"
        "database.add_explanations([row])\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", script, path / "run.sqlite"], check=True)
    assert (path / "run.sqlite-wal").stat().st_size > 0


def forbid_writing(path: Path) -> None:
    for inner in path.iterdir():
        inner.chmod(0o555 if inner.is_dir() else 0o444)
    path.chmod(0o555)


@pytest.mark.parametrize(
    "log",
    [
        "no log",
        pytest.param("a log", marks=pytest.mark.scale),
        pytest.param("a log without its index", marks=pytest.mark.scale),
    ],
)
def test_what_needs_no_writing_works_where_nothing_can_be_written(explained, log: str) -> None:
    if log != "no log":
        leave_a_log(explained)
    if log == "a log without its index":
        (explained / "run.sqlite-shm").unlink()
    forbid_writing(explained)
    names = sorted(path.name for path in explained.iterdir())
    commands = {name: ([name, *rest], shown) for name, (rest, shown) in _READING.items()}
    commands["table"] = (["table"], "120")
    for command, shown in commands.values():
        ended = subprocess.run(unprivileged(explained, *command), capture_output=True, text=True)
        assert ended.returncode == 0, (command, ended.stderr)
        assert shown in ended.stdout
        if log != "no log" and command[0] == "show":
            assert "moonlight" in ended.stdout  # what is in the log counts too
    assert sorted(path.name for path in explained.iterdir()) == names


def test_what_needs_writing_says_in_one_line_that_it_cannot(explained, tmp_path: Path) -> None:
    forbid_writing(explained)
    ended = subprocess.run(unprivileged(explained, "explain"), capture_output=True, text=True)
    assert ended.returncode == 1
    [line] = [line for line in ended.stderr.splitlines() if line.startswith("fastexplain: ")]
    assert "run.sqlite" in line and "can't be written" in line
    assert "Traceback" not in ended.stderr


def test_no_sweep_begins_where_its_run_could_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept").chmod(0o555)
    script = (
        "import sys\n"
        "from fastexplain.errors import RunError\n"
        "from fastexplain.run.writing import check_free\n"
        "try: check_free(sys.argv[1])\n"
        "except RunError as error: print(error)\n"
    )
    for place in ("kept", "kept/run", "kept/deep/run"):
        command = unprivileged(tmp_path / place, script=script)
        ended = subprocess.run(command, capture_output=True, text=True)
        where = f"can't write a run to {tmp_path / place}: you may not write to {tmp_path / 'kept'}"
        assert ended.stdout == f"{where}\n", ended.stderr


# Databases that are not of our making


PROGRAMS = {
    "a trigger": "CREATE TRIGGER x AFTER INSERT ON scores BEGIN DELETE FROM responses; END",
    "a changed trigger": (
        "DROP TRIGGER explanation_added; CREATE TRIGGER explanation_added AFTER INSERT ON "
        "explanations BEGIN DELETE FROM responses; END"
    ),
    "a temporary-looking trigger": (
        "CREATE TRIGGER IF NOT EXISTS y BEFORE DELETE ON explanations BEGIN SELECT 1; END"
    ),
    "a view": "CREATE VIEW v AS SELECT * FROM explanations",
    "a view in place of a table": (
        "ALTER TABLE ledger RENAME TO kept; CREATE VIEW ledger AS SELECT * FROM kept"
    ),
    "a virtual table": "CREATE VIRTUAL TABLE f USING fts5 (x)",
}


@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_in_a_database_are_refused(tmp_path: Path, program: str, read_only: bool) -> None:
    path = tmp_path / "run.sqlite"
    Database(path).close()
    with sqlite3.connect(path) as sqlite:
        sqlite.executescript(PROGRAMS[program])
    with pytest.raises(RunError, match=r"run\.sqlite has a .* that fastexplain did not make"):
        Database(path, read_only=read_only)


def test_a_schema_is_not_trusted_where_it_is_only_read(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    Database(path).close()
    with Database(path, read_only=True) as database:
        assert database.query("PRAGMA trusted_schema") == [(0,)]


DAMAGES = {
    "data that is no JSON": "UPDATE explanations SET data = '{'",
    "parameters that are none": "UPDATE explanations SET parameters = x'ff'",
    "a site that is none": "UPDATE explanations SET site = '../x'",
    "a unit that is a text": "UPDATE explanations SET unit = 'x'",
    "text that is no UTF-8": "UPDATE explanations SET text = CAST(x'ff' AS TEXT)",
    "values of three bytes": (
        "INSERT INTO simulations SELECT id, 's', 'v', 1, 'test', x'010203', NULL, '', NULL "
        "FROM explanations"
    ),
    "no table": "DROP TABLE scores",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_rows_that_cannot_be_read_are_a_run_error(explained: Path, damage: str) -> None:
    with sqlite3.connect(explained / "run.sqlite") as sqlite:
        sqlite.executescript(DAMAGES[damage])
    refused = 0
    run = open_run(explained)
    neuron = run.neuron("0:3").id

    def simulated(database: Database) -> None:
        for row in database.query("SELECT id FROM explanations"):
            database.simulated(*row, "s", "v")

    for read in (
        lambda database: database.explanations(neuron),
        lambda database: database.best(5),
        lambda database: explanations_with(database, None, "moon", 20),
        lambda database: run.table(),
        simulated,
    ):
        try:
            with run.database(read_only=True) as database:
                read(database)
        except RunError as error:
            refused += 1
            assert "run.sqlite" in str(error) and "\n" not in str(error)
    assert refused


@pytest.mark.parametrize("number", range(20))
def test_a_damaged_database_never_ends_in_another_error(explained: Path, number: int) -> None:
    """Pages of another content; SQLite may see it, or read something else, but no more."""
    path = explained / "run.sqlite"
    data = bytearray(path.read_bytes())
    start = (number * 7919) % (len(data) - 600)
    data[start : start + 500] = bytes((number * 31 + i * 17) % 256 for i in range(500))
    path.write_bytes(data)
    run = open_run(explained)
    for read in (run.table, lambda: run.database(read_only=True).best(500)):
        try:
            read()
        except RunError as error:
            assert "run.sqlite" in str(error) and "\n" not in str(error)


# Conditions


def test_a_condition_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastexplain.run.conditions._SECONDS", 0.0)
    condition = Condition("a > 1 and a < 5 and abs(a) > 0", ["a"])
    with pytest.raises(
        UsageError, match=r"can't be evaluated \(interrupted\); for a layer it may take 0 s"
    ):
        condition.select({"a": np.arange(50_000.0)})


@pytest.mark.parametrize("depth", [10, 40, 100])
def test_comparisons_inside_comparisons_do_not_grow_without_end(depth: int) -> None:
    text = "1"
    for _ in range(depth):
        text = f"1<({text})<3"
    with pytest.raises(UsageError, match=r"too many|longer than|stack overflow"):
        Condition(text, ["a"])
