"""Tuning: a simulator whose best way is known is found to be best so, and explain goes by it."""

from __future__ import annotations

import asyncio
import json
import shutil
import zlib
from dataclasses import asdict

import numpy as np
import pytest

import fastexplain
from fastexplain import Model
from fastexplain.cli.terminal import out as console
from fastexplain.errors import BudgetError, RunError, UnusableError, UsageError
from fastexplain.ledger.responses import Responses
from fastexplain.llm import Connection
from fastexplain.llm.requests import Answer, Capabilities, Chat, Distribution
from fastexplain.pipeline.models import Settings
from fastexplain.prompts import simulator as prompts
from fastexplain.puzzles import texts
from fastexplain.puzzles.lookup import Lookup
from fastexplain.puzzles.oracle import Oracle
from fastexplain.puzzles.texts import load
from fastexplain.puzzles.tuning import tune
from fastexplain.simulators.tuning import Tuning, ways

PUZZLES = load()
ABLE = Capabilities(chat=True, prompt_logprobs=11, largest=10, fillers=("unknown", "?", "0"))


class Small(Connection):
    """A small model: its numbers are the excerpt's, and the explanation's only as a small rise.

    With the filler "0" it rises where a neuron of the explanation reacts, with others nowhere.
    """

    address, concurrency = "local", 64

    def __init__(self, can=ABLE):
        self.model, self.can, self.read = "small", can, []
        oracle = Oracle(PUZZLES)
        self.simulate = oracle.simulate
        self.tokens = {
            prompts.reading("", text.tokens, 10).lines: (puzzle, text.tokens)
            for puzzle in PUZZLES
            for text in puzzle.texts
        }

    async def probe(self):
        self.capabilities = self.can
        return self.can

    async def ask(self, request):
        if isinstance(request, Chat):
            return Answer("This neuron reacts to cats.", "stop")
        explanation = request.head.split("\n")[0][1:]
        self.read.append((explanation, request.lines, request.filler, request.shared))
        values = np.array([1 + zlib.crc32(line.encode()) % 7 for line in request.lines])
        puzzle, tokens = self.tokens.get(request.lines, (None, ()))
        known = puzzle and explanation in (puzzle.true, *(decoy.text for decoy in puzzle.false))
        if request.filler == "0" and known:
            values += 2 * (self.simulate(explanation, tokens) > 0)
        is_value = np.arange(request.largest + 1) == values[:, None]
        return Distribution(np.where(is_value, 0.0, -50.0).astype(np.float32))


@pytest.fixture(scope="module")
def patched():
    """The model, in the place of any that is connected to; four puzzles, two for each half."""
    PUZZLES[0].record()  # numbers of tokens are made once, of all puzzles
    model = Small()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "_all", lambda: [p for p in PUZZLES if p.place % 24 < 2])
        patch.setattr("fastexplain.pipeline.models.connect", lambda *_, **__: model)
        yield model


@pytest.fixture
def small(patched):
    patched.read.clear()
    patched.capabilities = None  # not probed, as a connection is that was just made
    return patched


def tuned(run, directory, **options):
    simulator = Model("small", local=True)
    return fastexplain.tune_simulator(run, simulator, out=directory / "puzzles", **options)


@pytest.fixture(scope="module")
def done(patched, planted_run, tmp_path_factory):
    """A run that the model is tuned for, what was found, what was read for it, and where."""
    directory = tmp_path_factory.mktemp("tuned")
    run = fastexplain.open_run(shutil.copytree(planted_run.path, directory / "run"))
    patched.read.clear()
    found = tuned(run, directory)
    return run, found, list(patched.read), directory


def test_the_way_that_tells_true_from_false_is_found_and_reported(done):
    _, found, _, _ = done
    assert (found.best.mode, found.best.filler) == ("prompt-logprobs", "0")
    assert found.best.readout.startswith("contrast")
    assert (found.reported.first, found.reported.puzzles) == (1, 2)
    assert found.reported.auc == 1 > found.usual_reported.auc
    assert found.usual == Tuning("prompt-logprobs")
    rankings = [ranking.auc for _, ranking in found.tried]
    assert rankings == sorted(rankings, reverse=True) and len(found.tried) == 3 * 3 + 1
    assert {way.filler for way, _ in found.tried} == set(ABLE.fillers)
    assert {way.examples for way, _ in found.tried} == {"standard", "mixed"}


