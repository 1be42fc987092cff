"""A run that is viewed while others write into it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from opened import open_files
from starlette.testclient import TestClient

from fastexplain import Run
from fastexplain.errors import RunError
from fastexplain.records import NeuronId
from fastexplain.results import ExplanationRow
from fastexplain.viewer.application import application
from fastexplain.viewer.guard import Door
from fastexplain.viewer.viewed import Viewed


def explain(run: Run, text: str) -> None:
    with run.database() as database:
        database.add_explanations([ExplanationRow(NeuronId(0, 1), "human", text, "1", text)])


def open_databases(run: Run) -> list[str]:
    return open_files(run.path / "run.sqlite")


def test_every_answer_has_what_was_written_before_it_and_nothing_stays_open(run: Run) -> None:
    with (
        TestClient(application(run, Door(None)), raise_server_exceptions=False) as client,
        ThreadPoolExecutor(8) as clients,
    ):

        def shown(_: int = 0) -> set[str]:
            page = client.get("/api/neuron/0:1").json()
            return {each["text"] for each in page["explanations"]}

        assert shown() == set()  # there is no database yet
        written: set[str] = set()
        for text in ("rivers", "lakes", "seas"):
            explain(run, text)
            written.add(text)
            assert list(clients.map(shown, range(16))) == [written] * 16
            assert client.get("/api/glance/0:1").json()["text"] == text
            [found] = client.get(f"/api/search?q={text}").json()["explanations"]
            assert found["neuron"] == "0:1"
        assert open_databases(run)
    assert open_databases(run) == []


def test_a_viewer_that_has_ended_opens_nothing(run: Run) -> None:
    explain(run, "rivers")
    viewed = Viewed(run, "token")
    assert viewed.database is viewed.database
    viewed.close()
    with pytest.raises(RunError, match="the viewer has ended"):
        _ = viewed.database
    assert open_databases(run) == []


def test_what_is_wrong_with_a_database_is_said_until_it_is_mended(run: Run) -> None:
    app = application(run, Door(None))
    with TestClient(app, raise_server_exceptions=False) as client:
        (run.path / "run.sqlite").write_bytes(b"no database" * 1000)
        for path in ("glance/0:1", "neuron/0:1", "search?q=x"):
            answer = client.get(f"/api/{path}")
            assert answer.status_code == 500 and "run.sqlite" in answer.json()["error"]
        (run.path / "run.sqlite").unlink()
        explain(run, "rivers")
        assert client.get("/api/glance/0:1").json()["text"] == "rivers"
