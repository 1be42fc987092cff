"""What the viewer's server keeps of a run, and the addresses of the overview."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from fastexplain import Run
from fastexplain.errors import RunError
from fastexplain.records import NeuronId
from fastexplain.results import ExplanationRow, Scores
from fastexplain.viewer import kept
from fastexplain.viewer.application import application
from fastexplain.viewer.guard import Door
from fastexplain.viewer.kept import Kept


def explain(run: Run, score: float) -> None:
    with run.database() as database:
        scores = Scores(score, score, score, 5, 5)
        neuron = NeuronId(0, 1)
        database.add_explanations([ExplanationRow(neuron, "model", "m", "1", "x", scores=scores)])


def score(made: kept.Made) -> float:
    return float(made.scores.values["other", "top_and_random"][1])


def test_former_scores_are_given_while_new_ones_are_made(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "_SHARE", np.inf)  # new ones at once
    go = threading.Event()
    go.set()
    of_run = kept.score_columns

    def made_late(*arguments):
        go.wait()
        return of_run(*arguments)

    monkeypatch.setattr(kept, "score_columns", made_late)
    store = Kept(run)
    assert np.isnan(score(store.made()))
    assert store.made() is store.made()  # nothing has changed
    go.clear()
    explain(run, 0.5)
    assert np.isnan(score(store.made()))  # without waiting
    newer = store._all._newer
    assert newer is not None
    go.set()
    assert score(newer.result()) == 0.5
    assert score(store.made()) == 0.5
    assert store.made().number == 2


def test_a_run_that_is_written_into_is_not_read_all_the_time(run: Run) -> None:
    store = Kept(run)
    first = store.made()
    store._all._next = np.inf
    explain(run, 0.5)
    assert store.made() is first
    assert store._all._newer is None


def test_another_file_in_the_database_s_place_is_read(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it has the same size and time, as a copy that was changed elsewhere may have."""
    monkeypatch.setattr(kept, "_SHARE", np.inf)
    explain(run, 0.5)
    store = Kept(run)
    assert score(store.made()) == 0.5
    file, copy = run.path / "run.sqlite", tmp_path / "run.sqlite"
    shutil.copy2(file, copy)
    with contextlib.closing(sqlite3.connect(copy)) as sqlite, sqlite:
        sqlite.execute("UPDATE scores SET value = 0.25")
    status = file.stat()
    assert copy.stat().st_size == status.st_size
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
    copy.replace(file)
    store.made()
    newer = store._all._newer
    assert newer is not None and score(newer.result()) == 0.25


def test_what_failed_is_tried_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_):
        raise RunError("damaged")

    store = Kept(run)
    with monkeypatch.context() as patch:
        patch.setattr(kept, "score_columns", fails)
        with pytest.raises(RunError, match="damaged"):
            store.made()
    assert np.isnan(score(store.made()))


def test_the_overviews_addresses(run: Run) -> None:
    explain(run, 0.5)
    with TestClient(application(run, Door(None)), raise_server_exceptions=False) as client:
        maps = client.get("/api/maps").json()
        assert maps["default"] in [each["key"] for each in maps["maps"]]
        assert client.get("/api/overview").status_code == 200  # waits
        assert client.get("/api/progress").json()["made"] == 1
        for each in maps["maps"]:
            packed = client.get(f"/api/map/{each['key']}")
            assert len(np.frombuffer(packed.content, "<f4")) == 120
        assert client.get("/api/overview").json()["lists"][0]["neurons"][0]["neuron"] == "0:1"
        found = client.get("/api/search", params={"q": "x"}).json()
        assert found["explanations"][0]["neuron"] == "0:1"
        assert client.get("/api/glance/0:1").json()["score"] == 0.5
        few = client.get("/api/glances?of=0:2,0:1").json()
        assert [each["neuron"] for each in few] == ["0:2", "0:1"] and few[1]["score"] == 0.5


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("map/nothing", "there is no map 'nothing'"),
        ("map/lookup", "there is no map 'lookup'"),
        ("glances?of=0:1,nothing", "'nothing' does not name a neuron"),
        ("glances?of=" + ",".join(["0:1"] * 101), "101 neurons are too many; name up to 100"),
        ("glance/nothing", "'nothing' does not name a neuron"),
        ("glance/0:999", "there is no neuron 0:999"),
        ("search?q=x&limit=0", "'0' results can't be given"),
        ("search?q=x&limit=101", "'101' results can't be given"),
        ("search?q=x&limit=%C2%B2", "'²' results can't be given"),
        ("search?q=x&limit=" + "9" * 5000, "ask for 1 to 100"),
    ],
)
def test_what_is_not_there(run: Run, path: str, said: str) -> None:
    with TestClient(application(run, Door(None)), raise_server_exceptions=False) as client:
        answer = client.get(f"/api/{path}")
        assert answer.status_code == 400
        assert said in answer.json()["error"]