def test_ways_share_requests_and_the_reporting_half_is_read_in_two_ways_only(done):
    _, found, read, _ = done
    assert len(read) == len(set(read)) == found.requests
    # Of each of five excerpts three descriptions, an empty one and three others, for each filler.
    assert sum(each[2] == "?" for each in read) == 2 * 5 * (3 + 1 + 3)
    reporting = [puzzle.true for puzzle in load("reporting")]
    fillers = {each[2:] for each in read if each[0] in reporting}
    assert sorted(filler for filler, _ in fillers) == [found.best.filler, "unknown"]


def test_explain_goes_by_the_choice_says_so_and_is_overridden(done, small, cli):
    run, found, _, _ = done
    options = ("explain", run.path, "0:0", "--explainer", "small", "--local", "--json")
    code, out, err = cli(*options, "--dry-run")
    asked = json.loads(out.splitlines()[-1])["purposes"]["simulation"]["requests"]
    assert (code, asked) == (0, 20 if found.best.readout == "contrast" else 40)
    code, out, err = cli(*options)
    assert code == 0 and f"Simulated as tuned by puzzles: {found.best}; --readout overrides" in err
    [row] = json.loads(out.splitlines()[-1])["explanations"]
    assert row["simulation"].endswith(f" prompt-logprobs {found.best.readout}")
    assert {each[2] for each in small.read} == {"0"} and len(small.read) == asked
    code, out, err = cli(*options, "--readout", "expected")
    assert code == 0 and "tuned" not in err and small.read[-1][2] == "unknown"
    ways_of = [row["simulation"] for row in json.loads(out.splitlines()[-1])["explanations"]]
    assert len(ways_of) == 2 and any(each.endswith(" expected") for each in ways_of)
    _, out, _ = cli(*options, "--simulation", "json", "--dry-run")  # tuned for another mode
    assert json.loads(out.splitlines()[-1])["purposes"]["simulation"]["requests"] == 10


def test_a_run_without_a_choice_is_simulated_as_usual(small, run, cli):
    options = ("explain", run.path, "0:0", "--explainer", "small", "--local", "--json")
    code, out, err = cli(*options)
    [row] = json.loads(out.splitlines()[-1])["explanations"]
    assert code == 0 and row["simulation"].endswith(" prompt-logprobs expected")
    assert "tuned" not in err


@pytest.mark.parametrize("width", [80, 160])
def test_the_command_again_asks_nothing_and_shows_all_ways(done, small, cli, monkeypatch, width):
    monkeypatch.setattr(console, "_width", width)
    run, found, _, directory = done
    options = ("--simulator", "small", "--local", "--out", directory / "puzzles")
    code, out, err = cli("puzzles", *options, "--tune", run.path)
    assert code == 0 and small.read == [], err
    assert "Ways to simulate by small; the first is recorded for this run" in out
    assert out.count("choosing") == 10 and out.count("reporting") == 2
    assert out.count("± ") == 24 and "…" not in out
    with run.database() as database:
        stored = Responses(database).tuning("small", "local")
    assert stored == asdict(found.best)
    assert json.loads(json.dumps(found.data()))["chosen"]["filler"] == "0"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--half", "choosing"], "--tune and --half exclude each other"),
        (["--readout", "contrast"], "--tune and --readout exclude each other"),
        (["--prompt", "list"], "--tune and --prompt exclude each other"),
        (["--fresh"], "share their answers, so --fresh can't be had"),
        (["--simulator", "lookup"], "a --simulator that is tuned is a language model; name one"),
        (["--simulation", "telepathy"], "there is no simulation 'telepathy'"),
        (["--max-requests", "-1"], "--max-requests is -1"),
    ],
)
def test_what_makes_no_sense_is_said_in_a_line(small, run, tmp_path, cli, options, says):
    base = ("--simulator", "small", "--local", "--out", tmp_path, "--tune", run.path)
    code, _, err = cli("puzzles", *base, *options)
    assert code == 2 and says in err.splitlines()[-1], err


def test_limits_hold_for_all_ways_together(small, run, tmp_path):
    with pytest.raises(BudgetError, match="stopped after 40 requests"):
        tuned(run, tmp_path, max_requests=40)  # a filler's three ways take 70
    assert len(small.read) == 40
    with run.database() as database:
        assert Responses(database).tuning("small", "local") is None


