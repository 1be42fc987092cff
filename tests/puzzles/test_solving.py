"""Solving puzzles: the oracle, words without a model, rankings, the call and the command."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastexplain
from fastexplain.errors import LLMError, RunError, UsageError
from fastexplain.puzzles import texts
from fastexplain.puzzles.lookup import Lookup
from fastexplain.puzzles.oracle import DESCRIPTIONS, Given, Oracle
from fastexplain.puzzles.ranking import Ranking
from fastexplain.puzzles.solving import HEADLINE, MeasureId
from fastexplain.puzzles.texts import HALVES, load, tokens_of
from fastexplain.results import Measured
from fastexplain.run.splits import samples

PUZZLES = load()


@pytest.fixture
def few(monkeypatch):
    """Two puzzles of each level, so that it takes less time: six for each half."""
    PUZZLES[0].record()  # numbers of tokens are made once, of all puzzles
    monkeypatch.setattr(texts, "_all", lambda: tuple(p for p in PUZZLES if p.place % 8 < 2))


@pytest.fixture
def solve(tmp_path):
    """Call `solve_puzzles` on a directory of this test's."""

    def call(**arguments):
        return fastexplain.solve_puzzles(out=tmp_path / "puzzles", **arguments)

    return call


def test_the_oracle_simulates_each_description_as_its_neuron_would():
    oracle = Oracle(PUZZLES)
    for puzzle in PUZZLES:
        for text in puzzle.texts:
            assert oracle.simulate(puzzle.true, text.tokens) is text.values
            for decoy in puzzle.false:
                simulated = oracle.simulate(decoy.text, text.tokens)
                assert simulated.tolist() == decoy.values(text.tokens).tolist()


@pytest.mark.parametrize(
    ("description", "tokens", "says"),
    [
        (PUZZLES[1].true, PUZZLES[0].texts[0].tokens, "the puzzles' own descriptions only"),
        ("birds", PUZZLES[0].texts[0].tokens, "the puzzles' own descriptions only"),
        (PUZZLES[0].true, tokens_of("No such text."), "the puzzles' own texts only"),
    ],
    ids=["another-puzzle", "unknown", "another-text"],
)
def test_what_the_oracle_does_not_know_is_no_simulation(description, tokens, says):
    with pytest.raises(LLMError, match=says):
        Oracle(PUZZLES).simulate(description, tokens)


def check_oracle(solve, half, scorers) -> None:
    """On each part of the test split: its texts tell the true description from the false ones."""
    solved = solve(explainer="oracle", half=half, scorers=scorers)
    assert len(solved.solutions) == 24 and not solved.failures
    assert {name.split for name in solved.measures} >= {"top_and_random", "random_only"}
    for name in solved.measures:
        for which in ("true", "written"):
            found = solved.ranking(name, which)
            assert (found.first, found.defined) == (1, 24), name
    assert solved.ranking().true == pytest.approx(1)
    assert all(each.written == each.puzzle.true for each in solved.solutions)


@pytest.mark.parametrize("half", HALVES)
def test_with_the_oracle_correlation_ranks_the_true_description_first(solve, half):
    check_oracle(solve, half, ["correlation"])


@pytest.mark.scale
@pytest.mark.parametrize("half", HALVES)
def test_with_the_oracle_every_measure_ranks_the_true_description_first(solve, half):
    """Of the other scorers, some look into a run, ask a model, or measure baselines."""
    check_oracle(solve, half, ["correlation", "simulation"])


def test_lookup_finds_words_and_no_meaning(solve):
    solved = solve()
    by_name = {each.puzzle.name: each for each in solved.solutions}
    for name, token in (("question marks", "'?'"), ("hyphens", "'-'"), ("the word not", "' not'")):
        found = by_name[name]
        assert found.written.startswith(token)
        assert found.scores["written"][HEADLINE] > 0.8
    assert by_name["the word not"].scores["true"][HEADLINE] == pytest.approx(1)
    assert by_name["names after a title"].scores["true"][HEADLINE] is None
    assert 0 < solved.ranking().first < 0.3 and 0 < solved.ranking(which="written").first < 0.5


