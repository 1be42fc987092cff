"""`explain` is killed at random moments, and the run ends as though it had not been."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from faulty_server import Faulty

from fastexplain.run.database import Database

CLI = Path(__file__).resolve().parents[2] / "cli.py"
CONCURRENCY = 4
KILLS = 20


class Deadly(Faulty):
    """Answers, and sends its client a signal when that has sent `left` more requests."""

    def __init__(self):
        # Answers come out of order, so that some are in flight whenever the client ends.
        super().__init__(delay=0.002)
        self.spread = 0.01
        self.left, self.client, self.signal = None, None, signal.SIGKILL

    def answer(self, path, request):
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                os.kill(self.client.pid, self.signal)
        return super().answer(path, request)


def explain(run, server, neurons, kill_after=None):
    """Run `fastexplain explain`; returns its exit code and the requests that it sent."""
    before = len(server.requests)
    arguments = ["explain", str(run), *neurons, "--explainer", "m", "--base-url", server.url]
    server.left = None
    client = subprocess.Popen(
        [sys.executable, str(CLI), *arguments, "--concurrency", str(CONCURRENCY)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    server.client, server.left = client, kill_after
    _, errors = client.communicate(timeout=120)
    assert client.returncode in (0, -signal.SIGKILL, 130, 143), errors.decode()
    # What a killed client sent last may still be on its way, and would count for the next one.
    server.drain()
    return client.returncode, server.requests[before:]


def contents(run):
    """All that a run's database holds of neurons and responses, but times, ids and the ledger."""
    explained = "e.site, e.unit, e.model, e.version"
    with Database(run / "run.sqlite") as database:
        return {
            "explanations": database.query(
                f"SELECT {explained}, method, text, failure, data, parameters "
                "FROM explanations e ORDER BY site, unit"
            ),
            "simulations": database.query(
                f"""SELECT {explained}, simulator, s.version, excerpt, split, activations, s.failure
                FROM simulations s JOIN explanations e ON e.id = s.explanation
                ORDER BY site, unit, excerpt"""
            ),
            "scores": database.query(
                f"""SELECT {explained}, judge, s.version, split, value, excerpts, reason
                FROM scores s JOIN explanations e ON e.id = s.explanation
                ORDER BY site, unit, split"""
            ),
            "responses": database.query(
                "SELECT request, model, content, prompt_tokens, completion_tokens FROM responses "
                "ORDER BY request"
            ),
        }


def stored(run):
    with Database(run / "run.sqlite") as database:
        return database.query("SELECT count(*) FROM responses")[0][0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("SIGINT", 130), pytest.param("SIGTERM", 143, marks=pytest.mark.scale)],
)
def test_a_signal_waits_for_what_is_in_flight(planted_run, tmp_path, name, expected):
    """It may have to be paid for."""
    run = Path(shutil.copytree(planted_run.path, tmp_path / "run"))
    neurons = [f"0:{index}" for index in range(min(20, planted_run.width(0)))]
    server = Deadly()
    server.signal = signal.Signals[name]
    try:
        explain(run, server, neurons[:1])
        had = stored(run)
        code, sent = explain(run, server, neurons, kill_after=20)
        assert code == expected
        # All that was sent is stored; of the 55 that were wanted, few went out behind the signal.
        assert 20 <= len(sent) == stored(run) - had <= 20 + 4 * CONCURRENCY
        code, more = explain(run, server, neurons)
        assert code == 0
        assert len({json.dumps(body) for _, body, _ in sent + more}) == len(sent + more)
    finally:
        server.close()


@pytest.mark.scale
def test_two_commands_on_one_run_pay_once_for_what_both_ask(planted_run, tmp_path):
    run = Path(shutil.copytree(planted_run.path, tmp_path / "run"))
    neurons = [f"0:{index}" for index in range(min(12, planted_run.width(0)))]
    server = Deadly()
    command = [sys.executable, str(CLI), "explain", str(run), *neurons, "--explainer", "m"]
    try:
        both = [
            subprocess.Popen([*command, "--base-url", server.url], stdout=subprocess.PIPE)
            for _ in range(2)
        ]
        shown = [client.communicate(timeout=120)[0] for client in both]
        assert [client.returncode for client in both] == [0, 0]
        assert shown[0] == shown[1]
        bodies = [json.dumps(body) for _, body, _ in server.requests]
        assert len(bodies) == len(set(bodies)) and stored(run) > 30
    finally:
        server.close()


@pytest.mark.scale
def test_a_command_that_is_killed_loses_only_what_was_in_flight(planted_run, tmp_path):
    neurons = [f"0:{index}" for index in range(min(20, planted_run.width(0)))]
    paths = [tmp_path / name for name in ("undisturbed", "killed")]
    for path in paths:
        shutil.copytree(planted_run.path, path)
    undisturbed, killed = paths
    server = Deadly()
    rng = np.random.default_rng(0)
    try:
        for path in paths:  # the probe's requests are left out of what is counted
            explain(path, server, neurons[:1])
        first = stored(undisturbed)
        _, sent = explain(undisturbed, server, neurons)
        requests = len(sent)
        assert requests == stored(undisturbed) - first > 50

        for _ in range(KILLS):
            had = stored(killed)
            after = int(rng.integers(1, 3 * requests // KILLS))
            code, sent = explain(killed, server, neurons, after)
            assert code != 0
            # Each was new, or in flight when its sender was killed: none that was stored.
            assert stored(killed) >= had
            assert 0 <= len(sent) - (stored(killed) - had) <= CONCURRENCY
        had = stored(killed)
        code, sent = explain(killed, server, neurons)
        assert code == 0
        assert len(sent) == stored(killed) - had
        code, sent = explain(killed, server, neurons)
        assert (code, sent) == (0, [])
    finally:
        server.close()
    expected, found = contents(undisturbed), contents(killed)
    assert len(expected["explanations"]) >= 10 and len(expected["simulations"]) >= 50
    for table, rows in expected.items():
        assert found[table] == rows, table
