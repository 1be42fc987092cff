"""A database that stays open for reading while others write."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from opened import open_files

from fastexplain.errors import RunError
from fastexplain.records import NeuronId
from fastexplain.results import ExplanationRow
from fastexplain.run.database import Database
from fastexplain.run.readers import _KEPT

NEURON = NeuronId(2, 5)

THREADS = 12


def said(text: str) -> ExplanationRow:
    return ExplanationRow(NEURON, "human", "me", text, text)


def texts(database: Database) -> list[str | None]:
    return [row.text for row in database.explanations(NEURON) if row.method == "human"][::-1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database with one explanation."""
    path = tmp_path / "run.sqlite"
    with Database(path) as database:
        database.add_explanations([said("first")])
    return path


def at_once(call: Callable[[], object]) -> list[object]:
    """What a call gives several threads that begin it together."""
    together = threading.Barrier(THREADS)

    def waited(_: int) -> object:
        together.wait()
        return call()

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(waited, range(THREADS)))


def test_all_threads_see_what_another_process_has_written(path: Path) -> None:
    change = "UPDATE means SET value = value + 1"
    with Database(path) as writer:
        writer.query("INSERT INTO means VALUES ('m', 'x', '', 's', 'c', 5, 0, NULL, NULL, '')")
    with Database(path, read_only=True) as reader:
        for value in range(3):
            assert at_once(lambda: reader.means("m", "x")[0].value) == [value] * THREADS
            code = f"import sqlite3; c = sqlite3.connect({str(path)!r}); c.execute({change!r}); "
            subprocess.run([sys.executable, "-S", "-c", code + "c.commit()"], check=True)
        assert open_files(path)
    assert open_files(path) == []


def test_only_a_few_connections_stay_open_and_none_behind_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, closed = [], []

    class Counted(sqlite3.Connection):
        def __init__(self, *arguments: object, **more: object) -> None:
            super().__init__(*arguments, **more)
            opened.append(self)

        def close(self) -> None:
            closed.append(self)
            super().close()

    plain = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: plain(*a, **k, factory=Counted))
    reader = Database(path, read_only=True)
    together = threading.Barrier(THREADS)

    def held(_: int) -> None:
        with reader._reading() as sqlite:
            together.wait()  # so that each has one of its own
            assert sqlite.execute("SELECT count(*) FROM explanations").fetchall() == [(1,)]

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(held, range(THREADS)))
    assert len(opened) == THREADS and len(closed) == THREADS - _KEPT
    assert at_once(lambda: texts(reader)) == [["first"]] * THREADS
    with reader._reading():
        reader.close()
    assert {*map(id, opened)} == {*map(id, closed)} and open_files(path) == []


def test_one_is_used_again_until_something_is_written(path: Path) -> None:
    def connection(database: Database) -> int:
        with database._reading() as sqlite:
            return id(sqlite)

    with Database(path, read_only=True) as reader, Database(path) as writer:
        first = connection(reader)
        assert texts(reader) == ["first"] and connection(reader) == first
        writer.add_explanations([said("second")])
        assert texts(reader) == ["first", "second"]
        assert at_once(lambda: texts(reader)) == [["first", "second"]] * THREADS


def test_a_file_that_comes_later_or_in_anothers_place_is_seen(path: Path) -> None:
    late = path.with_name("late.sqlite")
    with Database(late, read_only=True) as reader:
        assert texts(reader) == []
        shutil.copyfile(path, late)
        assert texts(reader) == ["first"]
        with Database(path.with_name("other.sqlite")) as other:
            other.add_explanations([said("other")])
        path.with_name("other.sqlite").replace(late)
        assert texts(reader) == ["other"]
        late.unlink()
        assert texts(reader) == []


def test_what_can_not_be_written_is_read_anew_when_another_has_written_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastexplain.run.readers.os.access", lambda *_: False)
    with Database(path, read_only=True) as reader:
        assert texts(reader) == ["first"]  # as a file that nothing changes
        with Database(path) as writer:
            writer.add_explanations([said("second")])
            assert texts(reader) == ["first", "second"]  # in its log
        assert texts(reader) == ["first", "second"]


def test_one_of_an_older_version_is_read_anew_once_it_was_brought_to_this_one(
    tmp_path: Path,
) -> None:
    kept = Path(__file__).parents[1] / "data" / "run-schema-1" / "run.sqlite"
    path = Path(shutil.copyfile(kept, tmp_path / "run.sqlite"))
    with Database(path, read_only=True) as reader:
        before = reader.explanations(NEURON)
        assert before and texts(reader) == []
        with Database(path) as writer:
            writer.add_explanations([said("new")])
        assert texts(reader) == ["new"] and len(reader.explanations(NEURON)) == len(before) + 1


def test_one_that_was_damaged_meanwhile_is_an_error_until_it_is_mended(path: Path) -> None:
    whole = path.read_bytes()
    with Database(path, read_only=True) as reader:
        assert texts(reader) == ["first"]
        path.write_bytes(b"nothing of the kind" * 1000)
        for _ in range(2):
            with pytest.raises(RunError, match=r"run\.sqlite can't be used"):
                reader.explanations(NEURON)
        path.write_bytes(whole)
        assert texts(reader) == ["first"]
    assert open_files(path) == []


def test_a_program_that_was_put_in_meanwhile_is_refused(path: Path) -> None:
    with Database(path, read_only=True) as reader:
        assert texts(reader) == ["first"]
        sqlite = sqlite3.connect(path)
        sqlite.executescript("CREATE VIEW lure AS SELECT 1")
        with pytest.raises(RunError, match="view 'lure' that fastexplain did not make"):
            reader.explanations(NEURON)
        sqlite.close()


def test_one_that_is_kept_lets_writers_empty_their_log(path: Path) -> None:
    with Database(path, read_only=True) as reader, Database(path) as writer:
        writer.add_explanations([said("second")])
        assert at_once(lambda: texts(reader)) == [["first", "second"]] * THREADS
        assert writer.query("PRAGMA wal_checkpoint(TRUNCATE)") == [(0, 0, 0)]
        assert texts(reader) == ["first", "second"]