def test_lookup_is_held_out():
    """What a neuron does in its test split changes nothing in its explanation."""
    record = PUZZLES[1].record()
    tested = {sample.excerpt for sample in samples(record)}

    def changed(exemplars):
        return [
            replace(each, activations=np.full_like(each.activations, 7))
            if each.excerpt in tested
            else each
            for each in exemplars
        ]

    other = replace(record, top=changed(record.top), random=changed(record.random))
    assert any((each.true == 7).all() for each in samples(other))
    assert Lookup().explain(other) == Lookup().explain(record)


def test_pairs_are_listed_where_they_tell_more():
    [puzzle] = [puzzle for puzzle in PUZZLES if puzzle.name == "a word written twice"]
    assert "' at' after ' at'" in Lookup().explain(puzzle.record()).text


def test_a_silent_neuron_can_not_be_explained():
    record = PUZZLES[2].record()
    with pytest.raises(LLMError, match="nothing to explain"):
        Lookup().explain(replace(record, top=[], random=record.random[:3]))


@pytest.mark.parametrize(
    ("explanation", "values"),
    [
        ("' cat' 5, ' sat' after ' cat' 2.5", [0, 5, 2.5, 0]),
        ('"don\'t" 1e+03', [0, 0, 0, 0]),
        ("the word “sat”", [0, 0, 10, 0]),
        ("a cat, or the sign .", [0, 0, 0, 0]),
        ("what cats sat", [0, 0, 0, 0]),
        ("things that sit, such as felines", [0, 0, 0, 0]),
        ("The word that CATS", [0, 0, 0, 0]),
        ("", [0, 0, 0, 0]),
    ],
)
def test_lookup_takes_descriptions_word_for_word(explanation, values):
    tokens = tokens_of("A cat sat.")
    assert Lookup().simulate(explanation, tokens).tolist() == values


@given(
    st.lists(
        st.tuples(st.text(min_size=1, max_size=5), st.none() | st.text(min_size=1, max_size=3)),
        min_size=1,
        max_size=8,
        unique=True,
    )
)
@settings(derandomize=True, max_examples=30)
def test_a_list_that_lookup_writes_it_can_read(entries):
    from fastexplain.explainers.lists import text_of

    text = text_of([{"token": t, "previous": p, "mean": 5.0, "count": 1} for t, p in entries])
    singles = {t for t, p in entries if p is None}
    for token, previous in entries:
        tokens = [token] if previous is None else [previous, token]
        assert Lookup().simulate(text, tokens)[-1] == 5
        assert Lookup().simulate(f"{text}; else 0.25", tokens)[-1] == 5
    assert Lookup().simulate(f"{text}; else 0.25", ["\0" * 8]) in (0.25, 5)
    assert Lookup().simulate(text, ["\0" * 9])[0] == 5 * ("\0" * 9 in singles)


def test_rankings_by_hand():
    """Puzzles: first; beaten by one; undefined, which counts as 0; a tie."""
    found = Ranking.of([0.9, 0.5, None, 0.2], [[0.1, None], [0.6, 0.1], [0.0, -0.5], [0.2, 0.1]])
    assert (found.puzzles, found.defined, found.first) == (4, 3, 0.25)
    assert found.first_error == pytest.approx(np.sqrt(0.25 * 0.75 / 4))
    assert found.true == pytest.approx(1.6 / 3)
    assert found.false == pytest.approx((0.1 + 0.6 + 0.1 + 0.0 - 0.5 + 0.2 + 0.1) / 7)
    right, wrong = [0.9, 0.5, 0.0, 0.2], [0.1, 0.0, 0.6, 0.1, 0.0, -0.5, 0.2, 0.1]
    wins = np.mean([[(r > w) + 0.5 * (r == w) for w in wrong] for r in right])
    assert found.auc == pytest.approx(wins)
    assert 0 < found.auc_error < 0.5


