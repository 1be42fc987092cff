"""The command `view`."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn

import fastexplain
from fastexplain import Corpus, Run, Subject
from fastexplain.cli import demo
from fastexplain.cli.terminal import out
from fastexplain.cli.view import PASSWORD
from fastexplain.records import NeuronId
from fastexplain.results import ExplanationRow
from fastexplain.viewer import serving
from fastexplain.viewer.guard import TOKEN_HEADER

Command = Callable[..., tuple[int, str, str]]

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.scale
def test_it_serves_a_run_and_what_is_beside_it_until_it_is_ended(planted_run: Run, run: Run):
    code = "import sys; from fastexplain.cli.main import main; sys.argv[0] = 'fastexplain'; main()"
    arguments = ["view", str(run.path), "--port", "0", "--no-browser"]
    arguments += ["--compare", str(planted_run.path), "--subject", "/no/such/model"]
    arguments += ["--simulator", "m", "--base-url", "http://far.example/v1", "--max-cost", "2"]
    arguments += ["--price", "1,1"]
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as viewing:
        try:
            assert viewing.stdout is not None
            found = re.search(r"http://127\.0\.0\.1:\d+/", viewing.stdout.readline())
            assert found is not None
            address = found[0]

            def ask(path: str, token: str | None = None) -> dict[str, Any]:
                headers = {} if token is None else {TOKEN_HEADER: token, "Origin": address[:-1]}
                headers |= {"Content-Type": "application/json"}
                data = None if token is None else b"{}"
                request = urllib.request.Request(f"{address}api/{path}", data, headers)
                with urllib.request.urlopen(request) as answer:
                    return dict(json.load(answer))

            assert ask("compare")["other"]["name"] == planted_run.path.name
            assert ask("neuron/0:1")["explanations"] == []
            with run.database() as database:
                row = ExplanationRow(NeuronId(0, 1), "human", "me", "1", "seen")
                database.add_explanations([row])
            assert [each["text"] for each in ask("neuron/0:1")["explanations"]] == ["seen"]
            assert ask("simulator") == {"model": "m", "max_cost": 2, "left": 2, "spent": 0}
            state = ask("subject", ask("run")["token"])
            while state["state"] == "loading":
                state = ask("subject")
            assert "/no/such/model" in state["error"]
            os.kill(viewing.pid, signal.SIGTERM)
            viewing.wait()
        finally:
            viewing.kill()  # nothing where it has ended
    assert viewing.returncode == 0
    assert [file.name for file in run.path.glob("run.sqlite*")] == ["run.sqlite"]  # no log is left


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--max-cost 1", "--max-cost is for a simulator; name one with --simulator"),
        ("--simulator m --local --base-url http://x/v1", "--local and --base-url exclude each"),
        ("--simulator m --price cheap", "'cheap' is no price"),
        ("--simulator m --base-url http://x/v1 --max-cost 1", "so --max-cost can't be kept"),
        ("--simulator m --max-cost -1", "--max-cost is -1.0; it has to be 0 or more"),
        ("--simulator m --simulation guess", "there is no simulation 'guess'; choose one of"),
        ("--simulator m --base-url nowhere", "'nowhere' is no server's address"),
    ],
)
def test_a_simulator_that_makes_no_sense_is_refused_before_anything_is_served(
    planted_run: Run, cli: Command, arguments: str, line: str
) -> None:
    code, shown, error = cli("view", planted_run.path, "--no-browser", *arguments.split())
    assert code in (1, 2) and shown == "" and line in error


def test_a_port_that_is_taken_is_named(planted_run: Run, cli: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, error = cli("view", planted_run.path, "--port", port, "--no-browser")
    assert code == 2
    assert f"can't listen on 127.0.0.1, --port {port} " in error and "0 for any" in error


def test_other_machines_need_a_password(planted_run: Run, cli: Command) -> None:
    code, _, error = cli("view", planted_run.path, "--host", "0.0.0.0", "--no-browser")
    assert code == 2
    assert "'0.0.0.0' can be reached from other machines; give a --password" in error


def test_a_run_of_other_neurons_is_not_compared(
    planted_run: Run, tmp_path: Path, tiny_subject: Subject, cli: Command
) -> None:
    corpus = Corpus.from_excerpts(np.arange(256, dtype=np.int32).reshape(4, 64))
    other = fastexplain.sweep(tiny_subject, corpus, tmp_path / "other", batch_size=4)
    code, _, error = cli("view", planted_run.path, "--compare", other.path, "--no-browser")
    assert code == 2
    assert "site 0 has 48 units there and 120 here; compare runs of models" in error


def test_the_extra_is_named_where_it_is_missing(
    planted_run: Run, cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, _, error = cli("view", planted_run.path, "--no-browser")
    assert code == 2
    assert "the viewer needs uvicorn: pip install 'fastexplain[viewer]'" in error


def test_on_a_terminal_the_demo_ends_with_the_viewer(planted_run: Run, cli: Command, monkeypatch):
    monkeypatch.setattr(demo, "run_demo", lambda *_, **__: {})
    monkeypatch.setattr(out, "_force_terminal", True)
    monkeypatch.setattr(
        serving, "serve", lambda run, host, port, secret, ready, **_: ready("ADDRESS")
    )
    _, shown, _ = cli("demo", "--out", planted_run.path)
    assert "The viewer is at ADDRESS (Ctrl-C ends it)" in shown
    monkeypatch.setattr(out, "_force_terminal", False)
    _, shown, _ = cli("demo", "--out", planted_run.path)
    assert "viewer" not in shown


def test_beyond_this_machine_it_opens_at_an_address_and_says_what_can_be_read(
    planted_run: Run, cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: None)  # it listens, and ends
    monkeypatch.setenv("FASTEXPLAIN_PASSWORD", "secret")
    arguments = ("view", planted_run.path, "--port", "0")
    code, shown, _ = cli(*arguments, "--host", "0.0.0.0", "--password")
    assert code == 0
    [address] = opened
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address) and address in shown
    assert "Its password and all data go over the network unencrypted" in shown
    code, shown, _ = cli(*arguments, "--password")
    assert code == 0 and "unencrypted" not in shown


def test_an_address_that_is_shown_names_a_machine() -> None:
    assert serving.address_of("::", 1) == "http://[::1]:1/"
    assert serving.address_of("10.0.0.1", 1) == "http://10.0.0.1:1/"


def test_a_password_needs_a_terminal_or_the_environment(planted_run: Run, tmp_path: Path) -> None:
    """In a session of its own, which has no terminal, and through pipes."""
    environment = {name: value for name, value in os.environ.items() if name != PASSWORD}
    shown = subprocess.run(
        [sys.executable, ROOT / "cli.py", "view", planted_run.path, "--password", "--no-browser"],
        input="secret\n", capture_output=True, text=True, env=environment, start_new_session=True,
    )  # fmt: skip
    assert (shown.returncode, shown.stdout) == (2, "")
    assert shown.stderr == (
        f"fastexplain: there is no terminal to type the password on; set {PASSWORD} to it\n"
    )