@pytest.fixture
def command(small, run, tmp_path, cli):
    def call(*more):
        options = ("--simulator", "small", "--local", "--out", tmp_path / "out")
        return cli("puzzles", *options, "--tune", run.path, *more)

    return call


def test_a_dry_run_counts_all_ways_and_sends_nothing(command, small, tmp_path):
    code, out, err = command("--dry-run", "--json")
    assert code == 0 and small.read == [] and not (tmp_path / "out").exists(), err
    usual = json.loads(out.splitlines()[-1])["requests"]
    assert usual > 0
    # Probed, it is known what the model can do; the rest is as many as there are at the most.
    assert command("--max-requests", "1")[0] == 1
    _, out, _ = command("--dry-run", "--json")
    expected = json.loads(out.splitlines()[-1])["requests"] + 1
    assert command()[0] == 0
    assert 0.85 * expected <= len(small.read) <= expected
    code, out, _ = command("--dry-run", "--json")
    assert code == 0 and json.loads(out.splitlines()[-1])["requests"] == 0
    code, out, _ = command("--dry-run")
    assert code == 0 and "At the most" in out


def test_minutes_are_a_limit_of_tuning_too(command, small, run):
    code, _, err = command("--max-minutes", "0")
    assert code == 1 and "stopped after 0 minutes; --max-minutes" in err.splitlines()[-1]
    assert small.read == []
    code, _, err = command("--max-minutes", "-1")
    assert code == 2 and "--max-minutes is -1" in err


def test_a_dry_run_is_for_tuning(small, cli, tmp_path):
    code, _, err = cli("puzzles", "--dry-run", "--out", tmp_path)
    assert code == 2 and "--dry-run is for --tune RUN" in err


def test_a_run_that_is_none_is_no_place_for_a_choice(small, tmp_path, cli):
    code, _, err = cli("puzzles", "--simulator", "small", "--local", "--tune", tmp_path / "none")
    assert code != 0 and "none" in err


def test_ways_to_try_are_those_that_the_connection_can():
    found, examples = ways(Capabilities(chat=True), None)
    assert (found, examples) == ([Tuning("json")], ["mixed"])
    found, examples = ways(Capabilities(chat=True, chat_logprobs=20), None)
    assert (found, examples) == ([Tuning("generated-logprobs")], ["mixed"])
    found, examples = ways(Capabilities(next_logprobs=20), None)
    assert [way.readout for way in found] == ["expected", "contrast", "contrast-others"]
    assert {way.mode for way in found} == {"one-at-a-time"} and examples == []
    found, _ = ways(ABLE, "json")
    assert found == [Tuning("json")]
    with pytest.raises(UnusableError):
        ways(Capabilities(), None)


def test_a_choice_is_kept_apart_from_probes_and_damage_is_noticed(run):
    way = Tuning("prompt-logprobs", "contrast", "0", "mixed")
    with run.database() as database:
        responses = Responses(database)
        assert responses.tuning("m", "here") is None
        responses.record_tuning("m", "here", asdict(Tuning("json")))
        responses.record_tuning("m", "here", asdict(way))
        responses.record_capabilities("m", "here", ABLE)
        assert Tuning.of(responses.tuning("m", "here")) == way
        assert responses.tuning("m", "elsewhere") is None
        with database.transaction() as sqlite:
            sqlite.execute("UPDATE tunings SET tuning = replace(tuning, 'mixed', 'fixed')")
        with pytest.raises(RunError, match="a row of its tunings is not what was stored"):
            responses.tuning("m", "here")


@pytest.mark.parametrize(
    "stored",
    [
        {},
        asdict(Tuning("json")) | {"readout": "tea leaves"},
        asdict(Tuning("json")) | {"examples": "new"},
        asdict(Tuning("telepathy")),
        asdict(Tuning("json")) | {"more": 1},
    ],
)
def test_a_choice_of_another_version_is_not_gone_by(stored):
    assert Tuning.of(stored) is None


def test_a_choice_is_said_in_words():
    way = Tuning("prompt-logprobs", "contrast", "0")
    assert str(way) == "prompt-logprobs, readout contrast, filler '0', standard examples"
    assert str(Tuning("json")) == "json, readout expected, standard examples"


def test_only_language_models_are_tuned(run, tmp_path):
    with pytest.raises(UsageError, match="is a language model"):
        asyncio.run(tune(run, Settings(Lookup(), Lookup()), out=tmp_path))