def test_an_undefined_true_description_is_never_first():
    found = Ranking.of([None, 0.1], [[-0.5, -0.5], [None, None]])
    assert found.first == 0.5
    assert Ranking.of([None], [[None, None]]).true is None
    with pytest.raises(ValueError, match="expected scores"):
        Ranking.of([], [])


@given(st.lists(st.tuples(*[st.floats(-1, 1)] * 3), min_size=1, max_size=12), st.floats(0.1, 9))
@settings(derandomize=True, max_examples=50)
def test_only_the_order_of_scores_matters(rows, factor):
    plain = Ranking.of([a for a, *_ in rows], [rest for _, *rest in rows])
    grown = Ranking.of(
        [a * factor for a, *_ in rows], [[b * factor for b in rest] for _, *rest in rows]
    )
    assert 0 <= plain.auc <= 1 and 0 <= plain.first <= 1
    if all(abs(each) > 1e-3 or each == 0 for row in rows for each in row):
        assert (grown.first, grown.auc) == (plain.first, pytest.approx(plain.auc))


class Fussy:
    """Simulates by the oracle, and counts; one puzzle's texts it can't."""

    model, version = "fussy", "1"

    def __init__(self, refused=None):
        self.calls, self._oracle, self._refused = 0, Oracle(PUZZLES), refused

    def simulate(self, explanation, tokens):
        self.calls += 1
        if explanation == self._refused:
            raise LLMError("no answer")
        return self._oracle.simulate(explanation, tokens)


def test_what_was_simulated_is_stored_and_fresh_asks_anew(solve, few):
    fussy = Fussy()
    first = solve(explainer=Given(PUZZLES), simulator=fussy)
    assert fussy.calls == 6 * 3 * 5  # the written ones are the true ones
    again = solve(explainer=Given(PUZZLES), simulator=fussy)
    assert fussy.calls == 6 * 3 * 5 and again == first
    solve(explainer=Given(PUZZLES), simulator=fussy, fresh=True)
    assert fussy.calls == 6 * 4 * 5 + 6 * 3 * 5


def test_failures_are_told_and_cost_only_themselves(solve, few):
    refused = PUZZLES[1]
    solved = solve(explainer=Given(PUZZLES), simulator=Fussy(refused.true))
    assert set(solved.failures) == {refused.name}
    assert solved.failures[refused.name][0].startswith("true: ")
    found = solved.ranking()
    assert (found.defined, found.first) == (5, pytest.approx(5 / 6))


class Eager:
    """A scorer that goes by nothing."""

    name, measures, judge = "eager", ("eagerness",), None

    def excerpts(self, record):
        return samples(record)

    def score(self, record, explanation, excerpts):
        return [Measured("all", "eagerness", len(explanation), len(excerpts))]


def test_other_scorers_are_ranked_too(solve, few):
    solved = solve(explainer="oracle", scorers=[Eager()])
    name = MeasureId("eager", "all", "eagerness")
    assert solved.measures == [name] and solved.headline == name
    longest = [len(p.true) > max(len(decoy.text) for decoy in p.false) for p in load("reporting")]
    assert solved.ranking().first == pytest.approx(np.mean(longest))


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (
            {"simulator": "oracle"},
            UsageError,
            "the oracle knows the puzzles' own descriptions only",
        ),
        ({"explainer": "gpt-9"}, UsageError, r"fastexplain.Model\('gpt-9'\)"),
        ({"simulator": "gpt-9"}, UsageError, "`simulator` is 'gpt-9'; give 'lookup' or 'oracle'"),
        ({"explainer": Given(PUZZLES)}, UsageError, "name a simulator too"),
        ({"half": "both"}, UsageError, "`half` is 'both'"),
        ({"scorers": ["x"]}, UsageError, "there is no scorer 'x'"),
    ],
    ids=["oracle-simulates", "explainer", "simulator", "object", "half", "scorer"],
)
def test_wrong_arguments(solve, arguments, error, says):
    with pytest.raises(error, match=says):
        solve(**arguments)


def test_a_scorer_that_looks_into_the_run_is_refused(solve, monkeypatch):
    monkeypatch.setattr("fastexplain.scorers.correlation.make", lambda run, connect: run.manifest)
    with pytest.raises(UsageError, match="puzzles are of no run, and one of the `scorers`"):
        solve()


def test_a_directory_that_can_not_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file can't be made into a directory"):
        fastexplain.solve_puzzles(out=tmp_path / "file")


def test_progress_is_reported(solve, few):
    seen = []
    solve(explainer="oracle", progress=seen.append)
    assert seen == list(range(1, 25))


def test_it_is_a_coroutine_too(tmp_path, few):
    solved = asyncio.run(fastexplain.solve_puzzles_async(explainer="oracle", out=tmp_path))
    assert re.fullmatch(r"6 puzzles for reporting: by oracle .* in 100%, .* in 100%", repr(solved))


def test_the_command_shows_tables_and_json(cli, tmp_path):
    code, out, err = cli("puzzles", "--explainer", "oracle", "--out", tmp_path)
    assert code == 0 and "96 of 96" in err
    assert "simulated by oracle, written by oracle" in out
    assert re.search(r"all\W+24\W+100% ± 0%\W+100% ± 0%\W+1\.00", out)
    assert re.search(r"correlation\W+top and random\W+24 of 24\W+100% ± 0%\W+1\.00 ± 0\.00", out)
    code, out, _ = cli("puzzles", "--half", "choosing", "--out", tmp_path, "--json")
    data = json.loads(out.splitlines()[-1])
    assert code == 0 and data["half"] == "choosing" and data["explainer"] == "lookup"
    assert [each["name"] for each in data["puzzles"]] == [p.name for p in load("choosing")]
    assert set(data["puzzles"][0]["scores"]) == {*DESCRIPTIONS, "written"}
    assert data["levels"]["1"]["true"]["puzzles"] == 4
    assert sum(level["true"]["first"] for level in data["levels"].values()) / 6 == pytest.approx(
        data["simulator_ranking"]["first"]
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--simulator", "oracle"], "with --simulator oracle give --explainer oracle"),
        (["--half", "all"], "--half is 'all'; choose choosing or reporting"),
        (["--explainer", "m", "--local", "--base-url", "http://x"], "exclude each other"),
    ],
    ids=["oracle", "half", "places"],
)
def test_the_command_refuses_what_makes_no_sense(cli, tmp_path, arguments, says):
    code, _, err = cli("puzzles", *arguments, "--out", tmp_path)
    assert code == 2 and says in err


def test_models_on_a_server(cli, server, tmp_path, few):
    """Its answers make no sense; what it is asked, once only, and limits are checked."""
    options = ("--explainer", "m", "--base-url", server.url, "--out", tmp_path, "--json")
    code, _, err = cli("puzzles", *options, "--max-requests", 7)
    assert code == 1 and "stopped after 7 requests" in err
    code, out, err = cli("puzzles", *options)
    assert code == 0, err
    data = json.loads(out.splitlines()[-1])
    assert (data["explainer"], data["simulator"]) == ("m", "m")
    assert all(each["written"] for each in data["puzzles"]) and not data["failures"]
    bodies = [json.dumps(body, ensure_ascii=False) for _, body, _ in server.requests]
    for puzzle in load("reporting"):
        for text in (puzzle.true, *(decoy.text for decoy in puzzle.false)):
            assert any(json.dumps(text, ensure_ascii=False)[1:-1] in body for body in bodies)
    sent = len(server.requests)
    code, out, _ = cli("puzzles", *options)
    assert code == 0 and len(server.requests) == sent
    assert json.loads(out.splitlines()[-1])["puzzles"] == data["puzzles"]
